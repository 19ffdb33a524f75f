"""Stage 1 by an index misses little, and is exact in all else; the index is a cache that may be gone or wrong."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime.errors import MissingExtraError, OutputError
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.retrieval.retriever import Retriever
from nsfse_runtime.search import ann, first_stage
from nsfse_runtime.search.first_stage import FirstStage
from nsfse_runtime.search.two_stage import TIE, exact_search
from tests.galleries import ColourScorer, save_images, unit

DIM, COUNT = 16, 3000


@dataclass(frozen=True)
class Rows:
    """What stage 1 sees of a snapshot."""

    vectors: np.ndarray
    vector_keys: np.ndarray
    generation: int = 1

    def __len__(self) -> int:
        return len(self.vector_keys)

    def take(self, rows: np.ndarray, generation: int) -> "Rows":
        return Rows(self.vectors[rows], self.vector_keys[rows], generation)


@pytest.fixture(scope="module")
def everything() -> Rows:
    random = np.random.default_rng(0)
    centres = random.normal(size=(COUNT // 100, DIM))
    vectors = unit(np.repeat(centres, 100, axis=0) + 0.4 * random.normal(size=(COUNT, DIM)))
    return Rows(vectors, np.arange(COUNT, dtype=np.uint64) * 3 + 7)


@pytest.fixture
def queries() -> np.ndarray:
    return unit(np.random.default_rng(1).normal(size=(10, DIM)))


def recall(searcher: FirstStage, snapshot: Rows, queries: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return recall at 100; whatever is found has its exact score, or that of its tie, and comes in order."""
    shares = []
    for query in queries:
        rows, scores = searcher(snapshot, query, 100, mask)
        exact, _ = exact_search(snapshot.vectors, query, 100, mask)
        assert len(rows) == len(exact) == len(set(rows.tolist()))
        assert mask is None or mask[rows].all()
        np.testing.assert_allclose(scores, np.vecdot(snapshot.vectors[rows], query), rtol=0, atol=1.1 * TIE)
        assert (np.diff(scores) <= 0).all()
        shares.append(len(np.intersect1d(rows, exact)) / len(exact))
    return float(np.mean(shares))


class TestIndex:
    """With faiss."""

    @pytest.fixture(autouse=True)
    def _needs_faiss(self) -> None:
        pytest.importorskip("faiss")

    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Return the sizes of the indexes that were built."""
        sizes: list[int] = []
        build = ann.build

        def counted(vectors: np.ndarray, *rest: object) -> ann.Index:
            sizes.append(len(vectors))
            return build(vectors, *rest)

        monkeypatch.setattr(ann, "build", counted)
        return sizes

    def test_it_finds_what_it_says_and_is_built_once(self, tmp_path, everything, queries, built) -> None:
        assert recall(FirstStage(tmp_path / "g", "f", "ann"), everything, queries) >= 0.99
        again = FirstStage(tmp_path / "g", "f", "ann")
        assert recall(again, everything, queries) >= 0.99
        index = again.prepare_index(everything)
        assert built == [COUNT] and index is not None and index.header.recall >= 0.99
        assert list(tmp_path.iterdir()) == [tmp_path / "g.ann"]

    def test_what_is_gone_new_or_double_is_exact_without_building(self, tmp_path, everything, queries, built) -> None:
        random = np.random.default_rng(2)
        before = np.sort(random.choice(COUNT, COUNT - 20, replace=False))
        FirstStage(tmp_path / "g", "f", "ann").prepare_index(everything.take(before, 1))
        # 20 rows are new, 500 that the index knows are gone, 200 stand twice, and all lie elsewhere than before.
        now = np.setdiff1d(np.arange(COUNT), before[:500])
        now = random.permutation(np.concatenate([now, now[:200]]))
        snapshot = everything.take(now, 2)
        searcher = FirstStage(tmp_path / "g", "f", "ann")
        new = np.setdiff1d(np.arange(COUNT), before)
        assert recall(searcher, snapshot, np.concatenate([queries, everything.vectors[new]])) >= 0.99
        for row in (*new[:5], now[0]):
            rows, _ = searcher(snapshot, everything.vectors[row], 5)
            assert now[rows[0]] == row and (now == row).sum() == (now[rows] == row).sum()
        assert built == [COUNT - 20]

    @pytest.mark.parametrize("share", [0.6, 0.3, 0.01, 0.0])
    def test_filters_are_kept(self, tmp_path, everything, queries, share) -> None:
        searcher = FirstStage(tmp_path / "g", "f", "ann")
        mask = np.random.default_rng(3).random(COUNT) < share
        assert not mask.any() or recall(searcher, everything, queries, mask) >= (1 if share < 0.25 else 0.99)

    def test_a_filter_far_from_the_query_is_exact(self, tmp_path, everything, monkeypatch) -> None:
        monkeypatch.setattr(first_stage, "_FEW", 0)
        query = everything.vectors[5]
        mask = everything.vectors @ query < 0  # nothing of it is near
        assert recall(FirstStage(tmp_path / "g", "f", "ann"), everything, query[None], mask) == 1

    def test_a_gallery_that_changed_much_gets_another(self, tmp_path, everything, queries, built) -> None:
        half = everything.take(np.arange(COUNT // 2), 1)
        FirstStage(tmp_path / "g", "f", "ann").prepare_index(half)
        assert recall(FirstStage(tmp_path / "g", "f", "ann"), everything, queries) >= 0.99
        assert built == [COUNT // 2, COUNT]

    def test_a_damaged_or_foreign_file_is_built_again(self, tmp_path, everything, queries, built) -> None:
        FirstStage(tmp_path / "g", "f", "ann").prepare_index(everything)
        file = tmp_path / "g.ann"
        whole = file.read_bytes()
        for at in (0, 40, 300, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert ann.Index.load(file, "f") is None
        for length in (0, 20, 32, 200, len(whole) - 1):
            file.write_bytes(whole[:length])
            assert ann.Index.load(file, "f") is None
        assert recall(FirstStage(tmp_path / "g", "f", "ann"), everything, queries) >= 0.99
        assert built == [COUNT, COUNT] and file.read_bytes() == whole
        assert ann.Index.load(file, "another bundle") is None

    def test_where_nothing_may_be_written_it_serves_all_the_same(
        self, tmp_path, everything, queries, monkeypatch
    ) -> None:
        with pytest.raises(OutputError, match="check the disk"):
            FirstStage(tmp_path / "g", "f", "ann").prepare_index(everything).save(tmp_path / "no" / "g.ann")
        assert recall(FirstStage(tmp_path / "no" / "g", "f", "ann"), everything, queries) >= 0.99

    def test_an_index_of_low_recall_is_used_on_demand_only(self, tmp_path, everything, queries, monkeypatch) -> None:
        monkeypatch.setattr(first_stage, "EXACT_UP_TO", 1000)
        monkeypatch.setattr(ann, "_DEPTHS", (101,))
        monkeypatch.setattr(ann, "_PARTS", 2)
        assert recall(FirstStage(tmp_path / "g", "f", "auto"), everything, queries) == 1
        assert recall(FirstStage(tmp_path / "g", "f", "ann"), everything, queries) < 0.9

    def test_a_sync_makes_it_and_deletions_leave_it(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(ann, "MIN_VECTORS", 40)
        monkeypatch.setattr(first_stage, "EXACT_UP_TO", 40)
        save_images(tmp_path / "photos", 60)
        scorer = ColourScorer()
        gallery = Gallery.open(tmp_path / "photos" / "g", scorer, create=True)
        report = gallery.sync(tmp_path / "photos")
        assert report.ann is not None and report.ann["entries"] == 60 and (tmp_path / "photos" / "g.ann").exists()
        retriever, exact = (Retriever(scorer, gallery, search=how) for how in ("auto", "exact"))
        for victim in (None, "item0007", "item0008"):
            if victim:
                next((tmp_path / "photos").rglob(f"{victim}.png")).unlink()
                assert gallery.sync(tmp_path / "photos").removed == 1
            found, wanted = (each.query("item0003", "make it red", k=60).hits for each in (retriever, exact))
            assert [hit.id for hit in found] == [hit.id for hit in wanted]
        assert gallery.sync(tmp_path / "photos").failed == []


def test_without_faiss_a_large_gallery_is_searched_exactly(tmp_path, everything, queries, monkeypatch) -> None:
    monkeypatch.setattr(ann, "is_installed", lambda: False)
    monkeypatch.setattr(first_stage, "EXACT_UP_TO", 1000)
    searcher = FirstStage(tmp_path / "g", "f")
    assert searcher.prepare_index(everything) is None
    assert recall(searcher, everything, queries) == 1
    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r'faiss is not installed; run: pip install "nsfse\[ann\]"'):
        FirstStage(tmp_path / "g", "f", "ann")


def test_codes_come_with_the_second_query_of_a_generation(everything, queries, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(first_stage, "_MIN_INT8_IMAGES", 1000)
    made = []
    monkeypatch.setattr(
        first_stage, "Int8Index", lambda vectors: made.append(len(vectors)) or first_stage.int8.Int8Index(vectors)
    )
    searcher = FirstStage(Path("g"), "f")
    searcher(everything, queries[0], 10)
    assert made == []
    assert recall(searcher, everything, queries) == 1
    assert made == [COUNT]
    fewer = everything.take(np.arange(0, COUNT, 2), 2)
    assert recall(searcher, fewer, queries) == 1
    assert made == [COUNT, COUNT // 2]
