"""Images encoded once for an evaluation: vectors, regions, and which row is whose."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nsfse.data import Source
from nsfse_runtime.errors import DataError
from nsfse_runtime.inference.region_codec import pack, unpack
from nsfse_runtime.types import Floats, Pixels, Scorer, TargetFeatures

__all__ = ["EncodedImages", "Images", "Progress", "encode_in_batches", "source_images"]

Images = Callable[[Sequence[str]], Pixels]
"""Ids → images [B, H, W, 3] uint8, fitted to the scorer's image size."""

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Features of N images: `vectors` [N, d] float32, regions [N, R, d] as a gallery stores them.

    `codes` [N, R, d] and `factors` [N, R, 1] are of inference/region_codec.py: what is scored is what will be served.
    """

    fingerprint: str
    rows: dict[str, int] = field(repr=False)
    vectors: Floats = field(repr=False)
    codes: NDArray[np.int8] = field(repr=False)
    factors: Floats = field(repr=False)

    def covers(self, ids: Iterable[str]) -> bool:
        """Return whether every one of `ids` is encoded here."""
        return all(item in self.rows for item in ids)

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.intp]:
        """Return the rows [K] of `ids`."""
        return np.fromiter((self.rows[item] for item in ids), np.intp, len(ids))

    def targets(self, rows: NDArray[np.intp]) -> TargetFeatures:
        """Return the features of `rows` [K] in float32."""
        return TargetFeatures(self.vectors[rows], unpack(self.codes[rows], self.factors[rows]))


def encode_in_batches(
    scorer: Scorer, ids: Sequence[str], images: Images, *, batch: int = 64, progress: Progress | None = None
) -> EncodedImages:
    """Encode images in batches; the next batch is read while one is encoded, and no more are held.

    Args:
        scorer: The model.
        ids: The N images.
        images: Reads images, [B, H, W, 3] uint8.
        batch: Images in a batch, B.
        progress: Called with stage, done and total.

    Returns:
        Features of the N images.

    Raises:
        DataError: `ids` is empty.
        ImageError: An image cannot be read; a score must not silently lose a candidate.
    """
    if not ids:
        raise DataError("the gallery has no images; run `nsfse data check` to list what is missing")
    chunks = [ids[start : start + batch] for start in range(0, len(ids), batch)]
    vectors: list[Floats] = []
    regions: list[tuple[NDArray[np.int8], Floats]] = []
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(images, chunks[0])
        for number in range(len(chunks)):
            pixels = coming.result()
            if number + 1 < len(chunks):
                coming = reader.submit(images, chunks[number + 1])
            features = scorer.encode_images(pixels)
            vectors.append(features.vectors)
            regions.append(pack(features.regions))
            if progress:
                progress("encode", min((number + 1) * batch, len(ids)), len(ids))
    rows = {item: row for row, item in enumerate(ids)}
    codes, factors = zip(*regions, strict=True)
    return EncodedImages(
        scorer.fingerprint, rows, np.concatenate(vectors), np.concatenate(codes), np.concatenate(factors)
    )


def source_images(source: Source, size: tuple[int, int], workers: int = 4) -> Images:
    """Return a reader of a source's images, `workers` at a time, fitted to `size` (H, W)."""

    def images(ids: Sequence[str]) -> Pixels:
        with ThreadPoolExecutor(workers) as pool:
            return np.stack(list(pool.map(lambda item: source.load(item, size), ids)))

    return images
