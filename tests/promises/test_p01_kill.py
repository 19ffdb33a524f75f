"""P1: an index that is killed, or loses power, at any moment loses nothing that it reported, and stays whole.

A disk that records what is synced (tests/power_loss.py) gives the files at every write, sync and deletion.
Seen to fail with `synchronous = FULL` as OFF or NORMAL, and with a report before the commit: the controls below do both
each time. Also with the COMMIT of `writing` as ROLLBACK.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime.errors import NotFoundError, NsfseError
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.store import GalleryTables
from nsfse_runtime.images.decode import load_image
from nsfse_runtime.search.two_stage import exact_search
from tests.galleries import ColourScorer, save_image, save_images
from tests.power_loss import Disk, Recorder, library, write_files
from tests.promises.counts import FULL, count

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
CHILD = Path(__file__).parents[1] / "gallery_child.py"
KILLS, MOST_REPORTS, STATEMENTS = count(10, 1000), 6, 40
with_sqlite = pytest.mark.skipif(library() is None, reason="Python's SQLite is built in: its files cannot be watched")


class Harness:
    """Runs syncs of one gallery in processes of their own, kills them, and looks at what is left."""

    def __init__(self, place: Path, store: str) -> None:
        self.gallery, self.folder, self.table = place / "shop.gallery", place / "photos", place / "items.csv"
        self.store, self.names = store, save_images(self.folder, 160)
        self.random = random.Random(5)
        self.reported: set[str] = set()
        self.violations: list[str] = []
        self.recovered: list[int] = []
        self.killed, self.killed_last, self._tables = 0, 0, 0
        self._values: dict[str, set[str]] = {}
        self._vectors: dict[str, np.ndarray] = {}
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, str(CHILD), store, *map(str, (self.gallery, self.folder, self.table))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def close(self) -> None:
        self._child.communicate()

    def kill_once(self, statement: int = -1) -> None:
        """Kill a run after some of its reports: a store in the midst of the next batch, an early one before it commits.

        Where in a batch is left to chance, and nothing depends on it: its length is measured, not known. With
        `statement`, the run kills itself at that one of its last step.
        """
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None and stdout is not None
        self.write_table()
        stdin.write(f"{statement}\n".encode())
        stdin.flush()
        pid, lines = int(stdout.readline()), []
        started, reports = time.monotonic(), self.random.randrange(MOST_REPORTS)
        last, line = reports + (self.store == "early"), b""
        while not line.startswith(b"ended"):
            if statement < 0 and len(lines) == last:
                if self.store == "honest":
                    time.sleep(self.random.uniform(0, (time.monotonic() - started) / max(1, reports)))
                with suppress(ProcessLookupError):  # it has ended before
                    os.kill(pid, signal.SIGKILL)
            line = stdout.readline()
            lines.append(line.decode())
            if self.store == "early" and len(lines) <= reports:
                stdin.write(b"commit\n")
                stdin.flush()
        self.killed += line == b"ended 1\n"
        self.killed_last += line == b"ended 1\n" and statement >= 0
        whole = [line.rstrip("\n").split("\t") for line in lines[:-1] if line.endswith("\n") and line != "\n"]
        self.reported.update(name for names in whole for name in names)

    def write_table(self) -> None:
        """Write another table of metadata, of which a gallery shows this value or one before, or none yet."""
        self._tables += 1
        for name in self.names:
            self._values.setdefault(name, set()).add(str(self._tables))
        rows = [f"{name},{self._tables}\n" for name in self.names]
        self.table.write_text("id,table\n" + "".join(rows))

    def check(self) -> None:
        with closing(sqlite3.connect(self.gallery)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with Gallery.open(self.gallery) as gallery:
            self.recovered.append(len(gallery))
            self.violations += [f"lost {name}" for name in sorted(self.reported - set(gallery.ids))]
            self.violations += [
                f"{name} doubled" for name in {n for n, found in Counter(gallery.ids).items() if found > 1}
            ]
            expected = np.array([self.vector(name) for name in gallery.ids]).reshape(gallery.snapshot.vectors.shape)
            np.testing.assert_allclose(gallery.snapshot.vectors, expected, atol=1e-6)
            self.violations += [
                f"{name} has the metadata of another image"
                for name, shown in zip(gallery.ids, gallery.snapshot.metadata, strict=True)
                if shown and shown["table"] not in self._values[name]
            ]
            if len(gallery):
                rows, _ = exact_search(gallery.snapshot.vectors, expected[0], 10)
                scores = gallery.snapshot.vectors @ expected[0]
                np.testing.assert_allclose(scores[rows], np.sort(scores)[::-1][: len(rows)], atol=1e-5)
                assert gallery.snapshot.targets(range(len(gallery))).regions.shape[0] == len(gallery)

    def vector(self, name: str) -> np.ndarray:
        if name not in self._vectors:
            scorer = ColourScorer()
            pixels = load_image(self.folder / name, scorer.image_size)
            self._vectors[name] = scorer.encode_images(pixels[None]).vectors[0]
        return self._vectors[name]

    def change_folder(self, count: int) -> None:
        """Add, rename and delete, so that each run has all of these to do."""
        for _ in range(count):
            name = f"new/{len(self._vectors)}-{self.random.getrandbits(40)}.png"
            save_image(self.folder / name, self.random.getrandbits(30))
            self.names.append(name)
        for _ in range(count // 4):
            name = self.names.pop(self.random.randrange(len(self.names)))
            moved = f"moved-{self.random.getrandbits(40)}.png"
            (self.folder / name).rename(self.folder / moved)
            self._vectors[moved] = self.vector_of_moved(name, moved)
            self._values[moved] = set(self._values.get(name, ()))
            self.names.append(moved)
            self.reported.discard(name)
        for _ in range(max(count // 4, len(self.names) - 200)):
            gone = self.names.pop(self.random.randrange(len(self.names)))
            self.vector(gone)
            (self.folder / gone).unlink()
            self.reported.discard(gone)

    def vector_of_moved(self, name: str, moved: str) -> np.ndarray:
        if name not in self._vectors:
            scorer = ColourScorer()
            self._vectors[name] = scorer.encode_images(
                load_image(self.folder / moved, scorer.image_size)[None]
            ).vectors[0]
        return self._vectors[name]


@pytest.fixture
def harness(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Harness]:
    with closing(Harness(tmp_path, request.param)) as harness:
        yield harness


@pytest.mark.parametrize("harness", ["honest"], indirect=True)
def test_killed_at_random_moments_nothing_reported_is_lost(harness: Harness) -> None:
    """Metadata change with each run, and images come, go and are renamed; a tenth of the kills is in the last step."""
    while harness.killed < KILLS or harness.killed_last < KILLS // 10:
        behind = harness.killed_last < (harness.killed + 1) // 10
        harness.kill_once(harness.random.randrange(STATEMENTS) if behind else -1)
        harness.check()
        harness.change_folder(24)
    print(f"\n{len(harness.recovered)} runs, {harness.killed} killed, {harness.killed_last} of them in the last step")
    print(f"{len(set(harness.recovered))} sizes found, {len(harness.violations)} violations")
    assert harness.violations == []
    assert harness.reported
    # The kills fell in many places, not always before the first or after the last commit.
    assert len(set(harness.recovered)) > min(KILLS, 60) // 3, harness.recovered
    scorer = ColourScorer()
    with Gallery.open(harness.gallery, scorer) as gallery:
        gallery.sync(harness.folder, allow_removals=True)
        assert sorted(gallery.ids) == sorted(harness.names)
        assert gallery.sync(harness.folder).encoded == 0
    harness.check()
    assert harness.violations == []


@pytest.mark.parametrize("harness", ["early"], indirect=True)
def test_the_harness_catches_a_store_that_reports_before_it_commits(harness: Harness) -> None:
    harness.kill_once()
    harness.check()
    assert harness.violations and all(violation.startswith("lost") for violation in harness.violations)


def record_index(place: Path, synchronous: str) -> list[tuple]:
    """Index a folder twice, with images added, moved and deleted between, on a disk that records; return the events."""
    recorder, opened = Recorder(), GalleryTables.open_writer

    def open_writer(path: Path) -> GalleryTables:
        store = opened(path)
        store._run(f"PRAGMA synchronous = {synchronous}")
        store._run("PRAGMA wal_autocheckpoint = 16")  # so that the log goes into the file while the index runs
        return store

    names = save_images(place / "photos", 24)
    with pytest.MonkeyPatch.context() as patch, recorder.recording():
        patch.setattr(GalleryTables, "open_writer", open_writer)
        with Gallery.open(place / "g", ColourScorer(), create=True) as gallery:

            def report(progress) -> None:
                recorder.events.append(("report", progress.ids))

            gallery.sync(place / "photos", batch=4, progress=report)
            moved = [names[3]]
            recorder.events.append(("gone", tuple(moved)))  # a renamed image is no longer under its former name
            (place / "photos" / names[3]).rename(place / "photos/moved.png")
            save_images(place / "photos", 8, first=100)
            gallery.sync(place / "photos", batch=4, progress=report)
    return recorder.events


def cut_power(
    events: list[tuple], place: Path, vectors: dict[str, np.ndarray], images: int
) -> tuple[list[str], set[int]]:
    """Look at the files of `images` power cuts among `events`; return what was lost or wrong, and the sizes found."""
    chance, disk, reported = random.Random(3), Disk(), set()
    changes = sum(event[0] not in ("report", "gone") for event in events)
    violations, sizes = [], set()
    for event in events:
        if event[0] in ("report", "gone"):
            reported = reported | set(event[1]) if event[0] == "report" else reported - set(event[1])
        else:
            disk.take(event)
        if event[0] not in ("report", "sync") and chance.random() > images / (3 * changes):
            continue
        for way in ("lose", "some", "keep"):
            folder = place / "cut"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_files(disk.after_power_cut(way, chance), folder)
            try:
                found = look(folder / "g", vectors)
            except NotFoundError:
                found = []
            except (NsfseError, AssertionError) as error:
                violations.append(f"{way}: {error}")
                continue
            sizes.add(len(found))
            violations += [f"{way}: lost {name}" for name in sorted(reported - set(found))]
    return violations, sizes


def look(path: Path, vectors: dict[str, np.ndarray]) -> list[str]:
    with Gallery.open(path) as gallery:
        expected = np.array([vectors[name] for name in gallery.ids]).reshape(gallery.snapshot.vectors.shape)
        np.testing.assert_allclose(gallery.snapshot.vectors, expected, atol=1e-6)
        gallery.snapshot.targets(range(len(gallery)))
        return list(gallery.ids)


def vectors_of(place: Path) -> dict[str, np.ndarray]:
    scorer, folder = ColourScorer(), place / "photos"
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    pixels = np.stack([load_image(folder / name, scorer.image_size) for name in names])
    vectors = dict(zip(names, scorer.encode_images(pixels).vectors, strict=True))
    return vectors | {"shelf00/item0003.png": vectors["moved.png"]}


@with_sqlite
def test_a_power_cut_at_any_write_or_sync_loses_nothing_reported(tmp_path: Path) -> None:
    events = record_index(tmp_path, "FULL")
    kinds = {event[0] for event in events}
    assert {"write", "sync", "delete", "report"} <= kinds
    violations, sizes = cut_power(events, tmp_path, vectors_of(tmp_path), 10**6 if FULL else 60)
    assert violations == []
    # The cuts cover the whole of the index: before its first commit, between any two, and after its last.
    assert {0, 4, 8, 12, 16, 20, 24, 28, 32} <= sizes, sizes


@with_sqlite
@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
def test_the_power_cuts_catch_a_store_that_does_not_sync(tmp_path: Path, synchronous: str) -> None:
    events = record_index(tmp_path, synchronous)
    violations, _ = cut_power(events, tmp_path, vectors_of(tmp_path), 60)
    assert any("lose: lost" in violation for violation in violations)
