"""Match or no match: what is known of a hit, how confident that makes, and what a query says and leaves out."""

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from nsfse_runtime import Bundle, Gallery, Retriever
from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.inference.confidence import FEATURES, Decision, logistic, products
from nsfse_runtime.inference.manifest import FILES, Manifest, write_manifest
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.retrieval.hit_features import hit_confidences, hit_features
from nsfse_runtime.search.two_stage import Ranking, rank
from nsfse_runtime.types import PairScores, QueryFeatures, TargetFeatures
from tests.galleries import PLAIN_INFO, ColourScorer, save_images

GOLDEN = Path(__file__).parents[2] / "golden" / "bundle"
COUNT = len(FEATURES)
WEIGHTS = (1.0, 2.0, -1.0, 0.5, 3.0, 1.5, 0.25, -0.5, 1.0, 2.0)
DECISION = Decision((0.1,) * COUNT, (2.0,) * COUNT, WEIGHTS + (0.0,) * (COUNT * (COUNT + 1) // 2), -2.0, 0.4)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def query_of(*weights: float) -> QueryFeatures:
    """Return a query of so many words that keeps three regions, the last two of them views."""
    words, confident = np.zeros((len(weights), 2), np.float32), np.array([[9, 9], [0.5, 0.1], [0, 2]], np.float32)
    probes, share = np.concatenate([confident, words]), floats(*[0.0] * 3, *weights)
    return QueryFeatures(floats(1, 0), words, probes, floats(*weights), share, ("word",) * len(weights))


def images(count: int) -> TargetFeatures:
    """Return images of three regions whose numbers all differ."""
    numbers = np.arange(8 * count, dtype=np.float32).reshape(count, 4, 2) / 10
    return TargetFeatures(numbers[:, 0], numbers[:, 1:])


def test_the_features_by_hand() -> None:
    words = np.array([[0.5, 0.25, 0.0], [0.4, 0.9, 0.4]], np.float32)
    pair = PairScores(floats(2.0, 1.5), words, 0.3)
    ranking = Ranking(np.array([4, 1, 7]), floats(2.0, 1.5, 0.2), pair, floats(0.6, 0.7, 0.2), 0.5)
    # The third word must not be there; 0.15 is less than half an even share of three words, so the second has no say.
    query, reference, hits = query_of(0.55, 0.15, -0.3), floats(0.6, 0.8), images(3)
    found = hit_features(query, reference, ranking, hits, 2)
    asks = [0.6, -0.3, 0.55]  # the query like its image, the word not wanted, the greatest
    # A hit's vector with the image's; then its last two regions with what is confident of the same ones.
    by_hand = [
        [2.0, 0.6, 1.5, 0.55 * 0.2 + 0.15 * -0.05 - 0.3 * -0.3, min(0.2, 0.3), 0.0, 0.1 * 0.8, *asks],
        [1.5, 0.7, 1.0, 0.55 * 0.1 + 0.15 * 0.6 - 0.3 * 0.1, min(0.1, -0.1), -0.1, 0.8 * 0.6 + 0.9 * 0.8, *asks],
    ]
    views = [[0.4 * 0.5 + 0.5 * 0.1, 0.7 * 2], [1.2 * 0.5 + 1.3 * 0.1, 1.5 * 2]]
    np.testing.assert_allclose(found, np.concatenate([by_hand, views], 1), atol=1e-6)
    expected = [1 / (1 + math.exp(2 - np.dot(WEIGHTS, (np.array(row) - 0.1) / 2))) for row in by_hand]
    np.testing.assert_allclose(hit_confidences(DECISION, query, reference, ranking, hits), expected, atol=1e-6)


def test_products_count_and_what_lies_far_out_does_not() -> None:
    by_hand = [[2.0, 3.0, 5.0, 4.0, 6.0, 10.0, 9.0, 15.0, 25.0]]
    np.testing.assert_allclose(products(np.array([[2.0, 3.0, 5.0]])), by_hand)
    of_products = msgspec.structs.replace(DECISION, weights=(0.0,) * COUNT + (0.01,) * 55)
    features = np.linspace(0, 3, 2 * COUNT).reshape(2, COUNT)
    rows = (features - 0.1) / 2
    total = [sum(row[i] * row[j] for i in range(COUNT) for j in range(i, COUNT)) for row in rows]
    np.testing.assert_allclose(of_products.confidence(features), logistic(0.01 * np.array(total) - 2))
    far = DECISION.confidence(np.full((1, COUNT), 1e6))
    np.testing.assert_allclose(far, DECISION.confidence(np.full((1, COUNT), 0.1 + 2 * 4)))


@pytest.mark.parametrize("lengths", [(9, 9, 54), (10, 9, 65), (10, 10, 64), (11, 11, 65)])
def test_a_decision_of_other_counts_is_none(lengths: tuple[int, int, int]) -> None:
    counts = f"{lengths[0]} means, {lengths[1]} standard deviations and {lengths[2]} weights"
    with pytest.raises(ValueError, match=counts):
        Decision(*((1.0,) * length for length in lengths), 0.0, 0.5)
    assert Decision((1.0,) * 12, (1.0,) * 12, (1.0,) * 90, 0.0, 0.5).views == 2
    with pytest.raises(ValueError, match="a standard deviation is not over 0"):
        Decision((1.0,) * 10, (1.0,) * 9 + (0.0,), (1.0,) * 65, 0.0, 0.5)
    with pytest.raises(ValueError, match="word bounds"):
        msgspec.structs.replace(DECISION, word_bounds=(0.1, 0.2)).__post_init__()


def test_the_weightiest_word_has_a_say_in_any_case() -> None:
    ranking = Ranking(np.array([0]), floats(1), PairScores(floats(1), np.ones((1, 2), np.float32), 0.5), floats(1), 1)
    found = hit_features(query_of(0.01, 0.02), floats(1, 0), ranking, images(1), 0)
    np.testing.assert_allclose(found[0, 4], 0.5)


def test_logistic_has_no_overflow() -> None:
    with np.errstate(all="raise"):
        np.testing.assert_allclose(logistic(np.array([-1e4, -2.0, 0.0, 1e4])), [0, 1 / (1 + math.exp(2)), 0.5, 1])


@pytest.mark.parametrize("k", [3, 12])
def test_a_ranking_keeps_what_the_features_need(k: int) -> None:
    random = np.random.default_rng(2)
    scorer = ColourScorer()
    images = scorer.encode_images(random.integers(0, 256, (12, 12, 16, 3), dtype=np.uint8))
    (query,) = scorer.compose(images.take([0]), ["make it red"])
    found = rank(scorer, query, images.vectors, images.take, k, 8)
    whole, cosines = scorer.score_pairs(query, images).score, images.vectors @ query.vector
    np.testing.assert_allclose(found.cosines, cosines[found.rows], atol=1e-6)
    assert found.mean == pytest.approx(whole[np.argsort(-cosines, kind="stable")[:8]].mean(), abs=1e-6)
    reference, hits = images.vectors[0], images.take(found.rows)
    assert len(hit_features(query, reference, found, hits, 1)) == min(k, 8)
    found = rank(scorer, query, images.vectors, images.take, k, 0)
    assert hit_features(query, reference, found, images.take(found.rows), 1) is None


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    save_images(tmp_path / "photos", 30)
    gallery = Gallery.open(tmp_path / "g", ColourScorer(), create=True)
    gallery.sync(tmp_path / "photos")
    return gallery


def retriever(gallery: Gallery, threshold: float = DECISION.threshold) -> Retriever:
    scorer = ColourScorer()
    scorer.info = replace(PLAIN_INFO, confidence=msgspec.structs.replace(DECISION, threshold=threshold))
    return Retriever(scorer, gallery)


def test_a_word_near_the_boundary_is_neither_matched_nor_mismatched(gallery: Gallery) -> None:
    def verdicts(bounds: tuple[float, float] | None) -> list[tuple[float, float, bool | None]]:
        scorer = ColourScorer()
        scorer.info = replace(PLAIN_INFO, confidence=msgspec.structs.replace(DECISION, word_bounds=bounds))
        hits = Retriever(scorer, gallery).query("item0003", "make it red", k=20, rerank=20).hits
        return [(word.score, word.weight, word.matched) for hit in hits for word in hit.evidence]

    plain = verdicts(None)
    assert plain == verdicts((0.0, 0.0)) and {matched for *_, matched in plain} == {True, False}
    scores = sorted({score for score, *_ in plain})
    assert {matched for *_, matched in verdicts((-9.0, 9.0))} == {None}
    boundary = (
        ColourScorer()
        .score_pairs(
            ColourScorer().compose(gallery.snapshot.targets([0]), ["make it red"])[0], gallery.snapshot.targets([0])
        )
        .boundary
    )
    low, high = (scores[0] - boundary) / 2, (scores[-1] - boundary) / 2
    for score, weight, matched in verdicts((low, high)):
        over = score - boundary if weight >= 0 else boundary - score
        assert matched is (True if over >= high else False if over < low else None)


def test_hits_have_the_confidence_of_their_features(gallery: Gallery) -> None:
    result = retriever(gallery).query("item0003", "make it red", k=6, rerank=20)
    scorer, row = ColourScorer(), gallery.snapshot.row("item0003")
    image = gallery.snapshot.targets([row])
    (query,) = scorer.compose(image, ["make it red"])
    mask = np.arange(30) != row

    def fetch(rows: np.ndarray) -> TargetFeatures:
        return gallery.snapshot.targets(rows)

    ranking = rank(scorer, query, gallery.snapshot.vectors, fetch, 6, 20, mask)
    expected = hit_confidences(DECISION, query, image.vectors[0], ranking, fetch(ranking.rows))
    np.testing.assert_allclose([hit.confidence for hit in result.hits], expected, atol=1e-5)
    assert [hit.is_match for hit in result.hits] == [confidence >= DECISION.threshold for confidence in expected]


@pytest.mark.parametrize(("threshold", "matches"), [(0.0, True), (1.0, False)])
def test_a_result_says_whether_anything_matches(gallery: Gallery, threshold: float, matches: bool) -> None:
    result = retriever(gallery, threshold).query("item0003", "make it red", k=5)
    assert result.has_match is matches and len(result.hits) == 5
    assert {hit.is_match for hit in result.hits} == {matches}


def test_where_the_model_does_not_say(gallery: Gallery) -> None:
    for found in (
        Retriever(ColourScorer(), gallery).query("item0003", "make it red", k=5),
        retriever(gallery, 0.0).query("item0003", "make it red", k=5, rerank=0),
    ):
        assert found.has_match is None and len(found.hits) == 5
        assert [hit.confidence for hit in found.hits] == [None] * 5
        assert [hit.is_match for hit in found.hits] == [
            np.mean([word.score for word in hit.evidence]) >= 0.25 for hit in found.hits
        ]


def test_hits_of_less_confidence_are_left_out(gallery: Gallery) -> None:
    decided = retriever(gallery)
    every = decided.query("item0003", "make it red", k=20)
    middle = sorted(hit.confidence for hit in every.hits)[9]
    confident = decided.query("item0003", "make it red", k=20, min_confidence=middle)
    assert confident.hits == tuple(hit for hit in every.hits if hit.confidence >= middle) and len(confident.hits) == 11
    none = retriever(gallery, 0.0).query("item0003", "make it red", k=20, min_confidence=1.0)
    assert none.hits == () and none.has_match is True  # there is a match, but it is not that certain


@pytest.mark.parametrize("least", [-0.1, 1.1, math.nan])
def test_a_confidence_outside_0_to_1_is_refused(gallery: Gallery, least: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        retriever(gallery).query("item0003", "red", min_confidence=least)


def test_asking_for_a_confidence_that_is_not_there_names_what_to_do(gallery: Gallery) -> None:
    with pytest.raises(UsageError, match="export it again"):
        Retriever(ColourScorer(), gallery).query("item0003", "red", min_confidence=0.5)
    with pytest.raises(UsageError, match="rerank of 100"):
        retriever(gallery).query("item0003", "red", rerank=0, min_confidence=0.5)


def bundle_of(folder: Path, decision: dict) -> Bundle:
    for name in FILES:
        (folder / name).write_bytes(name.encode())
    shapes = {"image_size": (48, 64), "dim": 8, "regions": 3, "max_words": 24}
    boundary = {"t_c": 0.4, "t_v": 0.3}
    write_manifest(folder, Manifest(name="tiny", created_with="test", boundary=boundary, decision=decision, **shapes))
    return Bundle.open(folder)


def test_a_bundle_carries_its_decision(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, msgspec.to_builtins(DECISION))
    assert OnnxScorer(bundle).info.confidence == Decision.of(bundle.manifest) == DECISION


MORE_VIEWS = {"centre": [0.0] * 11, "spread": [1.0] * 11, "weights": [0.0] * 77}


@pytest.mark.parametrize("change", [{"weights": [1.0] * 4}, {"threshold": None}, {"bias": "none"}, MORE_VIEWS])
def test_a_decision_that_cannot_be_read_is_named(tmp_path: Path, change: dict) -> None:
    bundle = bundle_of(tmp_path, msgspec.to_builtins(DECISION) | change)
    with pytest.raises(IntegrityError, match=r"decision that cannot be read .*; export it again"):
        Decision.of(bundle.manifest)


def test_a_bundle_without_a_decision_still_opens(tmp_path: Path) -> None:
    assert Decision.of(bundle_of(tmp_path, {}).manifest) is None
    if GOLDEN.exists():
        assert OnnxScorer(Bundle.open(GOLDEN)).info.confidence is None
