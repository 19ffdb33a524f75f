"""Regions of images in int8, with one factor a row that restores its length.

A gallery of format 1 holds float16 instead. That is still read, and written into such a gallery
alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.types import Floats

Int8Array = NDArray[np.int8]

# Every float16 as a float32, by its bits: looked up, regions take half the time of numpy's
# conversion.
_SINGLES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)

_LARGEST_VALUE = 1e15  # of a feature: products of larger ones overflow


def is_sound(features: Floats) -> bool:
    """Tell whether all features are numbers, and none is a huge one."""
    return not features.size or bool(features.min() > -_LARGEST_VALUE and features.max() < _LARGEST_VALUE)


def pack(regions: NDArray[np.floating[Any]]) -> tuple[Int8Array, Floats]:
    """Round rows [..., d] to codes of one byte [..., d] and their factors [..., 1].

    A row's largest number becomes ±127; the factor is its length over that of its codes. Lengths are
    thus exact, and a cosine moves by what rounding turns: some 1e-5 of a row of 128.

    Args:
        regions: Rows [..., d] of any length.

    Returns:
        Codes [..., d] and factors [..., 1], float32.
    """
    peak = np.abs(regions).max(-1, keepdims=True, initial=0)
    codes = np.rint(regions * (127 / np.where(peak > 0, peak, 1))).astype(np.int8)
    length = np.linalg.norm(codes.astype(np.float32), axis=-1, keepdims=True)
    factors = np.linalg.norm(regions, axis=-1, keepdims=True) / np.where(length > 0, length, 1)
    return codes, factors.astype(np.float32)


def unpack(codes: Int8Array, factors: Floats) -> Floats:
    """Return the rows [..., d] in float32."""
    rows = codes.astype(np.float32)
    rows *= factors
    return rows


def to_bytes(regions: Floats, format_version: int) -> bytes:
    """Return the regions [R, d] as a gallery of that format stores them: the R factors, then the codes."""
    if format_version == 1:
        return regions.astype("<f2").tobytes()
    codes, factors = pack(regions)
    return factors.astype("<f4").tobytes() + codes.tobytes()


def from_bytes(blobs: Sequence[bytes], dim: int, format_version: int) -> Floats:
    """Return the regions [K, R, d] of K blobs of one length.

    Raises ValueError where the lengths differ, or a value is not a number or a huge one.
    """
    if not blobs:
        return np.empty((0, 0, dim), np.float32)
    packed = np.frombuffer(b"".join(blobs), np.uint8).reshape(len(blobs), -1)
    if format_version == 1:
        regions = np.take(_SINGLES, packed.view("<u2"), mode="clip").reshape(len(blobs), -1, dim)
        _check(regions)
        return regions
    count = packed.shape[1] // (4 + dim)
    factors = np.ascontiguousarray(packed[:, : 4 * count]).view("<f4").reshape(len(blobs), count, 1)
    _check(factors)  # codes are of one byte: regions are as sound as their factors
    return unpack(packed[:, 4 * count :].view(np.int8).reshape(len(blobs), count, dim), factors)


def _check(values: Floats) -> None:
    if not is_sound(values):
        raise ValueError("a feature is not a number, or a huge one")
