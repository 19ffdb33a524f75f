"""Queries of several images, texts and exclusions: what each means, and that company changes nothing."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from nsfse_runtime import Gallery, NsfseError, Query, Result, Retriever, open_model
from nsfse_runtime.errors import ImageError, NotFoundError, TextError, UsageError
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.retrieval.compose import QueryInputs, as_target_features, compose_batch, join_edits
from nsfse_runtime.retrieval.query import ComposedQuery, fuse_references, heatmaps
from nsfse_runtime.search.two_stage import exact_search
from nsfse_runtime.types import ModelInfo, PairScores, QueryFeatures, RankingMode, TargetFeatures
from tests.galleries import DIM, REGIONS, ColourScorer, save_images

GOLDEN = Path(__file__).parents[2] / "golden"
TEXTS = ("change it to yellow", "in green", "turn it into trousers", "red")


@pytest.fixture(scope="module")
def model() -> OnnxScorer:
    return open_model(GOLDEN / "bundle", "cpu")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, model: OnnxScorer) -> Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    save_images(folder / "photos", 24)
    for path in (GOLDEN / "images").iterdir():
        shutil.copy(path, folder / "photos")
    gallery = Gallery.open(folder / "g", model, create=True)
    gallery.sync(folder / "photos")
    return gallery


@pytest.fixture(scope="module")
def retriever(model: OnnxScorer, gallery: Gallery) -> Retriever:
    return Retriever(model, gallery)


def given(gallery: Gallery, query: Query) -> QueryInputs:
    rows = [
        [gallery.snapshot.row(str(each)) for each in images] for images in (query.references, query.negative_images)
    ]
    return QueryInputs(query, gallery.snapshot.targets(rows[0]), gallery.snapshot.targets(rows[1]) if rows[1] else None)


def composed(model: OnnxScorer, gallery: Gallery, **fields: object):
    (found,) = compose_batch(model, [given(gallery, Query(**fields))])
    assert not isinstance(found, NsfseError), found
    return found


def hits_of(found: Result | NsfseError) -> object:
    assert isinstance(found, Result), found
    return found.hits, found.has_match, found.grid


def several(gallery: Gallery, image: bytes, other: bytes) -> list[Query]:
    """Queries of every sort, texts of different lengths, uploads among them."""
    a, b, c = gallery.ids[:3]
    return [
        Query(references=(a,), texts=(TEXTS[0],)),
        Query(references=(image,), texts=(TEXTS[1],), heatmaps=True),
        Query(references=(other, image), texts=(TEXTS[2], TEXTS[1])),
        Query(references=(b,), texts=(TEXTS[3],), negative_texts=("stripes",), negative_images=(c,)),
        Query(references=(image, b, c), texts=(TEXTS[3],), balance=0.8, k=5),
        Query(references=(c,), balance=0.0),
        Query(references=(c,), texts=(TEXTS[1],), balance=1.0, negative_images=(other,)),
    ]


def test_an_answer_is_the_same_alone_and_in_company(retriever: Retriever, gallery: Gallery) -> None:
    queries = several(gallery, *[path.read_bytes() for path in sorted((GOLDEN / "images").iterdir())[:2]])
    together = retriever.answer(queries)
    for query, found in zip(queries, together, strict=True):
        (alone,) = retriever.answer([query])
        (hits, *rest), (own, *more) = hits_of(found), hits_of(alone)
        assert [hit.id for hit in hits] == [hit.id for hit in own] and rest == more
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in own], rtol=0, atol=2e-6)
        if not any(isinstance(each, bytes) for each in (*query.references, *query.negative_images)):
            assert hits == own  # images of the gallery: to the last bit


def test_one_bad_query_does_not_spoil_the_others(retriever: Retriever, gallery: Gallery) -> None:
    good = Query(references=(gallery.ids[0],), texts=("red",))
    bad = {
        UsageError: Query(),
        NotFoundError: Query(references=("nothing-like-it",), texts=("red",)),
        ImageError: Query(references=(b"no image",), texts=("red",)),
        TextError: Query(references=(gallery.ids[1],), texts=("red", "  ")),
    }
    found = retriever.answer([good, *bad.values(), good])
    assert hits_of(found[0]) == hits_of(found[-1]) == hits_of(retriever.query(gallery.ids[0], "red"))
    assert [type(each) for each in found[1:-1]] == list(bad)
    assert all("\n" not in str(each) for each in found[1:-1])


def test_no_image_of_the_query_is_among_the_hits(retriever: Retriever, gallery: Gallery) -> None:
    a, b, c = gallery.ids[:3]
    hits = retriever.query([a, b], "red", negative_images=[c], k=99).hits
    assert {hit.id for hit in hits} == set(gallery.ids) - {a, b, c}


def test_several_edits_follow_one_another(model: OnnxScorer, gallery: Gallery) -> None:
    first = model.compose(gallery.snapshot.targets([0]), [TEXTS[0]])[0]
    second = model.compose(as_target_features(first), [TEXTS[2]])[0]
    (part,) = composed(model, gallery, references=(gallery.ids[0],), texts=(TEXTS[0], TEXTS[2])).parts
    assert np.array_equal(part.vector, second.vector) and part.tokens == first.tokens + second.tokens
    kept = len(second.probes) - len(second.words)
    assert np.array_equal(part.probes[:kept], second.probes[:kept])
    assert np.array_equal(part.words, np.concatenate([first.words, second.words]))
    assert join_edits([first]) is first


def test_of_several_references_the_least_counts() -> None:
    scores = [np.array([3.0, 1, 2, 2], np.float32), np.array([-2.0, 0, -1, -1], np.float32)]
    found = fuse_references(scores)
    assert found[2] == found[3] > max(found[0], found[1])
    assert fuse_references(scores[:1]) is scores[0]
    shifted = fuse_references([scores[0] + 7, scores[1]])
    assert np.argsort(-shifted, kind="stable").tolist() == np.argsort(-found, kind="stable").tolist()


def test_a_minus_word_has_a_weight_under_0_whatever_its_text_says(
    model: OnnxScorer, gallery: Gallery, retriever: Retriever
) -> None:
    for text in ("stripes", "no stripes"):
        found = composed(model, gallery, references=(gallery.ids[0],), texts=("red",), negative_texts=(text,))
        (part,) = found.parts
        assert (part.word_weights[len(("red",)) :] <= 0).all() and (found.word_weights[1:] <= 0).all()
        assert np.abs(found.word_weights).sum() == pytest.approx(1)
        hits = retriever.query(gallery.ids[0], "red", negative_texts=[text], k=20).hits
        boundary = model.bundle.manifest.boundary["t_c"]
        assert all(word.matched == (word.score < boundary) for hit in hits for word in hit.evidence[1:] if word.weight)


class Denying(ColourScorer):
    """Reads every word as what must not be there."""

    def compose(self, references: TargetFeatures, texts: Sequence[str]) -> list[QueryFeatures]:
        found = super().compose(references, texts)
        return [replace(query, word_weights=-query.word_weights) for query in found]


def test_no_stripes_is_no_double_negation() -> None:
    images = TargetFeatures(np.eye(2, DIM, dtype=np.float32), np.zeros((2, REGIONS, DIM), np.float32))
    query = Query(references=("a", "b"), texts=("red",), negative_texts=("no stripes",))
    (found,) = compose_batch(Denying(), [QueryInputs(query, images)])
    assert isinstance(found, ComposedQuery)
    assert (found.word_weights < 0).all() and all((part.word_weights < 0).all() for part in found.parts)
    assert len(found.parts) == 2 and all((loss[0, 1:] > 0).all() and loss[0, 0] == 0 for loss in found.word_penalties)


def test_a_minus_text_takes_from_s_what_is_found_of_it_as_a_whole(model: OnnxScorer, gallery: Gallery) -> None:
    named = ("in green", "in blue")
    found = composed(model, gallery, references=(gallery.ids[0],), texts=("red",), negative_texts=named)
    everything = gallery.snapshot.targets(range(len(gallery)))
    (pair,) = pairs = [model.score_pairs(part, everything) for part in found.parts]
    loss = np.zeros(len(gallery))
    for start, text in zip((1, 3), named, strict=True):
        (minus,) = model.compose(gallery.snapshot.targets([0]), [text])
        over = (pair.word_scores[:, start : start + 2] - pair.boundary) @ np.abs(minus.word_weights)
        loss += 3 * model.bundle.manifest.head["w_global"] * np.maximum(0, over)
        assert (over > 0).any() and (over < 0).any()
    np.testing.assert_allclose(found.combined(pairs).score, pair.score - loss, atol=1e-5)


def test_a_minus_image_counts_from_half_way_to_it_on(model: OnnxScorer, gallery: Gallery) -> None:
    a, b = gallery.ids[0], gallery.ids[9]
    plain = composed(model, gallery, references=(a,), texts=("red",))
    found = composed(model, gallery, references=(a,), texts=("red",), negative_images=(b,))
    everything = gallery.snapshot.targets(range(len(gallery)))
    pairs = [model.score_pairs(each, everything) for each in found.queries]
    w = model.bundle.manifest.head["w_global"]
    avoided = everything.vectors[gallery.snapshot.row(b)]
    over = 2 * w * np.maximum(0, everything.vectors @ avoided - (1 + float(plain.vector @ avoided)) / 2)
    whole = model.score_pairs(plain.parts[0], everything).score
    np.testing.assert_allclose(found.combined(pairs).score, whole - over, atol=1e-5)
    assert over.any() and not over.all() and np.array_equal(found.vector, plain.vector)


@pytest.mark.parametrize("rerank", [0, 100])
def test_the_ends_of_the_balance_are_image_and_words_alone(
    retriever: Retriever, model: OnnxScorer, gallery: Gallery, rerank: int
) -> None:
    own = gallery.snapshot.row(gallery.ids[2])
    mask = np.arange(len(gallery)) != own
    ends = {0.0: gallery.snapshot.vectors[own], 1.0: model.sentence([TEXTS[0]])[0]}
    for balance, vector in ends.items():
        found = retriever.query(gallery.ids[2], TEXTS[0], k=20, balance=balance, rerank=rerank)
        rows, scores = exact_search(gallery.snapshot.vectors, vector, 20, mask)
        assert [hit.id for hit in found.hits] == [gallery.ids[row] for row in rows]
        np.testing.assert_allclose([hit.score for hit in found.hits], scores, atol=1e-6)
        assert [word.word for word in found.hits[0].evidence] == TEXTS[0].split()
    alone = retriever.query(gallery.ids[2], (), balance=0.0, k=20).hits
    assert [hit.id for hit in alone] == [hit.id for hit in retriever.query(gallery.ids[2], "red", balance=0, k=20).hits]
    assert alone[0].is_match is None and alone[0].evidence == ()


def test_the_middle_of_the_balance_is_the_query_as_it_was(retriever: Retriever, gallery: Gallery) -> None:
    plain = retriever.query(gallery.ids[2], TEXTS[0])
    assert hits_of(retriever.query([gallery.ids[2]], [TEXTS[0]], balance=0.5)) == hits_of(plain)
    leant = retriever.query(gallery.ids[2], TEXTS[0], balance=0.5000001)
    assert [hit.id for hit in leant.hits] == [hit.id for hit in plain.hits]


def test_a_text_counts_as_its_weight_says(model: OnnxScorer, gallery: Gallery) -> None:
    image, first = gallery.snapshot.targets([0]), gallery.ids[0]
    (edit,) = model.compose(image, ["red"])
    for weight in (0.25, 1.0, 2.5):
        found = composed(model, gallery, references=(first,), texts=("red",), text_weights=(weight,))
        expected = image.vectors[0] + weight * (edit.vector - image.vectors[0])
        np.testing.assert_allclose(found.vector, expected / np.linalg.norm(expected), atol=1e-6)
        np.testing.assert_allclose(found.parts[0].word_weights, weight * edit.word_weights, rtol=1e-6)
        np.testing.assert_allclose(found.parts[0].probe_weights, weight * edit.probe_weights, rtol=1e-6)
        assert (found.reference is None) == (weight != 1)  # no confidence
    words = composed(model, gallery, texts=("red", "in green"), text_weights=(3, 1))
    mean = np.array([3, 1], np.float32) @ model.sentence(["red", "in green"])
    np.testing.assert_allclose(words.vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_negative_text_counts_as_its_weight_says(model: OnnxScorer, gallery: Gallery) -> None:
    query = {"references": (gallery.ids[0],), "texts": ("red",), "negative_texts": ("in green",)}
    plain, doubled = (composed(model, gallery, negative_text_weights=(weight,), **query) for weight in (1, 2))
    np.testing.assert_allclose(doubled.word_penalties[0], 2 * plain.word_penalties[0], rtol=1e-6)
    np.testing.assert_allclose(doubled.parts[0].word_weights[1:], 2 * plain.parts[0].word_weights[1:], rtol=1e-6)
    red, green = composed(model, gallery, **query | {"negative_texts": ()}).vector, model.sentence(["in green"])[0]
    np.testing.assert_allclose(doubled.vector, (v := red - 0.4 * green) / np.linalg.norm(v), atol=1e-6)
    share = [np.abs(found.word_weights[1:]).sum() for found in (plain, doubled)]
    assert share[1] == pytest.approx(2 * share[0] / (1 + share[0]))
    alone = composed(model, gallery, texts=("red",), negative_texts=("in green",), negative_text_weights=(2,))
    np.testing.assert_allclose(
        alone.vector, (v := model.sentence(["red"])[0] - 0.8 * green) / np.linalg.norm(v), atol=1e-6
    )


def test_every_text_must_be_over_the_boundary_for_a_match(model: OnnxScorer, gallery: Gallery) -> None:
    found = composed(model, gallery, references=(gallery.ids[0],), texts=("red", "green"), negative_texts=("blue",))
    scores = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]], np.float32)
    pair = PairScores(np.zeros(4, np.float32), scores, 0.5)
    signs = np.sign(found.word_weights).tolist()
    assert signs == [1, 1, -1]
    assert found.satisfies_all_texts(pair).tolist() == [True, False, False, False]


class Gridded(OnnxScorer):
    """The golden bundle, whose manifest is older than views, with the grid that it has."""

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, grid=(2, 3))


def test_a_map_is_the_correspondence_less_what_looks_like_the_corners() -> None:
    words = np.array([[1, 0], [0, 1]], np.float32)
    cells = np.array([[[1, 0], [0.6, 0.8], [1, 0], [0, 1], [0.8, 0.6], [1, 0], [1, 0], [0, 1], [1, 0]]], np.float32)
    (found,) = heatmaps(words, cells, 3)
    like_corners = cells[0, :, 0]  # all four are (1, 0)
    by_hand = cells[0].T - 0.7 * like_corners
    np.testing.assert_allclose(found[0], by_hand[0] + 0.7, atol=1e-6)  # its greatest was 1 in a corner, and is 1
    np.testing.assert_allclose(found[1], by_hand[1], atol=1e-6)  # its greatest is where no corner is
    np.testing.assert_allclose(heatmaps(words, cells[:, [1, 2, 4, 5]], 2)[0].max(1), [1, 0.8], atol=1e-6)


def test_maps_are_of_the_words_and_the_cells(retriever: Retriever, model: OnnxScorer, gallery: Gallery) -> None:
    found = Retriever(Gridded(model.bundle), gallery).query(gallery.ids[0], TEXTS[0], k=3, heatmaps=True)
    assert found.grid == (2, 3)
    (query,) = model.compose(gallery.snapshot.targets([0]), [TEXTS[0]])
    for hit in found.hits:
        cells = gallery.snapshot.targets([gallery.snapshot.row(hit.id)]).regions[:, :6]
        heatmap = np.array([word.regions for word in hit.evidence])
        expected = heatmaps(query.words, cells, 3)[0] - model.bundle.manifest.boundary["t_c"]
        np.testing.assert_allclose(heatmap, expected, atol=1e-6)
        best = (query.words @ cells[0].T).max(1) - model.bundle.manifest.boundary["t_c"]
        np.testing.assert_allclose(heatmap.max(1), best, atol=1e-6)
    (own,) = found.references  # the words in the reference itself
    cells = gallery.snapshot.targets([0]).regions[:, :6]
    expected = heatmaps(query.words, cells, 3)[0] - model.bundle.manifest.boundary["t_c"]
    np.testing.assert_allclose([word.regions for word in own], expected, atol=1e-6)
    assert [word.word for word in own] == [word.word for word in found.hits[0].evidence]
    assert [word.matched for word in own] == [word.score >= model.bundle.manifest.boundary["t_c"] for word in own]
    for plain in (
        retriever.query(gallery.ids[0], TEXTS[0], k=3),
        retriever.query(gallery.ids[0], "red", heatmaps=True),
    ):
        assert plain.grid is None and plain.hits[0].evidence[0].regions is None and plain.references == ()


def test_the_grid_is_that_of_square_cells(model: OnnxScorer) -> None:
    def grid(size: tuple[int, int], regions: int, **more: object) -> tuple[int, int] | None:
        return structs.replace(model.bundle.manifest, image_size=size, regions=regions, head={"views": 4}, **more).grid

    assert grid((128, 128), 20) == (4, 4) and grid((96, 64), 10) == (3, 2) and grid((224, 224), 53) == (7, 7)
    assert (
        grid((128, 128), 19) is None
        and grid((128, 128), 6) is None
        and grid((128, 128), 4) is None
        and grid((128, 128), 20, mode=RankingMode.ONE_STAGE) is None
    )
    assert structs.replace(model.bundle.manifest, image_size=(128, 128), regions=16, head={}).grid == (4, 4)


def test_wrong_queries_say_what_to_do(retriever: Retriever, gallery: Gallery) -> None:
    a = gallery.ids[0]
    for said, options in (
        ("balance is 2", {"text": "red", "balance": 2}),
        ("needs an image or a text", {"reference": (), "negative_texts": ["red"]}),
        ("needs an image or a text", {"reference": None}),
        ("text_weights has 2 numbers and texts has 1; give one", {"text": "red", "text_weights": (1, 2)}),
        ("text_weights has 0; give numbers over 0 and up to 4", {"text": "red", "text_weights": (0,)}),
        ("negative_text_weights has nan", {"negative_texts": ["red"], "negative_text_weights": (float("nan"),)}),
        ("fold_duplicates is 1.5; give a cosine", {"text": "red", "fold_duplicates": 1.5}),
    ):
        with pytest.raises(UsageError, match=said):
            retriever.query(**{"reference": a, **options})


def test_words_alone_are_ranked_by_their_sentence(retriever: Retriever, gallery: Gallery, model: OnnxScorer) -> None:
    snapshot = gallery.snapshot
    for texts in ("red", ["red", "in green"]):
        found = retriever.query(text=texts, k=30, rerank=7, balance=0.3)
        sentences = model.sentence([texts] if isinstance(texts, str) else texts).mean(0)
        rows, scores = exact_search(snapshot.vectors, sentences / np.linalg.norm(sentences), 30)
        assert [hit.id for hit in found.hits] == [snapshot.ids[row] for row in rows]
        assert len(found.hits) == len(gallery) and [text.words for text in found.texts] == [0] * len(found.texts)
        np.testing.assert_allclose([hit.score for hit in found.hits], scores, atol=1e-6)
        assert all((hit.is_match, hit.confidence, hit.evidence) == (None, None, ()) for hit in found.hits)
        assert (found.has_match, found.threshold) == (None, None)
    with pytest.raises(TextError):
        retriever.query(text="xyzzy")


def test_an_exclusion_from_words_alone_takes_a_share_of_its_sentence(
    retriever: Retriever, gallery: Gallery, model: OnnxScorer
) -> None:
    red, green = model.sentence(["red", "in green"])
    found = retriever.query(text="red", negative_texts=["in green"])
    rows, _ = exact_search(gallery.snapshot.vectors, red - np.float32(0.4) * green, 10)
    assert [hit.id for hit in found.hits] == [gallery.ids[row] for row in rows]
    plain = retriever.query(text="red", k=3)
    avoided = retriever.query(text="red", negative_images=[plain.hits[0].id], k=30)
    assert plain.hits[0].id not in [hit.id for hit in avoided.hits] and len(avoided.hits) == len(gallery) - 1
    assert avoided.hits[0].score <= plain.hits[1].score * model.info.mix[0] + 1e-5


def test_an_image_alone_finds_the_nearest_vectors(retriever: Retriever, gallery: Gallery) -> None:
    snapshot = gallery.snapshot
    found = retriever.query(gallery.ids[3], k=5)
    mask = np.ones(len(gallery), bool)
    mask[snapshot.copies(3)] = False
    rows, _ = exact_search(snapshot.vectors, snapshot.vectors[3], 5, mask)
    assert [hit.id for hit in found.hits] == [gallery.ids[row] for row in rows]
    assert [hit.id for hit in retriever.query(gallery.ids[3], k=5, balance=0).hits] == [hit.id for hit in found.hits]
    assert all(hit.confidence is None for hit in found.hits)
