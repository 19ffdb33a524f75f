"""P4: on a full or limited disk an index exits with 3 and loses nothing, and what is there can be read.

Seen to fail with `SQLITE_IOERR` left out of `_NOT_WRITABLE`, with `SQLITE_FULL` left out of `_translate`, and with
`discard_empty` left out of `index_folder`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsfse_runtime.errors import NsfseError, OutputError
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.repair import verify
from tests.galleries import ColourScorer, save_images
from tests.promises.counts import count
from tests.promises.test_p02_power_loss import served

LEVELS = count(6, 20)
BUNDLE = Path(__file__).parents[1] / "golden/bundle"
posix = pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX's")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path, share: float) -> Path:
    """Take this share of what is free, and return the file that holds it."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with (disk / "fill").open("wb", buffering=0) as file:
        try:
            file.write(bytes(int(free * share)))
            while share == 1:
                file.write(bytes(512))
        except OSError:
            pass  # it is full
    return disk / "fill"


def grow(path: Path, photos: Path) -> None:
    """Index 60 more images, which may fail for want of space alone; what was there before stays readable."""
    with Gallery.open(path) as before:
        ids = set(before.ids)
    try:
        with Gallery.open(path, ColourScorer()) as gallery:
            gallery.sync(photos, batch=7)
    except OutputError as error:
        assert error.exit_code == 3 and path.name in str(error)
    with Gallery.open(path) as after:
        assert ids <= set(after.ids)
        served(after)
    assert verify(path).faults == []


@posix
def test_an_index_that_meets_a_limit_of_size_loses_nothing(tmp_path: Path) -> None:
    save_images(tmp_path / "photos", 25)
    with Gallery.open(tmp_path / "first", ColourScorer(), create=True) as gallery:
        gallery.sync(tmp_path / "photos")
    names, grown = save_images(tmp_path / "photos", 85), 0
    for level in range(LEVELS):
        path = tmp_path / f"g{level}"
        shutil.copy(tmp_path / "first", path)
        with file_size_limit(1000 + level * 300_000 // LEVELS):
            grow(path, tmp_path / "photos")
        with Gallery.open(path, ColourScorer()) as gallery:
            grown += len(gallery) < 85
            gallery.sync(tmp_path / "photos")  # without the limit it goes on
            assert sorted(gallery.ids) == names
    assert grown > 0  # the limit was met


@posix
def test_a_first_index_that_fails_leaves_no_gallery(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from nsfse.index import index_folder
    from nsfse_runtime.inference.devices import ON_CPU

    save_images(tmp_path / "photos", 25)
    (tmp_path / "there").mkdir()
    for size in (0, 3000, 12_000):
        with file_size_limit(size), pytest.raises(OutputError):
            index_folder(tmp_path / "there/g", tmp_path / "photos", BUNDLE, ON_CPU)
        assert list((tmp_path / "there").iterdir()) == []


def test_an_index_on_a_full_disk_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "photos", 25)
    with Gallery.open(tmp_path / "first", ColourScorer(), create=True) as gallery:
        gallery.sync(tmp_path / "photos")
    names = save_images(tmp_path / "photos", 85)
    for level in range(LEVELS):
        for file in small_disk.iterdir():
            file.unlink()
        shutil.copy(tmp_path / "first", small_disk / "g")
        filled = fill(small_disk, (level + 1) / LEVELS)
        grow(small_disk / "g", tmp_path / "photos")
        filled.unlink()
        with Gallery.open(small_disk / "g", ColourScorer()) as gallery:
            gallery.sync(tmp_path / "photos")
            assert sorted(gallery.ids) == names


def test_a_gallery_on_a_full_or_read_only_disk_is_read(small_disk: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "photos", 25)
    with Gallery.open(tmp_path / "first", ColourScorer(), create=True) as gallery:
        gallery.sync(tmp_path / "photos")
        expected = served(gallery)
    path = shutil.copy(tmp_path / "first", small_disk / "g")
    filled = fill(small_disk, 1)
    with Gallery.open(path, ColourScorer()) as full:
        assert served(full) == expected
        with pytest.raises(OutputError):
            save_images(tmp_path / "photos", 300)
            full.sync(tmp_path / "photos", batch=300)
        filled.unlink()  # there is space again, and somebody indexes: the open gallery follows
        with Gallery.open(path, ColourScorer()) as other:
            other.sync(tmp_path / "photos")
        full.refresh()
        assert len(full) == 300
        full.snapshot.targets(range(300))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with Gallery.open(path, ColourScorer()) as read_only:
        assert len(read_only) == 300
        with pytest.raises(NsfseError) as refused:
            read_only.sync(tmp_path / "photos")
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("name", ["SQLITE_IOERR_SHMSIZE", "SQLITE_FULL"])
def test_where_nothing_can_be_written_the_file_is_read_alone(gallery: Gallery, monkeypatch, name: str) -> None:
    """The same without a disk of its own: the first way of opening fails as on a full disk."""
    import sqlite3

    from nsfse_runtime.gallery import sqlite_file

    expected, connect, modes = served(gallery), sqlite_file.connect, []
    gallery.close()

    class Full(sqlite_file.Connection):
        def execute(self, *statement):
            if statement[0].startswith("SELECT 1"):
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorname = name
                raise error
            return super().execute(*statement)

    def connecting(path: Path, mode: str) -> sqlite_file.Connection:
        modes.append(mode)
        if mode == "rw":
            monkeypatch.setattr(sqlite_file, "Connection", Full)
        connection = connect(path, mode)
        monkeypatch.setattr(sqlite_file, "Connection", Full.__base__)
        return connection

    monkeypatch.setattr(sqlite_file, "connect", connecting)
    assert served(gallery) == expected and modes == ["rw", "ro&immutable=1"]
