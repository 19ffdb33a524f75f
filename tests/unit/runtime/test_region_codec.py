"""Regions in one byte a number: as long as they were, and nearly where they were."""

import numpy as np

from nsfse_runtime.inference.region_codec import from_bytes, pack, to_bytes, unpack


def rows(*shape: int) -> np.ndarray:
    found = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def test_a_row_keeps_its_length_and_turns_little() -> None:
    regions = rows(5, 21, 128)
    codes, factors = pack(regions)
    found = unpack(codes, factors)
    assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max(-1).min() == 127
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=2e-7)
    assert np.vecdot(found, regions).min() > 1 - 1e-4


def test_a_row_of_any_length_and_one_of_nothing_come_back() -> None:
    regions = rows(3, 8) * np.array([[1e-3], [0], [40]], np.float32)
    found = unpack(*pack(regions))
    np.testing.assert_allclose(found, regions, atol=0.4 / 127 * 40)
    assert not found[1].any() and np.isfinite(found).all()


def test_bytes_are_read_as_they_were_written_in_both_formats() -> None:
    regions = rows(4, 3, 16)
    for version, size in ((1, 3 * 16 * 2), (2, 3 * (16 + 4))):
        blobs = [to_bytes(each, version) for each in regions]
        assert {len(blob) for blob in blobs} == {size}
        exact = regions.astype(np.float16).astype(np.float32) if version == 1 else unpack(*pack(regions))
        np.testing.assert_array_equal(from_bytes(blobs, 16, version), exact)
    assert from_bytes([], 16, 2).shape == (0, 0, 16)
