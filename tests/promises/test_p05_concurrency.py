"""P5: readers see one whole state while one process writes; a second writer is refused at once, by any name.

Seen to fail with `BEGIN` of `reading` left out, with `os.path.realpath` left out of `sole_writer`, and with its check
of hard links left out. A lock that outlives its process would stop the killed runs of P1.
"""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime.errors import InputError, OutputError
from nsfse_runtime.gallery import sqlite_file
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.report import SyncProgress
from nsfse_runtime.images.decode import load_image
from tests.galleries import ColourScorer, save_images
from tests.promises.counts import count

READERS = 8


def test_eight_readers_see_whole_states_while_one_writes(tmp_path: Path) -> None:
    photos, path, scorer = tmp_path / "photos", tmp_path / "g", ColourScorer()
    rounds = count(4, 60)
    expected = {}
    for name in save_images(tmp_path / "all", 25 + 5 * rounds):
        expected[name] = scorer.encode_images(load_image(tmp_path / "all" / name, scorer.image_size)[None]).vectors[0]
    names = sorted(expected)
    gallery = Gallery.open(path, scorer, create=True)
    done, sizes, wrong = threading.Event(), set(), []

    def read() -> None:
        with Gallery.open(path) as own:
            while not done.is_set():
                with own.reading() as snapshot:
                    targets = snapshot.targets(range(len(snapshot)))
                    vectors = np.array([expected[name] for name in snapshot.ids]).reshape(snapshot.vectors.shape)
                    sizes.add(len(snapshot))
                    if len(targets.regions) != len(snapshot) or not np.allclose(vectors, snapshot.vectors, atol=1e-5):
                        wrong.append(len(snapshot))

    def read_on() -> None:
        try:
            read()
        except Exception as error:
            wrong.append(error)

    readers = [threading.Thread(target=read_on) for _ in range(READERS)]
    for thread in readers:
        thread.start()
    for step in range(rounds + 1):
        for name in names[:25] if not step else names[20 + 5 * step : 25 + 5 * step]:
            (photos / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(tmp_path / "all" / name, photos / name)
        for victim in sorted(photos.rglob("*.png"))[: 3 if step else 0]:
            victim.unlink()
        gallery.sync(photos, batch=5)
    done.set()
    for thread in readers:
        thread.join(60)
    assert wrong == [] and len(sizes) > 2


@pytest.mark.parametrize("kind", ["symbolic link", "link to the folder", "hard link"])
def test_a_second_writer_by_another_name_is_refused(gallery: Gallery, photos: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other.gallery"
    if kind == "symbolic link":
        other.symlink_to(gallery.path)
    elif kind == "link to the folder":
        (tmp_path / "elsewhere").symlink_to(tmp_path)
        other = tmp_path / "elsewhere" / gallery.path.name
    # Within one process SQLite itself refuses the other name of a file that is open.
    reason = "hard links|disk I/O error" if kind == "hard link" else "by another process"
    seen: list[str] = []

    def second(progress: SyncProgress) -> None:
        if kind == "hard link" and not other.exists():
            os.link(gallery.path, other)  # while the first one writes
        with pytest.raises(OutputError, match=reason):
            Gallery.open(other, ColourScorer()).sync(photos)
        seen.append("refused")

    save_images(photos, 6, first=200)
    gallery.sync(photos, batch=2, progress=second)
    assert len(seen) >= 3 and len(gallery) == 31
    if kind == "hard link":
        with pytest.raises(OutputError, match="has 2 names"):
            gallery.sync(photos)
        other.unlink()
    assert gallery.sync(photos).unchanged == 31


def test_a_file_that_is_mounted_alone_is_not_written(gallery: Gallery, photos: Path, monkeypatch) -> None:
    real = os.path.realpath(gallery.path)
    monkeypatch.setattr(sqlite_file, "_mount_points", lambda: {"/", real})
    with pytest.raises(OutputError, match="mount its folder"):
        gallery.sync(photos)
    monkeypatch.undo()
    if os.path.exists("/proc/self/mountinfo"):
        assert "/" in sqlite_file._mount_points()


@pytest.mark.parametrize("content", [b"pid 1234\n", b"SQLite format 3\0" + b"x" * 5000, None])
def test_another_file_in_the_place_of_the_lock_is_named(gallery: Gallery, photos: Path, content: bytes | None) -> None:
    lock = Path(f"{gallery.path}.lock")
    lock.unlink()
    if content is None:
        os.mkfifo(lock)
    else:
        lock.write_bytes(content)
    with pytest.raises(OutputError, match=r"shop\.gallery\.lock is in the place of the gallery's lock"):
        gallery.sync(photos)
    assert len(gallery) == 25


def test_a_second_writer_is_refused_at_once_and_readers_read_on(
    tmp_path: Path, photos: Path, scorer: ColourScorer
) -> None:
    path = tmp_path / "g"
    gallery = Gallery.open(path, scorer, create=True)
    seen: list[str] = []

    def second(progress: SyncProgress) -> None:
        with Gallery.open(path, ColourScorer()) as other:
            with pytest.raises(OutputError, match="is being written by another process"):
                other.sync(photos)
            with other.reading() as snapshot:
                assert len(snapshot) == progress.done
        seen.append("refused")

    gallery.sync(photos, batch=8, progress=second)
    assert len(seen) == 5
    assert gallery.sync(photos).unchanged == 25


def test_rows_of_a_generation_that_is_gone_are_not_mixed_up(
    gallery: Gallery, photos: Path, scorer: ColourScorer
) -> None:
    with Gallery.open(gallery.path, scorer) as reader:
        row = reader.snapshot.row("item0001")
        (photos / "shelf00/item0001.png").unlink()
        gallery.sync(photos)
        assert len(reader) == 25
        with pytest.raises(InputError, match="changed since it was read; call refresh"):
            reader.snapshot.targets([row])
        reader.refresh()
        assert len(reader) == 24


def test_what_was_read_stays_one_generation_while_another_thread_refreshes(
    gallery: Gallery, photos: Path, scorer: ColourScorer
) -> None:
    with Gallery.open(gallery.path, scorer) as shared:
        snapshot = shared.snapshot
        row = snapshot.row("item0012")
        (photos / "shelf00/item0001.png").unlink()
        gallery.sync(photos)
        thread = threading.Thread(target=shared.refresh)
        thread.start()
        thread.join()
        assert len(shared) == 24 and shared.snapshot.row("item0012") == row - 1
        assert snapshot.ids[row] == "shelf01/item0012.png" and snapshot.is_current(row)
        np.testing.assert_array_equal(snapshot.targets([row]).regions, shared.snapshot.targets([row - 1]).regions)
