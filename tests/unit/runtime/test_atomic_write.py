"""Files and folders are replaced whole or not at all, and nothing is left behind."""

import os
from pathlib import Path

import pytest

from nsfse_runtime.atomic_write import atomic_write, create_file, replacing, replacing_folder
from nsfse_runtime.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sole_writer", [False, True])
def test_a_file_is_replaced_whole(tmp_path: Path, sole_writer: bool) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"second"):
        atomic_write(path, data, hint="", sole_writer=sole_writer)
        assert path.read_bytes() == data and names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_interrupted_leaves_the_former_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"former")
    with pytest.raises(error), replacing(path) as part:
        part.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"former" and names(tmp_path) == ["file"]


def test_a_move_that_fails_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OutputError, match=r"^cannot write .*file: .*; choose another$"):
        atomic_write(tmp_path / "file", b"data", hint="choose another")
    assert names(tmp_path) == ["file"]


def test_what_is_durable_is_on_the_disk_before_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    path = tmp_path / "file"
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(path.exists()), real(handle)))
    atomic_write(path, b"data", hint="")
    assert synced == []
    path.unlink()
    atomic_write(path, b"data", hint="", durable=True)
    path.unlink()
    create_file(path, b"data")
    assert synced == [False, False]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first" and names(tmp_path) == ["file"]


def test_a_new_file_takes_the_place_of_no_other(tmp_path: Path) -> None:
    create_file(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first" and names(tmp_path) == ["file"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        with replacing_folder(folder) as draft:
            (draft / name).touch()
        assert names(folder) == [name] and names(folder.parent) == ["folder"]


def test_a_folder_that_fails_leaves_no_new_parents(tmp_path: Path) -> None:
    with pytest.raises(ValueError), replacing_folder(tmp_path / "new" / "folder"):
        raise ValueError
    assert names(tmp_path) == []
    with replacing_folder(tmp_path / "folder") as draft:
        (draft / "kept").touch()
    with pytest.raises(ValueError), replacing_folder(tmp_path / "folder"):
        raise ValueError
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["kept"]
