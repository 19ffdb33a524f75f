"""int8 codes give exactly the answer of the plain product, on any processor."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from nsfse_runtime.search.int8 import Int8Index
from nsfse_runtime.search.two_stage import TIE, best_of, exact_search
from tests.galleries import unit


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    rows = unit(random.normal(size=(2000, 48)))
    return np.concatenate([rows, rows[:40], rows[:1]])  # images that tie


@pytest.fixture(scope="module")
def codes(vectors: np.ndarray) -> Int8Index:
    return Int8Index(vectors)


@pytest.mark.parametrize("k", [1, 20, 300, 900, 5000])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01, 0.0])
def test_the_answer_is_that_of_the_plain_product(codes: Int8Index, vectors: np.ndarray, k: int, share: float) -> None:
    random = np.random.default_rng(k)
    mask = random.random(len(vectors)) < share if share < 1 else None
    for query in unit(random.normal(size=(5, 48)) + vectors[:5]):
        rows, scores = codes.search(query, k, mask)
        expected, exact = exact_search(vectors, query, k, mask)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(scores, exact)


def test_codes_are_never_further_off_than_they_say(codes: Int8Index, vectors: np.ndarray) -> None:
    for query in unit(np.random.default_rng(1).normal(size=(20, 48))):
        scores, error = codes.estimate(query)
        assert (np.abs(scores - vectors.astype(float) @ query.astype(float)) <= error).all()
        assert error.max() < 0.05


def test_the_largest_sums_of_bytes_do_not_overflow() -> None:
    flat = unit(np.ones((64, 512)) * np.where(np.arange(64) % 2, 1, -1)[:, None])
    codes = Int8Index(flat)
    for query in (flat[0], flat[1]):
        scores, error = codes.estimate(query)
        assert (np.abs(scores - flat @ query) <= error).all()


def test_a_row_has_its_score_whoever_stands_beside_it(vectors: np.ndarray) -> None:
    query = unit(np.random.default_rng(2).normal(size=(1, 48)))[0]
    whole = dict(zip(*exact_search(vectors, query, len(vectors)), strict=True))
    for some in (np.arange(3), np.arange(7, 1900, 13), np.array([2040])):
        rows, scores = best_of(vectors, query, some, 500)
        np.testing.assert_allclose([whole[row] for row in rows], scores, rtol=0, atol=1.1 * TIE)
