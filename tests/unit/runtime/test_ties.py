"""The order of equals is the gallery's, whatever the last bits are: kernels and batches round as they like."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nsfse_runtime import Gallery, Retriever
from nsfse_runtime.search import int8
from nsfse_runtime.search.on_device import DeviceGallery
from nsfse_runtime.search.two_stage import TIE, best_first, best_of, exact_search, rank
from nsfse_runtime.types import PairScores, QueryFeatures, TargetFeatures
from tests.galleries import DIM, REGIONS, ColourScorer, compose_one, save_image, unit

SEEDS = range(6)
KINDS, COPIES = 60, 5


def shaken(values: np.ndarray, seed: int) -> np.ndarray:
    """Return `values` some of which are one or two last bits higher or lower, by their place."""
    found = np.array(values, np.float32)
    steps = np.random.default_rng([seed, found.size]).integers(-2, 3, found.shape)
    for _ in range(2):
        found = np.where(steps > 0, np.nextafter(found, np.float32(np.inf)), found)
        found = np.where(steps < 0, np.nextafter(found, np.float32(-np.inf)), found)
        steps = steps - np.sign(steps)
    return found


class Shaken(np.ndarray):
    """Vectors of which every product is rounded in another way, by the row's place: a foreign processor's BLAS."""

    seed = 0

    def __array_finalize__(self, source: object) -> None:
        self.seed = getattr(source, "seed", 0)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(value) if isinstance(value, Shaken) else value for value in inputs]
        found = getattr(ufunc, method)(*plain, **options)
        return shaken(found, self.seed) if ufunc in (np.matmul, np.vecdot) else found


class ShakenScorer(ColourScorer):
    """Scores a candidate a little differently by its place in the batch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def score_pairs(self, query: QueryFeatures, targets: TargetFeatures) -> PairScores:
        pair = super().score_pairs(query, targets)
        return PairScores(shaken(pair.score, self.seed), pair.word_scores, pair.boundary)


def foreign(vectors: np.ndarray, seed: int) -> np.ndarray:
    found = vectors.view(Shaken)
    found.seed = seed
    return found


@pytest.fixture
def kinds() -> TargetFeatures:
    random = np.random.default_rng(3)
    return TargetFeatures(unit(random.normal(size=(KINDS, DIM))), unit(random.normal(size=(KINDS, REGIONS, DIM))))


@pytest.fixture(params=SEEDS)
def places(request) -> np.ndarray:
    """Return which kind of image is in each row of a shuffled gallery: COPIES of each."""
    return np.random.default_rng(request.param).permutation(np.repeat(np.arange(KINDS), COPIES))


def in_gallery_order(scores: np.ndarray, places: np.ndarray, rows: Sequence[int] | None = None) -> list[int]:
    """Return `rows` of the gallery, best kind first by `scores` [KINDS], copies as they stand in the gallery."""
    rows = range(len(places)) if rows is None else rows
    assert np.diff(np.sort(scores)).min() > 3 * TIE, "these kinds are no test: two of them tie"
    return sorted(rows, key=lambda row: (-scores[places[row]], row))


@pytest.mark.parametrize("share", [1.0, 0.6, 0.05])
@pytest.mark.parametrize("k", [1, 3, 7, 100, KINDS * COPIES])
def test_stage_one_orders_copies_by_row_and_cuts_there(kinds, places, share, k) -> None:
    query = compose_one(kinds.vectors[0], "make it red").vector
    exact = kinds.vectors.astype(float) @ query
    mask = np.random.default_rng(k).random(len(places)) < share
    wanted = in_gallery_order(exact, places, np.flatnonzero(mask).tolist())[:k]
    for seed in SEEDS:
        rows, scores = exact_search(foreign(kinds.vectors[places], seed), query, k, None if share == 1 else mask)
        assert rows.tolist() == wanted
        np.testing.assert_allclose(scores, exact[places[rows]], rtol=0, atol=2 * TIE)
        assert (np.diff(scores) <= 0).all()
        assert (np.diff(scores)[np.diff(places[rows]) == 0] == 0).all(), "copies have one score"


@pytest.mark.parametrize("k", [1, 3, 7, 40])
def test_codes_and_what_an_index_left_are_ordered_alike(kinds, places, k) -> None:
    pytest.importorskip("onnxruntime")
    query = compose_one(kinds.vectors[0], "make it red").vector
    wanted = in_gallery_order(kinds.vectors.astype(float) @ query, places)[:k]
    for seed in SEEDS:
        vectors = foreign(kinds.vectors[places], seed)
        searched = int8.Int8Index(kinds.vectors[places])
        searched._vectors = vectors
        assert searched.search(query, k)[0].tolist() == wanted
        some = np.sort(np.array(in_gallery_order(kinds.vectors.astype(float) @ query, places)[: 2 * k]))
        assert best_of(vectors, query, some, k)[0].tolist() == wanted


@pytest.mark.parametrize(("k", "rerank"), [(10, 30), (30, 10), (300, 300), (7, 7)])
def test_stage_two_orders_copies_by_row(kinds, places, k, rerank) -> None:
    query = compose_one(kinds.vectors[0], "darker and striped")
    first = in_gallery_order(kinds.vectors.astype(float) @ query.vector, places)
    head = in_gallery_order(ColourScorer().score_pairs(query, kinds).score, places, first[:rerank])
    gallery = kinds.take(places)
    for seed in SEEDS:
        found = rank(ShakenScorer(seed), query, foreign(gallery.vectors, seed), gallery.take, k, rerank)
        assert found.rows.tolist() == (head + first[rerank:])[:k]
        assert (np.diff(found.scores[:rerank]) <= 0).all()
        np.testing.assert_allclose(found.pair.score, found.scores[: len(found.pair.score)])


@pytest.mark.parametrize("k", [1, 3, 7, 100])
def test_a_device_that_orders_ties_by_its_own_rounding_answers_alike(kinds, places, k) -> None:
    gallery, query = kinds.take(places), compose_one(kinds.vectors[0], "make it red")
    wanted = in_gallery_order(kinds.vectors.astype(float) @ query.vector, places)[:k]
    scorer = ColourScorer()
    depths = []
    for seed in SEEDS:

        def nearest(given, on_device, seed=seed):
            depths.append(int(given["k"][0]))
            scores = shaken(gallery.vectors @ query.vector, seed)
            rows = np.lexsort((-np.arange(len(scores)), -scores))[: given["k"][0]]  # the later row of two equals first
            return {"rows": rows, "found_vectors": gallery.vectors[rows], "found_regions": gallery.regions[rows]}

        device = object.__new__(DeviceGallery)
        device.snapshot = SimpleNamespace(vectors=foreign(gallery.vectors, seed))
        device._inputs, device._graph = {}, SimpleNamespace(run_with_io_binding=nearest)
        device._scorer = SimpleNamespace(
            score_on_device=lambda one, vectors, regions: scorer.score_pairs(one, TargetFeatures(vectors, regions))
        )
        found = device.search(query.vector, k, np.ones(len(places), bool))
        assert found.rows.tolist() == wanted
        (pair,) = device.pairs([query], found)
        np.testing.assert_allclose(pair.score, scorer.score_pairs(query, gallery.take(wanted)).score, atol=1e-5)
    assert max(depths) < len(places) and len(depths) == len(SEEDS)


def test_a_device_looks_deeper_where_more_tie_than_it_has_seen(kinds) -> None:
    places = np.random.default_rng(0).permutation(np.repeat(np.arange(KINDS), 200))
    vectors, query = kinds.vectors[places], kinds.vectors[7]

    def nearest(given, on_device):
        rows = np.lexsort((-np.arange(len(vectors)), -(vectors @ query)))[: given["k"][0]]
        return {"rows": rows, "found_vectors": vectors[rows], "found_regions": None}

    device = object.__new__(DeviceGallery)
    device.snapshot, device._inputs = SimpleNamespace(vectors=vectors), {}
    device._graph = SimpleNamespace(run_with_io_binding=nearest)
    assert (
        device.search(query, 10, np.ones(len(places), bool)).rows.tolist() == np.flatnonzero(places == 7)[:10].tolist()
    )


def test_copies_in_a_gallery_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    names = [f"{letter}{n}" for letter in "dbeac" for n in range(4)]  # five images four times, under shuffled names
    for name, seed in zip(names, np.random.default_rng(1).permutation(20) % 5, strict=True):
        save_image(tmp_path / "photos" / f"{name}.png", int(seed))
    save_image(tmp_path / "mine.png", 99)
    gallery = Gallery.open(tmp_path / "g", ShakenScorer(), create=True)
    gallery.sync(tmp_path / "photos")
    whole = {}
    for seed in SEEDS:
        for rerank, k in ((100, 20), (0, 20), (100, 6), (7, 20)):
            hits = Retriever(ShakenScorer(seed), gallery).query(tmp_path / "mine.png", "red", k=k, rerank=rerank).hits
            found = [hit.id for hit in hits]
            assert whole.setdefault((rerank, k), found) == found
            parts = [[hit.id for hit in hits if hit.score == score] for score in dict.fromkeys(h.score for h in hits)]
            assert all(part == sorted(part) for part in parts) and len(parts) <= 5 + (rerank == 7)
    gallery.close()


def test_a_chain_of_small_steps_is_not_one_tie() -> None:
    scores = np.array([1, 1 - 0.6 * TIE, 1 - 1.2 * TIE, 1 - 1.8 * TIE, 0.5])
    order, found = best_first(scores[::-1], np.arange(5))
    assert order.tolist() == [3, 4, 1, 2, 0]  # {0, 1} tie, {2, 3} tie
    np.testing.assert_array_equal(found, scores[[0, 0, 2, 2, 4]])


def test_large_scores_tie_by_their_share_and_small_ones_by_the_difference() -> None:
    assert best_first(np.array([1e4, 1e4 + 5e-3]), np.arange(2))[0].tolist() == [0, 1]
    assert best_first(np.array([1e4, 1e4 + 5e-2]), np.arange(2))[0].tolist() == [1, 0]
    assert best_first(np.array([1e-9, 2e-9]), np.arange(2))[0].tolist() == [0, 1]
    assert best_first(np.array([-1.0, -1.0 + 5e-7]), np.arange(2))[0].tolist() == [0, 1]


def test_ties_go_by_the_rows_that_are_given() -> None:
    assert best_first(np.ones(3, np.float32), np.array([9, 2, 5]))[0].tolist() == [1, 2, 0]


def test_no_scores_have_no_order_and_what_is_no_number_comes_last() -> None:
    order, scores = best_first(np.empty(0, np.float32), np.empty(0, np.intp))
    assert len(order) == len(scores) == 0
    with np.errstate(all="raise"):
        order, _ = best_first(np.array([np.nan, 1, -np.inf, 2, np.nan], np.float32), np.arange(5))
    assert order.tolist() == [3, 1, 2, 0, 4]
