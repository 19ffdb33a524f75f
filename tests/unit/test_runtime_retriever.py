"""A query's answer: hits, evidence, what is encoded and what is left out."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from nsfse_runtime import Gallery, Retriever
from nsfse_runtime.errors import NotFoundError, UsageError, VersionError
from tests.galleries import ColourScorer, save_picture, save_pictures


@pytest.fixture
def scorer() -> ColourScorer:
    return ColourScorer()


@pytest.fixture
def gallery(tmp_path: Path, scorer: ColourScorer) -> Gallery:
    names = save_pictures(tmp_path / "photos", 30)
    table = tmp_path / "table.csv"
    table.write_text(
        "file,category\n" + "".join(f"{name},{'dress' if n % 3 else 'shoe'}\n" for n, name in enumerate(names))
    )
    gallery = Gallery.open(tmp_path / "g", scorer, create=True)
    gallery.sync(tmp_path / "photos", metadata=table)
    scorer.encoded = 0
    return gallery


def test_a_gallery_picture_is_not_encoded_and_not_among_the_hits(gallery: Gallery, scorer: ColourScorer) -> None:
    for name in (gallery.ids[4], "item0004"):
        result = Retriever(scorer, gallery).query(name, "make it red", k=30)
        assert scorer.encoded == 0
        assert len(result.hits) == 29 and gallery.ids[4] not in {hit.id for hit in result.hits}
        assert result.timings_ms["decode"] == result.timings_ms["image"] == 0


def test_the_file_of_a_gallery_picture_is_known_too(gallery: Gallery, scorer: ColourScorer) -> None:
    path = gallery.path_of(4)
    result = Retriever(scorer, gallery).query(path, "make it red", k=30)
    assert gallery.ids[4] not in {hit.id for hit in result.hits}
    assert result.hits == Retriever(scorer, gallery).query(gallery.ids[4], "make it red", k=30).hits
    save_picture(path, 77, (9, 30))
    scorer.encoded = 0
    changed = Retriever(scorer, gallery).query(path, "make it red", k=30)
    assert scorer.encoded == 1 and changed.hits != result.hits


def test_a_foreign_picture_is_encoded_once(gallery: Gallery, scorer: ColourScorer, tmp_path: Path) -> None:
    outside = save_picture(tmp_path / "mine.png", 500)
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
    query = scorer.compose(gallery.targets([0]), ["make it red"])[0]
    for hit in result.hits:
        pair = scorer.score_pairs(query, gallery.targets([gallery.row(hit.id)]))
        assert hit.score == pytest.approx(pair.score[0], abs=1e-5)
        assert [word.word for word in hit.evidence] == ["make", "it", "red"]
        np.testing.assert_allclose([word.score for word in hit.evidence], pair.word_scores[0], atol=1e-5)
        assert [word.matched for word in hit.evidence] == (pair.word_scores[0] >= pair.boundary).tolist()
        assert hit.match == (pair.word_scores[0].mean() >= pair.boundary)
        assert Path(hit.path).is_file()
    assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)


def test_a_filter_leaves_k_results_when_there_are_k(gallery: Gallery, scorer: ColourScorer) -> None:
    retriever = Retriever(scorer, gallery)
    for k, found in ((10, 10), (30, 10)):
        hits = retriever.query(gallery.ids[1], "make it red", k=k, where={"category": "shoe"}, rerank=2).hits
        assert len(hits) == found
        assert {gallery.metadata([gallery.row(hit.id)])[0]["category"] for hit in hits} == {"shoe"}
    assert retriever.query(gallery.ids[1], "red", where={"category": "hat"}).hits == ()
    with pytest.raises(UsageError, match="no column colour; columns: category"):
        retriever.query(gallery.ids[1], "red", where={"colour": "red"})


def test_without_a_second_stage_hits_have_their_evidence(gallery: Gallery, scorer: ColourScorer) -> None:
    query = scorer.compose(gallery.targets([0]), ["make it red"])[0]
    hits = Retriever(scorer, gallery).query(gallery.ids[0], "make it red", k=4, rerank=0).hits
    np.testing.assert_allclose(
        [hit.score for hit in hits], np.sort(np.delete(gallery.vectors() @ query.vector, 0))[::-1][:4], atol=1e-6
    )
    assert all(len(hit.evidence) == 3 for hit in hits)


def test_the_json_form(gallery: Gallery, scorer: ColourScorer) -> None:
    document = json.loads(msgspec.json.encode(Retriever(scorer, gallery).query(gallery.ids[0], "red", k=1)))
    assert (
        list(document) == ["schema_version", "hits", "matches", "timings_ms", "grid", "texts", "notes"]
        and document["schema_version"] == 1
    )
    assert list(document["hits"][0]) == ["id", "path", "score", "match", "evidence", "confidence"]
    assert list(document["hits"][0]["evidence"][0]) == ["word", "score", "matched", "weight", "regions"]


def test_a_long_lived_retriever_sees_what_a_writer_commits(
    gallery: Gallery, scorer: ColourScorer, tmp_path: Path
) -> None:
    retriever = Retriever(scorer, gallery)
    before = {hit.id for hit in retriever.query("item0003", "red", k=99).hits}
    (tmp_path / "photos/shelf00/item0001.png").unlink()
    save_picture(tmp_path / "photos/late.png", 901)
    with Gallery.open(gallery.path, scorer) as writer:
        writer.sync(tmp_path / "photos")
    assert {hit.id for hit in retriever.query("item0003", "red", k=99).hits} == before - {"shelf00/item0001.png"} | {
        "late.png"
    }


def test_wrong_use_is_one_line(gallery: Gallery, scorer: ColourScorer) -> None:
    retriever = Retriever(scorer, gallery)
    with pytest.raises(NotFoundError, match="neither a file nor a picture of the gallery"):
        retriever.query("nothing-like-it", "red")
    for options in ({"k": 0}, {"rerank": -1}):
        with pytest.raises(UsageError, match="give a k"):
            retriever.query(gallery.ids[0], "red", **options)
    with pytest.raises(VersionError, match="another bundle"):
        Retriever(ColourScorer("other"), gallery)


def test_an_empty_gallery_answers_with_nothing(tmp_path: Path, scorer: ColourScorer) -> None:
    outside = save_picture(tmp_path / "mine.png", 500)
    gallery = Gallery.open(tmp_path / "empty", scorer, create=True)
    assert Retriever(scorer, gallery).query(outside, "red").hits == ()
