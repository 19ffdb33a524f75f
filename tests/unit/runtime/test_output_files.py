"""Files are named as what they are, and results are written over nothing that is not ours."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from nsfse_runtime.errors import OutputError, UsageError
from nsfse_runtime.images.file_kinds import image_kind, reason_against
from nsfse_runtime.output_files import PAGE, SHEET, cache_folder, check_folder, check_output
from nsfse_runtime.visualize.contact_sheet import contact_sheet
from nsfse_runtime.visualize.html_page import html_page


def ftyp(major: str, *others: str) -> bytes:
    body = b"ftyp" + major.encode() + bytes(4) + "".join(others).encode()
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(99)


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (ftyp("heic", "mif1", "heic"), "", "HEIC"),
        (ftyp("mif1", "heic"), "", "HEIC"),
        (ftyp("mif1", "avif"), "", "AVIF"),
        (ftyp("mif1", "miaf"), "", "HEIF"),
        (ftyp("avif", "mif1"), "", "AVIF"),
        (ftyp("avis"), "", "animated AVIF"),
        (ftyp("crx "), "", "camera RAW (CR3)"),
        (ftyp("jp2 "), "", "JPEG 2000"),
        (ftyp("jxl "), "", "JPEG XL"),
        (b"\xff\x0a" + bytes(40), "", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "", "JPEG 2000"),
        (b"MM\0*" + bytes(40), "RAW.NEF", "camera RAW (NEF)"),
        (b"II*\0" + bytes(40), "x/RAW.dng", "camera RAW (DNG)"),
        (b"II*\0\x10\0\0\0CR\2\0", "", "camera RAW (CR2)"),
        (b"II*\0" + bytes(40), "a.tif", "TIFF"),
        (b"II+\0\x08\0\0\0", "a.tif", "TIFF"),
        (b"FUJIFILMCCD-RAW 0201", "", "camera RAW (RAF)"),
        (b"IIU\0" + bytes(40), "", "camera RAW (RW2)"),
        (b"8BPS\0\1", "", "Photoshop"),
        (b"%PDF-1.4", "", "PDF"),
        (b"<?xml version='1.0'?>\n<svg ", "", "SVG"),
        (b"P6\n4 4\n255\n", "", "PNM"),
    ],
)
def test_formats_of_images_are_told_by_their_first_bytes(head: bytes, name: str, kind: str) -> None:
    assert image_kind(head, name) == kind
    assert reason_against(head, name) == f"{kind} is not read; convert it to JPEG or PNG"


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (ftyp("qt  "), "IMG_1.MOV", "a video (MOV)"),
        (ftyp("isom", "mp41"), "", "a video (MP4)"),
        (ftyp("3gp4"), "", "a video (MP4)"),
        (ftyp("M4V "), "", "a video (MP4)"),
        (ftyp("M4A "), "", "a sound file (M4A)"),
        (bytes(4) + b"mdat", "old.mov", "a video (MOV)"),
        (b"RIFF\0\0\0\0AVI LIST", "", "a video (AVI)"),
        (b"RIFF\0\0\0\0WAVE", "", "a sound file (WAV)"),
        (b"\x1aE\xdf\xa3", "a.mkv", "a video"),
        (b"ID3\4", "", "a sound file"),
        (b"<plist/>", "IMG_1.AAE", "edits of a photo (AAE)"),
        (b"<x/>", "IMG_1.JPG.xmp", "metadata of a photo (XMP)"),
        (b"{}", "x.json", "a JSON file"),
        (b"\xd0\xcf\x11\xe0\xa1", "Thumbs.db", "thumbnails of Windows (Thumbs.db)"),
        (b"\xd0\xcf\x11\xe0\xa1", "a.doc", "an Office file"),
        (b"\n<!DOCTYPE html>", "dead.jpg", "a web page"),
        (b"PK\x03\x04", "", "a ZIP or Office file"),
    ],
)
def test_what_is_no_image(head: bytes, name: str, kind: str) -> None:
    assert reason_against(head, name) == f"{kind}, not an image"
    assert "git lfs pull" in reason_against(b"version https://git-lfs.github.com/spec/v1", "a.jpg")
    assert reason_against(b"whatever", "a.jpg").startswith("not an image")


@pytest.mark.parametrize(("write", "suffix"), [(contact_sheet, ".png"), (html_page, ".html")])
def test_only_a_file_of_ours_is_written_over(tmp_path: Path, write, suffix: str) -> None:
    ours = tmp_path / f"ours{suffix}"
    write([], ours)
    write([], ours)
    (tmp_path / f"empty{suffix}").touch()
    write([], tmp_path / f"empty{suffix}")
    Image.new("RGB", (9, 9)).save(tmp_path / "photo", "PNG")
    for content in (b"text", (tmp_path / "photo").read_bytes(), b"<!doctype html><title>mine</title>"):
        path = tmp_path / f"theirs{suffix}"
        path.write_bytes(content)
        with pytest.raises(OutputError, match=r"is there and is no .* by nsfse"):
            write([], path)
        link = tmp_path / f"link{suffix}"
        link.symlink_to(path)
        with pytest.raises(OutputError, match="is there"):
            write([], link)
        assert path.read_bytes() == content
        link.unlink()
    for name in ("out.jpg", "out.webp", "out.csv", "out.png" if suffix == ".html" else "out.html"):
        with pytest.raises(UsageError, match=f"is written as {suffix}"):
            write([], tmp_path / name)
        assert not (tmp_path / name).exists()
    write([], tmp_path / f"UPPER{suffix.upper()}")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for kind, name in ((SHEET, "p.png"), (PAGE, "p.html")):
        os.mkfifo(tmp_path / name)
        with pytest.raises(OutputError, match="is there"):
            check_output(tmp_path / name, kind)


def test_folders_for_results(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", (), ())
    check_folder(tmp_path, (), ())
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "begun").touch()
    check_folder(tmp_path, ("begun",), ())
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(OutputError, match=r"holds other files, such as photo\.jpg"):
        check_folder(tmp_path, ("begun",), ("mark",))
    (tmp_path / "mark").touch()
    check_folder(tmp_path, ("begun",), ("mark",))
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "photo.jpg", (), ())


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("demo") == tmp_path / "cache" / "nsfse" / "demo"
    if sys.platform == "linux":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder() == tmp_path / ".cache" / "nsfse"


def test_without_a_home_folder_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr("platformdirs.user_cache_path", fail)
    with pytest.raises(OutputError, match="no home folder for a cache; set XDG_CACHE_HOME"):
        cache_folder()
