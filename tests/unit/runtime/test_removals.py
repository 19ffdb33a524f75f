"""No vanished disk, stray file or empty table empties a gallery unasked; what is left out stays out."""

import os
import shutil
from pathlib import Path

import pytest

from nsfse_runtime.errors import DataError, InputError, UsageError
from nsfse_runtime.gallery import scan as folder_module
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.scan import clean_globs, is_left_out, list_folder
from tests.galleries import ColourScorer, save_image, save_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_images(tmp_path / "photos", 25)  # shelf00: 10, shelf01: 10, shelf02: 5
    return tmp_path / "photos"


@pytest.fixture
def gallery(tmp_path: Path, photos: Path) -> Gallery:
    gallery = Gallery.open(tmp_path / "g", ColourScorer(), create=True)
    table = tmp_path / "all.csv"
    names = [path.relative_to(photos).as_posix() for path in photos.rglob("*.png")]
    table.write_text("file,kind\n" + "".join(f"{name},dress\n" for name in names))
    gallery.sync(photos, metadata=table)
    return gallery


def empty(folder: Path) -> None:
    for path in list(folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def refused(gallery: Gallery, photos: Path, reason: str, left: int = 0) -> None:
    """Check that a sync is refused in one line, changes nothing, and is done where it is allowed."""
    generation, count = gallery.info()["generation"], len(gallery)
    with pytest.raises(InputError, match=reason) as error:
        gallery.sync(photos)
    assert "--allow-removals" in str(error.value) and "\n" not in str(error.value)
    assert gallery.info()["generation"] == generation
    report = gallery.sync(photos, allow_removals=True)
    assert len(gallery) == left and report.removed + len(report.failed) >= count - left


@pytest.mark.parametrize("stray", [None, "README", "Thumbs.db", ".hidden"])
def test_an_unmounted_disk(gallery: Gallery, photos: Path, stray: str | None) -> None:
    empty(photos)
    if stray:
        (photos / stray).write_text("disk not mounted")
    refused(gallery, photos, "is (the|a) disk (not )?mounted")


def test_a_mount_below_the_folder(gallery: Gallery, photos: Path) -> None:
    empty(photos / "shelf00")
    refused(gallery, photos, r"10 of 10 images are gone from .*shelf00", 15)


def test_a_small_folder_that_is_still_there_but_empty(gallery: Gallery, photos: Path) -> None:
    empty(photos / "shelf02")
    refused(gallery, photos, r"5 of 5 images are gone from .*shelf02", 20)


def test_most_of_one_folder(gallery: Gallery, photos: Path) -> None:
    for number in range(6):
        (photos / f"shelf00/item{number:04d}.png").unlink()
    refused(gallery, photos, "6 of 10 images are gone", 19)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(900)])
def test_files_that_lost_their_content(gallery: Gallery, photos: Path, content: bytes) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(content)
    refused(gallery, photos, "25 of 25 images")


def test_a_mount_of_few_images_is_remembered(gallery: Gallery, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = folder_module._disk
    save_image(photos / "nas/deep/one.png", 80)
    save_image(photos / "nas/two.png", 81)
    with monkeypatch.context() as mounted:
        mounted.setattr(folder_module, "_disk", lambda path: disk(path) + ("/nas" in str(path)))
        gallery.sync(photos)
        (photos / "nas/two.png").unlink()
        assert gallery.sync(photos).removed == 1  # still mounted: deleted by somebody
    empty(photos / "nas")
    refused(gallery, photos, r"1 of 1 images are gone from .*nas", 25)


def test_what_is_moved_is_not_gone(gallery: Gallery, photos: Path) -> None:
    (photos / "all").mkdir()
    for path in list(photos.glob("shelf*")):
        path.rename(photos / "all" / path.name)
    report = gallery.sync(photos)
    assert (report.renamed, report.removed, report.encoded) == (25, 0, 0)
    assert gallery.snapshot.metadata[0] == {"kind": "dress"}


def test_ordinary_deletions_need_no_word(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / "shelf02")
    (photos / "shelf00/item0003.png").unlink()
    assert gallery.sync(photos).removed == 6
    few = Gallery.open(tmp_path / "few", ColourScorer(), create=True)
    save_images(tmp_path / "some", 3, first=900)
    few.sync(tmp_path / "some")
    for name in ("item0900", "item0901"):
        (tmp_path / f"some/shelf90/{name}.png").unlink()
    assert few.sync(tmp_path / "some").removed == 2
    save_image(tmp_path / "some/new.png", 950)
    (tmp_path / "some/shelf90/item0902.png").unlink()
    assert few.sync(tmp_path / "some").removed == 1 and few.ids == ("new.png",)
    (tmp_path / "some/new.png").rename(tmp_path / "new.png")
    (tmp_path / "some/notes.txt").write_text("all gone")
    refused(few, tmp_path / "some", "1 of 1 images")


def test_a_table_that_would_clear_the_metadata(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    table, generation = tmp_path / "t.csv", gallery.info()["generation"]
    table.write_text("id,kind\n")
    with pytest.raises(DataError, match="no rows"):
        gallery.sync(photos, metadata=table)
    table.write_text("id,kind\n" + "".join(f"{name},\n" for name in gallery.ids[:13]))
    with pytest.raises(DataError, match=r"metadata of 13 of 25.*--allow-removals"):
        gallery.sync(photos, metadata=table)
    assert gallery.info()["generation"] == generation
    gallery.sync(photos, metadata=table, allow_removals=True)
    assert sum(map(bool, gallery.snapshot.metadata)) == 12


def test_system_folders_and_globs_are_left_out_and_remembered(gallery: Gallery, photos: Path) -> None:
    for name in (
        "@eaDir/a.png/T.png",
        "shelf00/@EADIR/b.png",
        "$Recycle.Bin/c.png",
        "lost+found/d.png",
        "#recycle/e.png",
    ):
        save_image(photos / name, 300)
    save_image(photos / "node_modules.png", 301)
    report = gallery.sync(photos)
    assert report.added == 1 and sum(report.left_out.values()) == 5 and report.excluded == 0
    report = gallery.sync(photos, exclude=["./shelf01/", "*0001.png"])
    assert (report.excluded, report.removed) == (11, 0) and report.left_out["*0001.png"] == 1
    assert gallery.info()["exclude"] == ["shelf01/", "*0001.png"]
    assert gallery.sync(photos).added == 0 and len(gallery) == 15
    assert gallery.sync(photos, exclude=[""]).added == 11 and gallery.info()["exclude"] == []


def test_images_of_a_system_folder_leave_an_older_gallery(
    gallery: Gallery, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        save_image(photos / f"@eaDir/{number}.png", 400 + number)
    with monkeypatch.context() as older:
        older.setattr(folder_module, "_SYSTEM", set())
        assert gallery.sync(photos).added == 40
    report = gallery.sync(photos)
    assert (report.excluded, report.removed, len(gallery)) == (40, 0, 25)


@pytest.mark.parametrize(
    ("path", "glob", "out"),
    [
        ("a/b.png", "b.png", True),
        ("a/b.png", "*.png", True),
        ("a/b.png", "a", True),
        ("a/b.png", "a/", True),
        ("a", "a/", False),
        ("a/b.png", "a/*", True),
        ("x/a/b.png", "a/*", False),
        ("x/a/b.png", "a/", True),
        ("a/b/c.png", "a/*.png", True),
        ("a/b.png", "/a/b.png", True),
        ("a/b.PNG", "*.png", False),
        ("a\u0301/b.png", "\u00e1", True),
    ],
)
def test_globs(path: str, glob: str, out: bool) -> None:
    assert is_left_out(path, clean_globs([glob])) == out


def test_a_listing_agrees_with_the_rules(tmp_path: Path) -> None:
    names = save_images(tmp_path, 12)
    globs = clean_globs(["shelf01", "item0002*"])
    assert list(list_folder(tmp_path, (), globs).files) == [name for name in names if not is_left_out(name, globs)]


@pytest.mark.parametrize(("name", "reason"), [("a.jpg", "is a file, not a folder"), ("a.zip", "is an archive")])
def test_a_file_in_place_of_the_folder(gallery: Gallery, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=reason):
        gallery.sync(tmp_path / name)
    assert os.path.exists(tmp_path / "g")
