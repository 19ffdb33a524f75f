"""Pages of hits, their metadata, and one hit a group: against a ranking made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime import Gallery, Query, Retriever
from nsfse_runtime.errors import UsageError
from nsfse_runtime.gallery.columns import Column
from nsfse_runtime.inference.confidence import FEATURES, Decision
from nsfse_runtime.retrieval.candidates import Candidates
from nsfse_runtime.retrieval.duplicates import fold_duplicates
from nsfse_runtime.stores.groups import best_of_groups
from tests.galleries import PLAIN_INFO, ColourScorer, save_images, unit

COUNT = len(FEATURES)
DECISION = Decision((0.0,) * COUNT, (1.0,) * COUNT, (0.1,) * (COUNT + COUNT * (COUNT + 1) // 2), 0.0, 0.5)


class SureScorer(ColourScorer):
    """A scorer with a confidence."""

    info = replace(PLAIN_INFO, confidence=DECISION)


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    folder, scorer = tmp_path_factory.mktemp("pages"), SureScorer()
    names = save_images(folder / "photos", 30)
    rows = [f"{name},{20 + number},{'SML'[number % 3]}" for number, name in enumerate(names)]
    rows[7] = f"{names[7]},27,"
    (folder / "t.csv").write_text("\n".join(["id,price,Size", *rows]))
    gallery = Gallery.open(folder / "g", scorer, create=True)
    gallery.sync(folder / "photos", metadata=folder / "t.csv")
    return Retriever(scorer, gallery)


def by_blocks(retriever: Retriever, block: int) -> list[str]:
    """Return all ids: stage 1's order, of which each block is ordered by the whole score."""
    snapshot, scorer = retriever.gallery.snapshot, ColourScorer()
    query = scorer.compose(snapshot.targets([0]), ["make it red"])[0]
    rows = np.argsort(-(snapshot.vectors @ query.vector), kind="stable")
    rows, found = rows[rows != 0], []
    for start in range(0, len(rows), block):
        some = rows[start : start + block]
        found += some[np.argsort(-scorer.score_pairs(query, snapshot.targets(some)).score, kind="stable")].tolist()
    return [snapshot.ids[row] for row in found]


@pytest.mark.parametrize(("k", "rerank", "block"), [(5, 7, 7), (7, 7, 7), (9, 4, 9), (3, 100, 100), (4, 0, 1)])
def test_pages_fit_together(retriever: Retriever, k: int, rerank: int, block: int) -> None:
    first, pages = retriever.gallery.ids[0], []
    for offset in range(0, 40, k):
        page = retriever.query(first, "make it red", k=k, rerank=rerank, offset=offset)
        assert page.total == 29 and len(page.hits) == max(0, min(k, 29 - offset))
        with_confidence = [hit.confidence is not None for hit in page.hits]
        assert with_confidence == [rerank > 0 and offset + place < block for place in range(len(page.hits))]
        assert [hit.is_match is not None for hit in page.hits] == [each or not rerank for each in with_confidence]
        pages += [hit.id for hit in page.hits]
    assert pages == by_blocks(retriever, block)


def test_the_first_page_is_that_of_a_query_without_an_offset(retriever: Retriever) -> None:
    first = retriever.gallery.ids[0]
    whole = retriever.query(first, "make it red", k=20, rerank=20).hits
    assert retriever.query(first, "make it red", k=5, offset=5, rerank=20).hits == whole[5:10]
    alone = [retriever.query(text="red", k=5, offset=offset).hits for offset in (0, 5)]
    assert alone[0] + alone[1] == retriever.query(text="red", k=10).hits
    with pytest.raises(UsageError, match="offset is -1"):
        retriever.query(first, "red", offset=-1)


def test_hits_have_their_metadata_or_the_fields_of_it(retriever: Retriever) -> None:
    snapshot = retriever.gallery.snapshot
    for hit in retriever.query(snapshot.ids[0], "red").hits:
        assert hit.metadata == snapshot.metadata[snapshot.row(hit.id)]
    hits = retriever.query(snapshot.ids[0], "red", k=30, fields=["size"]).hits
    assert [hit.metadata for hit in hits if hit.id == snapshot.ids[7]] == [{}]
    assert all(set(hit.metadata) == {"Size"} for hit in hits if hit.id != snapshot.ids[7])
    with pytest.raises(UsageError, match="no column prize; columns: Size, price; did you mean price"):
        retriever.query(snapshot.ids[0], "red", fields=["prize"])


def test_one_hit_a_group_is_the_best_of_the_group(retriever: Retriever) -> None:
    snapshot = retriever.gallery.snapshot
    vectors = snapshot.vectors @ ColourScorer().compose(snapshot.targets([0]), ["make it red"])[0].vector
    where = {"price": {"$lt": 40}}
    grouped = retriever.query(snapshot.ids[0], "make it red", k=30, group_by="size", where=where)
    best = {}
    for row in range(1, 20):
        group = snapshot.metadata[row].get("Size", row)
        if group not in best or vectors[row] > vectors[best[group]]:
            best[group] = row
    assert {hit.id for hit in grouped.hits} == {snapshot.ids[row] for row in best.values()}
    assert grouped.total == len(grouped.hits) == 4 and snapshot.ids[7] in {hit.id for hit in grouped.hits}
    pages = [
        retriever.query(snapshot.ids[0], "make it red", k=1, offset=at, group_by="Size", where=where).hits[0]
        for at in range(4)
    ]
    assert [hit.id for hit in pages] == [hit.id for hit in grouped.hits]
    (unknown,) = retriever.answer([Query(references=(snapshot.ids[0],), texts=("red",), group_by="colour")])
    assert isinstance(unknown, UsageError) and "no column colour" in str(unknown)


def test_of_a_group_that_ties_the_first_row_is_taken() -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(200, 8)))
    vectors[100:] = vectors[:100]
    cells = [None if number % 10 == 0 else str(number % 7) for number in range(200)]
    mask = rng.random(200) < 0.7
    found = best_of_groups(vectors, vectors[5], mask, Column("group", cells))
    scores, expected = vectors @ vectors[5], set()
    for group in {cell for cell in cells if cell}:
        members = [row for row in np.flatnonzero(mask) if cells[row] == group]
        top = max(scores[row] for row in members)
        expected.add(next(row for row in members if scores[row] > top - 1e-6))
    assert set(np.flatnonzero(found)) == expected | {row for row in np.flatnonzero(mask) if cells[row] is None}
    assert not best_of_groups(vectors, vectors[5], np.zeros(200, bool), Column("group", cells)).any()


@pytest.mark.parametrize("least", [1.0, 0.97, 0.9, 0.5])
def test_near_duplicates_are_folded_into_the_best_of_them(retriever: Retriever, least: float) -> None:
    first, snapshot = retriever.gallery.ids[0], retriever.gallery.snapshot
    every = retriever.query(first, "make it red", k=30, rerank=0).hits
    expected: dict[str, list[str]] = {}
    for hit in every:
        vector = snapshot.vectors[snapshot.row(hit.id)]
        like = [name for name in expected if snapshot.vectors[snapshot.row(name)] @ vector >= least - 1e-5]
        expected.setdefault(like[0] if like else hit.id, []).extend([hit.id] if like else [])
    folded = retriever.query(first, "make it red", k=30, rerank=0, fold_duplicates=least)
    assert {hit.id: list(hit.duplicates) for hit in folded.hits} == expected and folded.total == 29
    pages = [
        hit.id
        for offset in range(0, 30, 2)
        for hit in retriever.query(first, "make it red", k=2, rerank=0, offset=offset, fold_duplicates=least).hits
    ]
    assert pages == list(expected)
    ranked = retriever.query(first, "make it red", k=30, fold_duplicates=least).hits
    assert sorted(hit.id for hit in ranked) == sorted(expected)


def test_folding_searches_deeper_until_enough_are_left() -> None:
    vectors, depths = np.repeat(np.eye(8, dtype=np.float32), 10, 0), []
    ids = [str(row) for row in range(80)]

    def search(depth: int) -> Candidates:
        depths.append(depth)
        rows = np.arange(80)[:depth]
        return Candidates("", ids, rows, -rows.astype(np.float32), 80, (), None, lambda some: vectors[some], None)  # type: ignore[arg-type]

    found = fold_duplicates(search, 4, 0.9)
    assert found.rows.tolist() == [0, 10, 20, 30] and depths == [4, 8, 16, 32]
    assert found.duplicates[0] == tuple(map(str, range(1, 10))) and found.duplicates[30] == ("31",)
    assert fold_duplicates(search, 30, 0.9).rows.tolist() == list(range(0, 80, 10))


def test_an_empty_gallery_has_no_page(tmp_path: Path) -> None:
    scorer = SureScorer()
    empty = Retriever(scorer, Gallery.open(tmp_path / "g", scorer, create=True))
    found = empty.query(text="red", offset=5)
    assert (found.hits, found.total) == ((), 0)
