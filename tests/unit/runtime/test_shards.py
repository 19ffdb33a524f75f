"""Shards indexed into a store: tars as img2dataset writes them, Parquet files, a ledger, parts, and going on."""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from nsfse_runtime.errors import UsageError
from nsfse_runtime.gallery.report import SyncReport
from nsfse_runtime.stores.file import FileStore
from nsfse_runtime.stores.indexing import facts_of, index_shards
from nsfse_runtime.stores.protocol import GalleryStore, all_ids
from nsfse_runtime.stores.shards import read_shard
from tests.galleries import ColourScorer, save_image


def png(tmp_path: Path, seed: int) -> bytes:
    return save_image(tmp_path / "one.png", seed).read_bytes()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Four tars of three images, with texts and JSON."""
    paths = []
    for number in range(4):
        members: dict[str, bytes] = {}
        for at in range(3):
            key = f"{number:05d}{at:04d}"
            members[f"{key}.png"] = png(tmp_path, 10 * number + at)
            members[f"{key}.txt"] = f"a thing {at}".encode()
            members[f"{key}.json"] = json.dumps({"price": at, "url": None, "nested": [1]}).encode()
        paths.append(write_tar(tmp_path / f"{number:05d}.tar", members))
    return paths


@pytest.fixture
def model() -> ColourScorer:
    return ColourScorer()


@pytest.fixture
def store(tmp_path: Path, model: ColourScorer) -> GalleryStore:
    return FileStore(tmp_path / "s.gallery", facts_of(model, "", ""))


def counts(report: SyncReport) -> tuple[int, ...]:
    return report.shards, report.shards_before, report.added, report.encoded, report.unchanged, report.removed


def test_images_and_their_metadata_come_in_and_a_ledger_keeps_them(shards, store, model) -> None:
    report = index_shards(store, shards, model, batch=2)
    assert counts(report) == (4, 0, 12, 12, 0, 0) and not report.failed
    assert list(all_ids(store))[:2] == ["00000/000000000.png", "00000/000000001.png"]
    (record,) = store.fetch(["00001/000010002.png"])
    assert record.metadata == {"price": "2", "caption": "a thing 2"}
    assert counts(index_shards(store, shards, model)) == (0, 4, 0, 0, 0, 0)
    again = FileStore(store.gallery.path)
    assert set(again.shards()) == {path.stem for path in shards}


def test_a_changed_shard_is_read_again_and_what_it_has_no_more_goes(tmp_path, shards, store, model) -> None:
    index_shards(store, shards, model)
    kept, new = png(tmp_path, 10), png(tmp_path, 99)
    write_tar(shards[1], {"000010000.png": kept, "000010009.png": new})
    report = index_shards(store, shards, model)
    assert counts(report) == (1, 3, 1, 1, 1, 2)
    assert [name for name in all_ids(store) if name.startswith("00001/")] == [
        "00001/000010000.png",
        "00001/000010009.png",
    ]


def test_several_processes_take_their_parts(shards, store, model) -> None:
    reports = [index_shards(store, shards, model, part=(number, 3)) for number in range(3)]
    assert [report.shards for report in reports] == [2, 1, 1] and store.info().images == 12
    assert sum(report.encoded for report in reports) == 12


class Interrupted(ColourScorer):
    """Stops after so many images."""

    def encode_images(self, pixels):
        if self.encoded >= 5:
            raise KeyboardInterrupt
        return super().encode_images(pixels)


def test_what_was_interrupted_goes_on(shards, store, model) -> None:
    stopped = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        index_shards(store, shards, stopped, batch=2)
    there = store.info().images
    assert there == stopped.encoded >= 5
    report = index_shards(store, shards, model, batch=2)
    assert report.encoded == 12 - there and store.info().images == 12
    assert counts(index_shards(store, shards, model)) == (0, 4, 0, 0, 0, 0)


def test_what_is_broken_is_skipped_counted_and_reported(tmp_path, shards, store, model) -> None:
    good = png(tmp_path, 3)
    odd = {"a.png": b"no image", "b.png": b"", "../out.png": good, "c.json": b"{", "c.png": good, "d.png": good}
    write_tar(shards[0], odd)
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[: len(data) // 2])
    shards[2].unlink()
    report = index_shards(store, shards, model)
    failed = dict(report.failed)
    assert {"00000/a.png", "00000/b.png", "00000/c.png", str(shards[1]), str(shards[2])} <= failed.keys()
    assert any("leads out" in reason for reason in failed.values()) and "is not JSON" in failed["00000/c.png"]
    assert "cannot be read to its end" in failed[str(shards[1])]
    names = list(all_ids(store))
    assert {"00000/d.png", "00001/000010000.png"} <= set(names) and "00001/000010002.png" not in names
    assert set(store.shards()) == {"00000", "00003"}


def test_links_in_a_tar_are_not_followed(tmp_path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        hard = tarfile.TarInfo("b.png")
        hard.type, hard.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(hard)
    assert list(read_shard(tmp_path / "x.tar")) == []


def test_names_and_folders_that_do_not_go_together_are_refused(tmp_path, shards, store, model) -> None:
    (tmp_path / "other").mkdir()
    twin = write_tar(tmp_path / "other/00000.tar", {"a.png": png(tmp_path, 1)})
    with pytest.raises(UsageError, match="two shards are called 00000"):
        index_shards(store, [*shards, twin], model)
    follows = FileStore(tmp_path / "f.gallery", facts_of(model, "", str(tmp_path)))
    with pytest.raises(UsageError, match=r"follows .*; index shards into another gallery"):
        index_shards(follows, shards, model)


def test_parquet_files(tmp_path, store, model) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": png(tmp_path, seed), "path": None} for seed in range(3)]
    images.append({"bytes": b"no image", "path": None})
    table = pyarrow.table(
        {"image": images, "key": ["a", "b", "c", "d"], "price": [1, 2, 3, 4], "name": ["x", "", "ü", "z"]}
    )
    parquet.write_table(table, tmp_path / "p.parquet")
    report = index_shards(store, [tmp_path / "p.parquet"], model)
    assert counts(report)[:3] == (1, 0, 3) and [name for name, _ in report.failed] == ["p/d"]
    assert store.fetch(["p/c"])[0].metadata == {"key": "c", "price": "3", "name": "ü"}
    (tmp_path / "q.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-9])
    assert "cannot be read to its end" in index_shards(store, [tmp_path / "q.parquet"], model).failed[0][1]
    parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "r.parquet")
    with pytest.raises(UsageError, match="0 columns of bytes"):
        index_shards(store, [tmp_path / "r.parquet"], model)


def test_a_shard_whose_time_alone_changed_is_encoded_no_more(shards, store, model) -> None:
    index_shards(store, shards, model)
    os.utime(shards[0])
    assert counts(index_shards(store, shards, model)) == (1, 3, 0, 0, 3, 0)
