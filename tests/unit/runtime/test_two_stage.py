"""Two stages: exact, in a fixed order, whole with K = N."""

import numpy as np
import pytest

from nsfse_runtime.search import two_stage
from nsfse_runtime.search.two_stage import exact_search, rank
from nsfse_runtime.types import TargetFeatures
from tests.galleries import DIM, REGIONS, ColourScorer, compose_one, unit


def brute(scores: np.ndarray, allowed: np.ndarray, k: int) -> list[int]:
    """Return the k best rows; scores that rounding alone parts are one (no others of these galleries are so near)."""
    exact = np.round(scores.astype(np.float64), 5)
    return sorted(np.flatnonzero(allowed).tolist(), key=lambda row: (-exact[row], row))[:k]


@pytest.mark.parametrize("k", [1, 3, 10, 49, 50, 80])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.02, 0.0])
def test_exact_search_equals_sorting_all(k: int, share: float) -> None:
    random = np.random.default_rng(k)
    vectors = random.integers(-2, 3, (50, 4)).astype(np.float32)  # many ties
    query = random.integers(-2, 3, 4).astype(np.float32)
    mask = random.random(50) < share
    rows, scores = exact_search(vectors, query, k, mask)  # products of small whole numbers are exact
    assert rows.tolist() == brute(vectors @ query, mask, k)
    np.testing.assert_array_equal(scores, (vectors @ query)[rows])
    assert len(rows) == min(k, mask.sum())


def test_an_empty_gallery_has_no_rows() -> None:
    rows, scores = exact_search(np.empty((0, 0), np.float32), np.ones(4, np.float32), 5)
    assert len(rows) == len(scores) == 0


@pytest.fixture
def gallery() -> TargetFeatures:
    random = np.random.default_rng(3)
    features = TargetFeatures(unit(random.normal(size=(40, DIM))), unit(random.normal(size=(40, REGIONS, DIM))))
    return features.take([*range(40), 5, 5, 9])  # images that tie


@pytest.mark.parametrize("chunk", [7, 512])
def test_reranking_all_equals_the_exhaustive_order(gallery: TargetFeatures, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(two_stage, "_PAIR_CHUNK", chunk)
    scorer, query = ColourScorer(), compose_one(gallery.vectors[0], "make it red")
    exhaustive = scorer.score_pairs(query, gallery)
    mask = np.arange(43) % 5 != 1
    ranking = rank(scorer, query, gallery.vectors, gallery.take, 43, 43, mask)
    assert ranking.rows.tolist() == brute(exhaustive.score, mask, 43)
    assert ranking.pair is not None
    np.testing.assert_allclose(ranking.pair.word_scores, exhaustive.word_scores[ranking.rows], atol=1e-6)


@pytest.mark.parametrize(("k", "rerank"), [(10, 4), (4, 10), (6, 6), (43, 10)])
def test_the_rest_follows_in_the_order_of_stage_one(gallery: TargetFeatures, k: int, rerank: int) -> None:
    scorer, query = ColourScorer(), compose_one(gallery.vectors[0], "darker and striped")
    everything = np.ones(43, bool)
    first = brute(gallery.vectors @ query.vector, everything, 43)
    whole = scorer.score_pairs(query, gallery).score
    ranking = rank(scorer, query, gallery.vectors, gallery.take, k, rerank)
    head = brute(whole, np.isin(np.arange(43), first[:rerank]), rerank)
    assert ranking.rows.tolist() == (head + first[rerank:])[:k]
    assert len(ranking.scores) == k and ranking.pair is not None and len(ranking.pair.score) == min(k, rerank)
    np.testing.assert_allclose(ranking.scores[:rerank], whole[ranking.rows[:rerank]], atol=1e-6)


def test_no_rerank_is_stage_one_alone(gallery: TargetFeatures) -> None:
    query = compose_one(gallery.vectors[0], "red")

    def never(rows: np.ndarray) -> TargetFeatures:
        raise AssertionError("stage 1 reads no regions")

    ranking = rank(ColourScorer(), query, gallery.vectors, never, 5, 0)
    assert ranking.pair is None
    assert ranking.rows.tolist() == brute(gallery.vectors @ query.vector, np.ones(43, bool), 5)
