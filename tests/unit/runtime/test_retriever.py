"""A query's answer: hits, evidence, what is encoded and what is left out."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from nsfse_runtime import Gallery, Retriever
from nsfse_runtime.errors import NotFoundError, UsageError, VersionError
from nsfse_runtime.images.decode import decode_image, load_image
from nsfse_runtime.retrieval.candidates import remembering
from nsfse_runtime.types import GalleryId, TargetFeatures, Upload
from tests.galleries import ColourScorer, save_image, save_images


@pytest.fixture
def scorer() -> ColourScorer:
    return ColourScorer()


@pytest.fixture
def gallery(tmp_path: Path, scorer: ColourScorer) -> Gallery:
    names = save_images(tmp_path / "photos", 30)
    table = tmp_path / "table.csv"
    table.write_text(
        "file,category\n" + "".join(f"{name},{'dress' if n % 3 else 'shoe'}\n" for n, name in enumerate(names))
    )
    gallery = Gallery.open(tmp_path / "g", scorer, create=True)
    gallery.sync(tmp_path / "photos", metadata=table)
    scorer.encoded = 0
    return gallery


def test_a_gallery_image_is_not_encoded_and_not_among_the_hits(gallery: Gallery, scorer: ColourScorer) -> None:
    for name in (gallery.ids[4], "item0004"):
        result = Retriever(scorer, gallery).query(name, "make it red", k=30)
        assert scorer.encoded == 0
        assert len(result.hits) == 29 and gallery.ids[4] not in {hit.id for hit in result.hits}
        assert result.timings_ms["decode"] == result.timings_ms["image"] == 0


def test_the_file_of_a_gallery_image_is_known_too(gallery: Gallery, scorer: ColourScorer) -> None:
    path = gallery.snapshot.path_of(4)
    result = Retriever(scorer, gallery).query(path, "make it red", k=30)
    assert gallery.ids[4] not in {hit.id for hit in result.hits}
    assert result.hits == Retriever(scorer, gallery).query(gallery.ids[4], "make it red", k=30).hits
    save_image(path, 77, (9, 30))
    scorer.encoded = 0
    changed = Retriever(scorer, gallery).query(path, "make it red", k=30)
    assert scorer.encoded == 1 and changed.hits != result.hits


def test_a_foreign_image_is_encoded_once(gallery: Gallery, scorer: ColourScorer, tmp_path: Path) -> None:
    outside = save_image(tmp_path / "mine.png", 500)
    results = [
        Retriever(scorer, gallery).query(source, "darker", k=30)
        for source in (outside, str(outside), outside.read_bytes())
    ]
    assert scorer.encoded == 3 and all(result.hits == results[0].hits for result in results)
    assert len(results[0].hits) == 30
    assert set(results[0].timings_ms) == {"decode", "image", "text", "stage1", "stage2", "total"}
    assert sum(results[0].timings_ms.values()) <= 2 * results[0].timings_ms["total"] + 0.01


def test_evidence_agrees_with_the_scorer(gallery: Gallery, scorer: ColourScorer) -> None:
    result = Retriever(scorer, gallery).query(gallery.ids[0], "make it red", k=5)
    query = scorer.compose(gallery.snapshot.targets([0]), ["make it red"])[0]
    for hit in result.hits:
        pair = scorer.score_pairs(query, gallery.snapshot.targets([gallery.snapshot.row(hit.id)]))
        assert hit.score == pytest.approx(pair.score[0], abs=1e-5)
        assert [word.word for word in hit.evidence] == ["make", "it", "red"]
        np.testing.assert_allclose([word.score for word in hit.evidence], pair.word_scores[0], atol=1e-5)
        assert [word.matched for word in hit.evidence] == (pair.word_scores[0] >= pair.boundary).tolist()
        assert hit.is_match == (pair.word_scores[0].mean() >= pair.boundary)
        assert Path(hit.path).is_file()
    assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)


def test_a_filter_leaves_k_results_when_there_are_k(gallery: Gallery, scorer: ColourScorer) -> None:
    retriever = Retriever(scorer, gallery)
    for k, found in ((10, 10), (30, 10)):
        hits = retriever.query(gallery.ids[1], "make it red", k=k, where={"category": "shoe"}, rerank=2).hits
        assert len(hits) == found
        assert {gallery.snapshot.metadata[gallery.snapshot.row(hit.id)]["category"] for hit in hits} == {"shoe"}
    assert retriever.query(gallery.ids[1], "red", where={"category": "hat"}).hits == ()
    with pytest.raises(UsageError, match="no column colour; columns: category"):
        retriever.query(gallery.ids[1], "red", where={"colour": "red"})


def test_without_a_second_stage_hits_have_their_evidence(gallery: Gallery, scorer: ColourScorer) -> None:
    query = scorer.compose(gallery.snapshot.targets([0]), ["make it red"])[0]
    hits = Retriever(scorer, gallery).query(gallery.ids[0], "make it red", k=4, rerank=0).hits
    np.testing.assert_allclose(
        [hit.score for hit in hits], np.sort(np.delete(gallery.snapshot.vectors @ query.vector, 0))[::-1][:4], atol=1e-6
    )
    assert all(len(hit.evidence) == 3 for hit in hits)


def test_the_json_form(gallery: Gallery, scorer: ColourScorer) -> None:
    document = json.loads(msgspec.json.encode(Retriever(scorer, gallery).query(gallery.ids[0], "red", k=1)))
    assert (
        list(document)
        == [
            *("schema_version", "hits", "total", "has_match", "threshold", "timings_ms", "grid", "references", "texts"),
            "notes",
        ]
        and document["schema_version"] == 2
    )
    fields = ["id", "path", "score", "is_match", "evidence", "confidence", "metadata", "duplicates"]
    assert list(document["hits"][0]) == fields
    assert list(document["hits"][0]["evidence"][0]) == ["word", "score", "matched", "weight", "regions"]


def test_a_long_lived_retriever_sees_what_a_writer_commits(
    gallery: Gallery, scorer: ColourScorer, tmp_path: Path
) -> None:
    retriever = Retriever(scorer, gallery)
    before = {hit.id for hit in retriever.query("item0003", "red", k=99).hits}
    (tmp_path / "photos/shelf00/item0001.png").unlink()
    save_image(tmp_path / "photos/late.png", 901)
    with Gallery.open(gallery.path, scorer) as writer:
        writer.sync(tmp_path / "photos")
    assert {hit.id for hit in retriever.query("item0003", "red", k=99).hits} == before - {"shelf00/item0001.png"} | {
        "late.png"
    }


def test_wrong_use_is_one_line(gallery: Gallery, scorer: ColourScorer) -> None:
    retriever = Retriever(scorer, gallery)
    with pytest.raises(NotFoundError, match="neither a file nor an image of the gallery"):
        retriever.query("nothing-like-it", "red")
    for options in ({"k": 0}, {"rerank": -1}):
        with pytest.raises(UsageError, match="give a k"):
            retriever.query(gallery.ids[0], "red", **options)
    with pytest.raises(VersionError, match="another bundle"):
        Retriever(ColourScorer("other"), gallery)


def test_an_empty_gallery_answers_with_nothing(tmp_path: Path, scorer: ColourScorer) -> None:
    outside = save_image(tmp_path / "mine.png", 500)
    gallery = Gallery.open(tmp_path / "empty", scorer, create=True)
    assert Retriever(scorer, gallery).query(outside, "red").hits == ()


def test_copies_of_the_reference_are_no_hits(tmp_path: Path, gallery: Gallery, scorer: ColourScorer) -> None:
    photos, copy = tmp_path / "photos", tmp_path / "elsewhere.png"
    own = gallery.ids[4]
    shutil.copy(photos / own, photos / "IMG (1).png")
    shutil.copy(photos / own, copy)
    gallery.sync(photos)
    retriever = Retriever(scorer, gallery)
    upload = Upload(load_image(copy, scorer.image_size), hashlib.sha256(copy.read_bytes()).digest())
    for reference in (own, GalleryId(own), photos / own, "IMG (1).png", copy, str(copy), copy.read_bytes(), upload):
        found = {hit.id for hit in retriever.query(reference, "make it red", k=40).hits}
        assert found == set(gallery.ids) - {own, "IMG (1).png"}, reference
        avoided = retriever.query(gallery.ids[0], "make it red", k=40, negative_images=[reference])
        assert {hit.id for hit in avoided.hits} == found - {gallery.ids[0]}


NAMED = {
    "id": lambda gallery: gallery.ids[4],
    "id alone": lambda gallery: GalleryId(gallery.ids[4]),
    "stem": lambda gallery: "item0004",
    "file": lambda gallery: gallery.snapshot.path_of(4),
    "file as a string": lambda gallery: str(gallery.snapshot.path_of(4)),
}
"""References that name the image of row 4."""
GIVEN = {
    "bytes": lambda path: path.read_bytes(),
    "pixels": decode_image,
    "Pillow image": Image.open,
    "upload": lambda path: Upload(load_image(path, (12, 16)), hashlib.sha256(path.read_bytes()).digest()),
}
"""References that hold the content of a file."""


def scores_of_others(retriever: Retriever, reference: object) -> dict[str, float]:
    """Return the scores of all hits but the image of row 4."""
    hits = retriever.query(reference, "make it red", k=40).hits  # type: ignore[arg-type]
    return {hit.id: hit.score for hit in hits if hit.id != retriever.gallery.ids[4]}


@pytest.mark.parametrize("form", [*NAMED, *GIVEN])
def test_every_form_of_a_reference_is_the_same_image(gallery: Gallery, scorer: ColourScorer, form: str) -> None:
    retriever = Retriever(scorer, gallery)
    expected = scores_of_others(retriever, gallery.ids[4])
    reference = NAMED[form](gallery) if form in NAMED else GIVEN[form](gallery.snapshot.path_of(4))
    scorer.encoded = 0
    assert scores_of_others(retriever, reference) == pytest.approx(expected, abs=1e-5)
    assert scorer.encoded == (form in GIVEN)


@pytest.mark.parametrize("form", [*NAMED, *GIVEN])
def test_a_changed_file_is_encoded_anew_in_every_form(gallery: Gallery, scorer: ColourScorer, form: str) -> None:
    retriever, path = Retriever(scorer, gallery), gallery.snapshot.path_of(4)
    before = scores_of_others(retriever, gallery.ids[4])
    os.utime(path)  # another time, the same content
    if form in NAMED:
        assert scores_of_others(retriever, NAMED[form](gallery)) == before and scorer.encoded == 0
    save_image(path, 4000)
    expected = scores_of_others(retriever, path.read_bytes())
    reference = NAMED[form](gallery) if form in NAMED else GIVEN[form](path)
    scorer.encoded = 0
    assert scores_of_others(retriever, reference) == pytest.approx(expected, abs=1e-5)
    assert scorer.encoded == 1 and before.values() != expected.values()


@pytest.mark.parametrize("form", NAMED)
def test_a_gallery_image_without_its_file_has_its_features(gallery: Gallery, scorer: ColourScorer, form: str) -> None:
    retriever = Retriever(scorer, gallery)
    expected = scores_of_others(retriever, gallery.ids[4])
    gallery.snapshot.path_of(4).unlink()
    assert scores_of_others(retriever, NAMED[form](gallery)) == expected and scorer.encoded == 0


def test_an_array_or_a_pillow_image_is_the_image_it_is(gallery: Gallery, scorer: ColourScorer) -> None:
    retriever, path = Retriever(scorer, gallery), gallery.snapshot.path_of(7)
    pixels = decode_image(path)
    assert pixels.shape[:2] != scorer.image_size
    references = (pixels, Image.open(path), bytearray(path.read_bytes()), load_image(path, scorer.image_size))
    expected = [hit.score for hit in retriever.query(path.read_bytes(), "make it red", k=30).hits]
    for reference in references:
        scores = {hit.id: hit.score for hit in retriever.query(reference, "make it red", k=30).hits}
        scores.pop(gallery.ids[7], None)
        assert list(scores.values()) == pytest.approx(expected, abs=1e-5), type(reference)
    assert len(retriever.query([pixels, path], "make it red", k=3).hits) == 3
    view = pixels[:, ::-1]  # not contiguous
    assert retriever.query(view, "make it red").hits == retriever.query(view.copy(), "make it red").hits


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 3), np.uint8),
    ],
    ids=lambda wrong: f"{wrong.dtype}{wrong.shape}",
)
def test_an_array_that_is_no_image_is_refused(gallery: Gallery, scorer: ColourScorer, wrong: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"give uint8 of the shape \[height, width, 3\]"):
        Retriever(scorer, gallery).query(wrong, "make it red")
    with pytest.raises(UsageError, match="a reference is a int"):
        Retriever(scorer, gallery).query(7, "make it red")  # type: ignore[arg-type]


def test_a_name_that_is_not_there_tells_the_nearest(gallery: Gallery, scorer: ColourScorer) -> None:
    retriever = Retriever(scorer, gallery)
    for name in ("shelf00/itme0004.png", GalleryId("shelf00/item0004.pgn")):
        with pytest.raises(NotFoundError, match=r"did you mean shelf00/item0004\.png\?"):
            retriever.query(name, "make it red")
    with pytest.raises(NotFoundError, match="not fetched from a URL"):
        retriever.query("https://example.org/a.png", "make it red")


def test_values_of_a_filter(tmp_path: Path, gallery: Gallery) -> None:
    table = tmp_path / "values.csv"
    names = list(gallery.ids[:4])
    cells = ['"red, blue"', "red", " blue ", "cafe\u0301"]
    lines = [f"{name},{cell}" for name, cell in zip(names, cells, strict=True)]
    table.write_text("\n".join(["id, Colour", *lines]) + "\n", encoding="utf-8")
    gallery.sync(tmp_path / "photos", metadata=table, allow_removals=True)
    for where, rows in (
        ({"Colour": "red, blue"}, [0]),
        ({"colour": "blue, red"}, [1, 2]),
        ({"Colour": "red,blue"}, [1, 2]),
        ({" colour ": " red "}, [1]),
        ({"Colour": ["red, blue", "blue"]}, [0, 2]),
        ({"Colour": "caf\u00e9"}, [3]),
        ({"Colour": "r"}, []),
    ):
        assert np.flatnonzero(gallery.snapshot.mask(where)).tolist() == rows, where
    with pytest.raises(UsageError, match="no column color; columns: Colour, category; did you mean Colour"):
        gallery.snapshot.mask({"color": "red"})


def test_hits_are_not_read_again_from_the_gallery():
    reads = []

    def read(rows):
        reads.append(rows.tolist())
        return TargetFeatures(rows[:, None].astype(np.float32), np.zeros((len(rows), 0, 1), np.float32))

    targets = remembering(read)
    for rows in ([1, 4, 6, 9], [9, 4], [], [4, 5], [4, 5, 6, 7, 8], [8]):
        rows = np.array(rows, np.intp)
        assert targets(rows).vectors[:, 0].tolist() == rows.tolist()
    assert reads == [[1, 4, 6, 9], [4, 5], [4, 5, 6, 7, 8]]
    targets(np.array([7, 4], np.intp))
    targets(np.array([3, 1], np.intp))  # not in order: it is not remembered
    targets(np.array([3, 1], np.intp))
    assert reads[3:] == [[3, 1], [3, 1]]
