"""A gallery follows its folder, keeps to one model, tells of damage, and has one writer and many readers."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime.errors import (
    DataError,
    InputError,
    IntegrityError,
    NotFoundError,
    OutputError,
    UsageError,
)
from nsfse_runtime.gallery import reader, sync
from nsfse_runtime.gallery.entries import patch_metadata
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.report import SyncProgress
from nsfse_runtime.images.decode import load_image
from nsfse_runtime.types import Pixels, TargetFeatures
from tests.galleries import ColourScorer, save_image, save_images


def test_a_sync_holds_each_image_as_the_scorer_sees_it(gallery: Gallery, photos: Path, scorer: ColourScorer) -> None:
    assert list(gallery.ids) == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    pixels = np.stack([load_image(photos / name, scorer.image_size) for name in gallery.ids])
    expected = scorer.encode_images(pixels)
    np.testing.assert_allclose(gallery.snapshot.vectors, expected.vectors, atol=1e-6)
    rows = [7, 0, 24, 7]
    targets = gallery.snapshot.targets(rows)
    assert targets.regions.dtype == np.float32
    np.testing.assert_array_equal(targets.vectors, gallery.snapshot.vectors[rows])
    np.testing.assert_allclose(targets.regions, expected.regions[rows], atol=4e-3)
    assert gallery.snapshot.path_of(7) == photos / gallery.ids[7]


def test_bad_files_are_listed_with_their_reason_and_not_tried_again(
    gallery: Gallery, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "notes.txt").write_text("not an image")
    (photos / "empty.jpg").touch()
    (photos / ".hidden.jpg").touch()
    (photos / ".cache").mkdir()
    (photos / ".cache/thumb.jpg").touch()
    (photos / "cut.png").write_bytes((photos / "shelf00/item0001.png").read_bytes()[:60])
    (photos / "link.png").symlink_to(photos / "shelf00/item0001.png")
    (photos / "loop").symlink_to(photos)
    os.mkfifo(photos / "pipe.png")
    for path in ("notes.txt", "empty.jpg", "cut.png"):
        os.utime(photos / path, (1, 1))
    expected = ["cut.png", "empty.jpg", "link.png", "loop", "notes.txt", "pipe.png"]
    reasons = dict(gallery.sync(photos).failed)
    assert sorted(reasons) == expected and len(gallery) == 25
    assert (
        reasons["empty.jpg"] == "the file is empty"
        and "damaged" in reasons["cut.png"]
        and "link" in reasons["link.png"]
    )
    monkeypatch.setattr(reader.decode, "load_image", None)  # nothing is decoded again
    assert dict(gallery.sync(photos).failed) == reasons
    assert [name for name, _ in gallery.failures()] == ["cut.png", "empty.jpg", "notes.txt"]
    monkeypatch.undo()
    monkeypatch.setattr(sync, "_DECODER", "a later one")
    shutil.copy(photos / "shelf00/item0002.png", photos / "cut.png")
    report = gallery.sync(photos)
    assert sorted(dict(report.failed)) == expected[1:] and report.added == 1
    assert [name for name, _ in gallery.failures()] == ["empty.jpg", "notes.txt"]


def test_an_image_that_goes_bad_leaves_the_gallery(gallery: Gallery, photos: Path) -> None:
    (photos / "shelf00/item0001.png").write_bytes(b"overwritten")
    report = gallery.sync(photos)
    assert [name for name, _ in report.failed] == ["shelf00/item0001.png"]
    assert "shelf00/item0001.png" not in gallery.ids


def test_what_cannot_be_read_this_time_is_kept(gallery: Gallery, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photos / "shelf00/item0001.png"
    os.utime(path)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(reader.decode, "open_regular", fails)
    assert gallery.sync(photos).failed == [("shelf00/item0001.png", "it cannot be read: Input/output error")]
    assert "shelf00/item0001.png" in gallery.ids and gallery.failures() == []
    monkeypatch.undo()
    assert gallery.sync(photos).failed == []


def test_a_disk_that_fails_in_mid_image_is_not_the_images_fault(gallery: Gallery, photos: Path, monkeypatch) -> None:
    save_image(photos / "new.png", 400)

    class Failing(reader.decode.BytesIO):
        def read(self, *_: int) -> bytes:
            raise OSError(5, "Input/output error")

    load = reader.decode.load_image
    monkeypatch.setattr(reader.decode, "load_image", lambda stream, size: load(Failing(b"x" * 99), size))
    assert gallery.sync(photos).failed == [("new.png", "it cannot be read: Input/output error")]
    assert gallery.failures() == []


def test_a_folder_that_cannot_be_looked_into_loses_nothing(gallery: Gallery, photos: Path, monkeypatch) -> None:
    scandir = os.scandir

    def shut(path: Path) -> object:
        if Path(path).name == "shelf01":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", shut)
    report = gallery.sync(photos)
    assert report.failed == [("shelf01/", "the folder cannot be read: Permission denied")]
    assert report.removed == 0 and len(gallery) == 25


def test_an_empty_or_foreign_folder_does_not_wipe_the_gallery(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "unmounted").mkdir()
    with pytest.raises(InputError, match=r"holds no files but .* has 25 images; is the disk mounted"):
        gallery.sync(tmp_path / "unmounted")
    save_images(tmp_path / "other", 3, first=500)
    with pytest.raises(UsageError, match="none of its images"):
        gallery.sync(tmp_path / "other")
    with pytest.raises(NotFoundError, match="no folder at"):
        gallery.sync(tmp_path / "gone")
    assert len(gallery) == 25


def test_the_gallery_may_lie_in_its_own_folder(photos: Path, scorer: ColourScorer) -> None:
    with Gallery.open(photos / "own.gallery", scorer, create=True) as gallery:
        gallery.sync(photos)
        assert gallery.sync(photos).failed == []


def test_odd_names_survive(tmp_path: Path, scorer: ColourScorer) -> None:
    names = ["a b.png", "日本/ü.png", "<img src=x>.png", "new\nline.png", "quote's\".png", "e\u0301.png"]
    for seed, name in enumerate(names):
        save_image(tmp_path / "photos" / name, seed)
    save_image(Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/\xff.png")), 50)
    gallery = Gallery.open(tmp_path / "a ?#%.gallery", scorer, create=True)
    report = gallery.sync(tmp_path / "photos")
    assert report.failed == [("\\udcff.png", "its name is not valid UTF-8; rename it")]
    assert sorted(gallery.ids) == sorted(names) and all(
        gallery.snapshot.path_of(row).is_file() for row in range(len(names))
    )


def write_table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_metadata_by_path_or_unique_name(gallery: Gallery, photos: Path, tmp_path: Path, scorer: ColourScorer) -> None:
    table = write_table(
        tmp_path / "t.csv",
        'id,category,note\nitem0001,dress,"a, b"\nshelf00/item0002.png,shoe,\nitem0003.jpg,dress,\nnobody,bag,\n',
    )
    report = gallery.sync(photos, metadata=table)
    assert report.unmatched == ["nobody"] and report.encoded == 0 and gallery.snapshot.columns == ("category", "note")
    assert [gallery.snapshot.metadata[row] for row in (1, 2, 4)] == [
        {"category": "dress", "note": "a, b"},
        {"category": "shoe"},
        {},
    ]
    assert np.flatnonzero(gallery.snapshot.mask({"category": "dress"})).tolist() == [1, 3]
    assert np.flatnonzero(gallery.snapshot.mask({"category": "dress, shoe"})).tolist() == [1, 2, 3]
    assert np.flatnonzero(gallery.snapshot.mask({"category": "dress", "note": ["a, b"]})).tolist() == [1]
    assert not gallery.snapshot.mask({"category": "dres"}).any() and gallery.snapshot.mask(None).all()
    with pytest.raises(UsageError, match="no column colour; columns: category, note"):
        gallery.snapshot.mask({"colour": "red"})
    (photos / "shelf00/item0001.png").rename(photos / "moved.png")
    gallery.sync(photos)
    assert gallery.snapshot.metadata[gallery.snapshot.row("moved")] == {"category": "dress", "note": "a, b"}


def test_a_table_changes_what_its_rows_say_and_nothing_else(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    first, second, third = gallery.ids[:3]
    table = tmp_path / "t.csv"
    gallery.sync(photos, metadata=write_table(table, f"id,price,label\n{first},30,Dress\n{second},20,Bag\n"))
    assert patch_metadata(gallery.path, first, {"stock": "3", "label": "Skirt"}) == (
        True,
        {"price": "30", "label": "Skirt", "stock": "3"},
    )
    assert patch_metadata(gallery.path, third, {"label": ""}) == (False, {})
    report = gallery.sync(photos, metadata=write_table(table, f"id,price,label\n{first},25,\n"))
    assert (report.metadata_changed, report.columns_changed) == (1, {"label": 1, "price": 1})
    assert report.metadata_kept == 1  # `second` has no row any more
    assert gallery.snapshot.metadata[:3] == ({"price": "25", "stock": "3"}, {"price": "20", "label": "Bag"}, {})
    assert patch_metadata(gallery.path, first, None) == (True, {})
    with pytest.raises(NotFoundError, match="no image nowhere"):
        patch_metadata(gallery.path, "nowhere", {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,category\nx,y\n", "no column id or file"),
        ("id,category\nitem0001,y,z\n", "line 2: more cells"),
        ("id,category\n,y\n", "line 2: no id and no file"),
        ("id,category\nitem0001,y\nshelf00/item0001.png,z\n", "twice"),
        ('id,category\n"item0001,y\n', "cannot be read as CSV"),
    ],
)
def test_a_table_not_in_its_form_changes_nothing(
    gallery: Gallery, photos: Path, tmp_path: Path, text: str, reason: str
) -> None:
    generation = gallery.info()["generation"]
    with pytest.raises(DataError, match=reason):
        gallery.sync(photos, metadata=write_table(tmp_path / "t.csv", text))
    assert gallery.info()["generation"] == generation
    with pytest.raises(NotFoundError, match="no table"):
        gallery.sync(photos, metadata=tmp_path / "gone.csv")


def test_rows_by_name(gallery: Gallery, photos: Path) -> None:
    assert (
        gallery.snapshot.row("shelf01/item0012.png")
        == gallery.snapshot.row("item0012")
        == gallery.snapshot.row("shelf01/item0012")
        == 12
    )
    save_image(photos / "shelf00/item0012.png", 700)
    gallery.sync(photos)
    with pytest.raises(UsageError, match="2 images are called item0012"):
        gallery.snapshot.row("item0012")
    with pytest.raises(NotFoundError, match="has no image item9"):
        gallery.snapshot.row("item9")


def test_progress_tells_what_is_committed(tmp_path: Path, photos: Path, scorer: ColourScorer) -> None:
    path = tmp_path / "g"
    gallery = Gallery.open(path, scorer, create=True)
    steps: list[SyncProgress] = []

    def look(progress: SyncProgress) -> None:
        steps.append(progress)
        with Gallery.open(path) as other:
            assert set(progress.ids) <= set(other.ids)

    gallery.sync(photos, batch=10, progress=look)
    assert [(step.done, step.total, len(step.ids)) for step in steps] == [
        (0, 25, 0),
        (10, 25, 10),
        (20, 25, 10),
        (25, 25, 5),
    ]


def test_features_that_are_no_numbers_are_refused(tmp_path: Path, photos: Path) -> None:
    class Broken(ColourScorer):
        def encode_images(self, pixels: Pixels) -> TargetFeatures:
            features = super().encode_images(pixels)
            features.vectors[0] = np.nan
            return features

    gallery = Gallery.open(tmp_path / "g", Broken(), create=True)
    with pytest.raises(IntegrityError, match="no numbers"):
        gallery.sync(photos)
    assert len(gallery) == 0


def test_opening_what_is_not_there(tmp_path: Path, scorer: ColourScorer) -> None:
    with pytest.raises(NotFoundError, match=r"no gallery at .*nsfse index"):
        Gallery.open(tmp_path / "g", scorer)
    with pytest.raises(UsageError, match="needs a bundle"):
        Gallery.open(tmp_path / "g", create=True)
    with pytest.raises(OutputError, match="is not a folder"):
        Gallery.open(tmp_path / "no/g", scorer, create=True)
    with pytest.raises(OutputError, match="cannot be opened"):
        Gallery.open(tmp_path, scorer, create=True)


def test_a_gallery_killed_while_it_was_made_is_made_again(tmp_path: Path, scorer: ColourScorer) -> None:
    path = tmp_path / "g"
    path.touch()
    with pytest.raises(NotFoundError):
        Gallery.open(path, scorer)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert path.stat().st_size > 0
    assert len(Gallery.open(path, scorer, create=True)) == 0


def test_other_files_are_no_galleries_and_stay_as_they_are(tmp_path: Path, scorer: ColourScorer) -> None:
    text, database = tmp_path / "notes", tmp_path / "other.db"
    text.write_text("hello " * 500)
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = database.read_bytes()
    for path in (text, database):
        with pytest.raises(IntegrityError, match="is not a gallery"):
            Gallery.open(path, scorer, create=True)
    assert database.read_bytes() == before


def test_info_and_the_bundle_it_remembers(tmp_path: Path, photos: Path, scorer: ColourScorer) -> None:
    gallery = Gallery.open(tmp_path / "g", scorer, create=True, bundle_path=tmp_path / "bundle")
    assert gallery.info()["images"] == 0 and len(gallery) == 0 and gallery.snapshot.vectors.shape[0] == 0
    gallery.sync(photos)
    info = gallery.info()
    assert json.loads(json.dumps(info)) == info
    assert (info["images"], info["dim"], info["regions"], info["folder"]) == (25, 8, 3, str(photos))
    assert Gallery.open(tmp_path / "g").bundle_path == tmp_path / "bundle"
    with pytest.raises(UsageError, match="opened without a bundle"):
        Gallery.open(tmp_path / "g").sync(photos)
