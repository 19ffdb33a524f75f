"""Which file is which listed image: in every layout, never another one of the same file name."""

import os
from pathlib import Path

import pytest

from nsfse.cli import app
from nsfse.data.datasets.file_index import dead_files, image_id, scan
from nsfse.data.registry import open_source
from nsfse_runtime.errors import ImageError
from tests.unit.data import data_folders
from tests.unit.data.data_folders import draw, write

A, B = "women/dresses/a/11/11_0.jpeg", "women/tops/b/11/11_0.jpeg"


def located(folder, *names, roots=()):
    """Return name → path under `folder` of what is found."""
    return {name: path.relative_to(folder).as_posix() for name, path in scan(folder, *roots).locate(names).items()}


def test_a_missing_image_is_not_replaced_by_another_of_its_name(tmp_path):
    draw(tmp_path / B)
    assert located(tmp_path, A, B) == {B: B}
    assert located(tmp_path, A) == {}  # also where the other one is not listed
    draw(tmp_path / "top" / A)
    assert located(tmp_path, A, B) == {A: f"top/{A}", B: B}


@pytest.mark.parametrize("place", ["{}", "top/{}", "images/{}", "women_small/{}"])
def test_official_folders_are_found_below_others(tmp_path, place):
    for name in (A, B):
        draw(tmp_path / place.format(name))
    assert located(tmp_path, A, B) == {name: place.format(name) for name in (A, B)}


@pytest.mark.parametrize(
    "file", ["11_0.jpeg", "images/11_0.png", "images/11/11_0.webp", "dresses/11/11_0.jpeg", "x/y/11_0.JPG"]
)
def test_where_a_name_is_listed_once_other_layouts_are_found(tmp_path, file):
    draw(tmp_path / file)
    assert located(tmp_path, A, "women/dresses/a/12/12_0.jpeg") == {A: file}


def test_where_a_name_is_listed_twice_a_flat_file_is_neither(tmp_path):
    draw(tmp_path / "images/11_0.jpeg")
    draw(tmp_path / "images/11/11_0.png")  # fits both alike
    assert located(tmp_path, A, B) == {}
    draw(tmp_path / "pics/b/11/11_0.png")
    assert located(tmp_path, A, B) == {B: "pics/b/11/11_0.png"}


def test_the_root_may_be_a_folder_of_the_listing(tmp_path):
    for name in (A, B):
        draw(tmp_path / name)
    found = scan(tmp_path / "women").locate([A, B])
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in found.items()} == {A: A, B: B}
    found = scan(tmp_path / "women/tops").locate([A, B])
    assert found == {B: tmp_path / B}


def test_own_folders(tmp_path):
    draw(tmp_path / "val/1.png")
    assert located(tmp_path, "train/1.png", "val/1.png") == {"val/1.png": "val/1.png"}
    draw(tmp_path / "images/a.jpg")
    assert located(tmp_path, "a.jpg", "a.png") == {"a.jpg": "images/a.jpg"}  # two images of one stem
    assert located(tmp_path, "a.png") == {"a.png": "images/a.jpg"}  # one, saved anew
    assert located(tmp_path, "a", "a.jpg", "images/a.jpg", "images\\a.jpg") == dict.fromkeys(
        ("a", "a.jpg", "images/a.jpg", "images\\a.jpg"), "images/a.jpg"
    )
    draw(tmp_path / "e\u0301.png")
    assert located(tmp_path, "\xe9.png") == {"\xe9.png": "e\u0301.png"}
    draw(tmp_path / "SKU-1.5.png")
    assert located(tmp_path, "SKU-1.5", "SKU-1") == {"SKU-1.5": "SKU-1.5.png"}


def test_many_files_of_one_name_are_told_apart_quickly(tmp_path):
    names = [f"{item}/front/1.png" for item in range(3000)]
    for name in names[::100]:
        draw(tmp_path / name)
    assert located(tmp_path, *names) == {name: name for name in names[::100]}


@pytest.mark.parametrize(
    ("name", "item"),
    [("B0.jpg", "B0"), ("B0", "B0"), (" B0.PNG ", "B0"), ("x/B0.webp", "B0"), ("SKU-1.5", "SKU-1.5"), (".jpg", ".jpg")],
)
def test_an_id_is_a_name_without_an_images_suffix(name, item):
    assert image_id(name) == item


HEADS = {
    "page": b"<!DOCTYPE html>",
    "text": b"404: not found",
    "empty": b"",
    "zeros": bytes(4096),
    "lfs": b"version https://git-lfs.github.com/spec/v1",
}


@pytest.mark.parametrize("what", HEADS)
@pytest.mark.parametrize("name", data_folders.FOLDERS)
def test_a_file_that_is_no_image_counts_as_missing_and_is_listed(tmp_path, name, what):
    folder = data_folders.FOLDERS[name](tmp_path)
    options = {"triplets": 20} if name == "catalogue" else {}
    source = open_source(name, folder, **options)
    item = sorted(source.images)[0]
    path = source.images[item]
    path.write_bytes(HEADS[what])
    source = open_source(name, folder, **options)
    assert item in source.missing and path not in source.images.values()
    report = source.check()
    assert (str(path), "0 bytes" if not HEADS[what] else "not an image") in report.broken
    assert not report.ok


def test_a_damaged_image_stops_with_what_to_do_and_names_the_file_once(tmp_path):
    folder = data_folders.fashioniq(tmp_path)
    path = folder / "images/B0.png"
    path.write_bytes(path.read_bytes()[:40])
    source = open_source("fashioniq", folder)
    assert "B0" not in source.missing
    with pytest.raises(ImageError) as caught:
        source.load("B0", (4, 4))
    assert str(caught.value).count("B0.png") == 1
    assert str(caught.value).endswith("or delete the file to go on without the image")
    ((file, reason),) = source.check().broken
    assert file == str(path) and "B0.png" not in reason and reason.startswith("damaged or incomplete")


def test_images_of_other_formats_and_damaged_ones_are_not_missing(tmp_path):
    heads = {
        "heic": b"\0\0\0\x18ftypheic",
        "tiff": b"II*\0rest",
        "jpeg": b"\xff\xd8\xffcut",
        "png": b"\x89PNG",
        "bmp": b"BM",
    }
    paths = [tmp_path / name for name in (*heads, "absent")]
    for path, head in zip(paths, heads.values(), strict=False):
        path.write_bytes(head)
    assert dead_files(paths) == {}


def test_a_locked_folder_and_a_looping_link_are_left_out_and_told(tmp_path, monkeypatch, capsys):
    folder = data_folders.fashioniq(tmp_path)
    for place in ("images/lost+found", "images/dress/locked"):
        (folder / place).mkdir(parents=True)
    (folder / "images/loop").symlink_to("loop")
    (folder / "images/gone").symlink_to("nowhere")
    (folder / "images/again").symlink_to(folder)
    real = os.scandir

    def scandir(path):
        if Path(path).name in ("lost+found", "locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = open_source("fashioniq", folder)
    assert source.missing == () and len(source.images) == 5
    skipped = source.check().skipped
    assert {Path(path).name: reason for path, reason in skipped} == {
        "lost+found": "Permission denied",
        "locked": "Permission denied",
        "loop": "Too many levels of symbolic links",
    }
    (note,) = source.notes
    assert note.startswith("3 folders or files could not be read, the rest is used: ") and "lost+found" in note
    with pytest.raises(SystemExit):
        app.main(["data", "check", "fashioniq", str(folder)])
    assert "3 unread places: " in capsys.readouterr().out


def test_a_file_name_that_no_file_can_have_is_a_missing_image(tmp_path):
    folder = data_folders.queryset(tmp_path)
    write(
        folder / "items.csv", f"id,file,split\na,{'x' * 5000}.png,val\nb,,val\nc,images/c.png,val\nd,,train\ne,,train\n"
    )
    assert open_source("queryset", folder, images=folder / "images").missing == ("a",)
