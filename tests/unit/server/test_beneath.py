"""A file beneath a folder: no link leads elsewhere, whenever it is made."""

import os
import sys

import pytest

pytest.importorskip("starlette")

from nsfse_runtime.server import beneath
from nsfse_runtime.server.beneath import open_beneath

links = pytest.mark.skipif(sys.platform == "win32", reason="a link needs a right there")
WAYS = [False, *([True] if beneath._BY_PARTS else [])]


@pytest.fixture(params=WAYS)
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(beneath, "_BY_PARTS", request.param)
    (tmp_path / "own/shelf").mkdir(parents=True)
    (tmp_path / "own/shelf/a.png").write_bytes(b"own")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.png").write_bytes(b"other")
    return tmp_path / "own"


def test_a_plain_file_is_opened(folder):
    with open_beneath(folder, "shelf/a.png") as file:
        assert file.read() == b"own"


@pytest.mark.parametrize(
    "name", ["../other/a.png", "shelf/../shelf/a.png", "shelf//a.png", ".", "", "shelf", "gone.png"]
)
def test_what_is_no_name_of_a_file_is_refused(folder, name):
    with pytest.raises(OSError):
        open_beneath(folder, name)


@links
def test_no_part_of_a_path_may_be_a_link_but_the_folder(folder, tmp_path):
    (folder / "file.png").symlink_to(tmp_path / "other/a.png")
    (folder / "inside.png").symlink_to("shelf/a.png")
    (folder / "linked").symlink_to(tmp_path / "other")
    for name in ("file.png", "inside.png", "linked/a.png"):
        with pytest.raises(OSError):
            open_beneath(folder, name)
    (tmp_path / "way").symlink_to(folder)
    with open_beneath(tmp_path / "way", "shelf/a.png") as file:
        assert file.read() == b"own"


@links
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_is_made_at_that_moment_is_not_followed(folder, tmp_path, monkeypatch, what):
    """Just before the file itself is opened it, or its folder, becomes a link."""
    system_open = os.open

    def open_late(path, flags, *rest, **options):
        if str(path).endswith("a.png"):
            old = folder / ("shelf/a.png" if what == "file" else "shelf")
            old.rename(tmp_path / "before")
            old.symlink_to(tmp_path / ("other/a.png" if what == "file" else "other"))
        return system_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", open_late)
    try:
        with open_beneath(folder, "shelf/a.png") as file:
            assert file.read() == b"own"
    except OSError:
        pass


@links
def test_a_pipe_is_neither_waited_for_nor_opened(folder):
    if not beneath._BY_PARTS:
        pytest.skip("without O_NONBLOCK there are no pipes in folders")
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(OSError, match="not a regular file"):
        open_beneath(folder, "pipe.png")
