"""P16: files of earlier versions open and give the same answers; a newer format is refused with both versions.

Bundles and runs of earlier versions: tests/golden/test_runtime_v0.py and tests/unit/training/test_run_of_format_1.py.
Seen to fail with the floats of format 1 in another order, and with the trigger `content_in` left out of the migration.
"""

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime.errors import IntegrityError, VersionError
from nsfse_runtime.gallery import gallery_file, schema, store
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.repair import repair, verify
from nsfse_runtime.images.decode import load_image
from tests.galleries import ColourScorer, save_image

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.name for path in (GOLDEN / "images").iterdir())
COLOURS = {"1-green-bag.png": "green", "2-brown-dress.png": "brown", "6-blue-trousers.png": "blue, dark"}


def check(gallery: Gallery, scorer: ColourScorer) -> None:
    """Check that a gallery is as it was indexed."""
    expected = scorer.encode_images(np.stack([load_image(GOLDEN / "images" / n, scorer.image_size) for n in NAMES]))
    assert list(gallery.ids) == NAMES
    assert gallery.snapshot.metadata == tuple({"colour": COLOURS[n]} if n in COLOURS else {} for n in NAMES)
    np.testing.assert_allclose(gallery.snapshot.vectors, expected.vectors, atol=1e-5)
    np.testing.assert_allclose(gallery.snapshot.targets(range(6)).regions, expected.regions, atol=4e-3)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_gallery_of_each_format_is_read_and_brought_to_the_present_one(tmp_path: Path, version: int) -> None:
    scorer, path = ColourScorer(), tmp_path / "g"
    shutil.copy(GOLDEN / f"galleries/format-{version}.gallery", path)
    before = path.read_bytes()
    with Gallery.open(path, scorer) as gallery:
        check(gallery, scorer)
        info = gallery.info()
        facts = {key: info[key] for key in ("format_version", "images", "distinct", "failed", "folder")}
        assert facts == {"format_version": version, "images": 6, "distinct": 6, "failed": 1, "folder": "/photos"}
        assert [name for name, _ in gallery.failures()] == ["notes.txt"]
    assert path.read_bytes() == before and verify(path).faults == []
    shutil.copytree(GOLDEN / "images", tmp_path / "photos")
    (tmp_path / "photos/notes.txt").write_text("no image")
    scorer.encoded = 0
    with Gallery.open(path, scorer) as gallery:
        gallery.sync(tmp_path / "photos")
        assert (scorer.encoded, gallery.info()["format_version"]) == (0, 3)
        check(gallery, scorer)
        save_image(tmp_path / "photos/new.png", 5)
        (tmp_path / "photos" / NAMES[0]).unlink()
        gallery.sync(tmp_path / "photos")
        assert gallery.info()["distinct"] == len(gallery) == 6
    assert verify(path).faults == []


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_damaged_gallery_of_each_format_is_repaired(tmp_path: Path, version: int) -> None:
    scorer, path = ColourScorer(), tmp_path / "g"
    data = (GOLDEN / f"galleries/format-{version}.gallery").read_bytes()
    at = data.index(b"green", data.index(b'"colour"'))
    path.write_bytes(data[:at] + b"g" + b"e" * 4 + data[at + 5 :])
    report = repair(path, GOLDEN / "images", scorer)
    assert (report.kept, report.without_metadata) == (5, ["1-green-bag.png"]) and verify(path).faults == []
    with Gallery.open(path) as gallery:
        assert list(gallery.ids) == NAMES and gallery.info()["format_version"] == 3


def test_another_bundle_is_refused_and_nothing_is_deleted(gallery: Gallery, photos: Path) -> None:
    with pytest.raises(VersionError, match="features of another bundle"):
        Gallery.open(gallery.path, ColourScorer("another"), create=True)
    with pytest.raises(VersionError, match="features of another bundle"):
        gallery.sync(photos, ColourScorer("another"))
    assert len(Gallery.open(gallery.path)) == 25


def test_a_newer_format_names_both_versions(gallery: Gallery) -> None:
    gallery.close()
    connection = sqlite3.connect(gallery.path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(VersionError, match="gallery format 9, this nsfse reads up to 3"):
        Gallery.open(gallery.path)


def test_a_migration_brings_an_older_gallery_to_a_newer_format(
    gallery: Gallery, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = "CREATE TABLE notes (id TEXT PRIMARY KEY)"

    def add_a_table(connection: sqlite3.Connection) -> int:
        connection.execute(notes)
        return 4

    monkeypatch.setattr(gallery_file, "FORMAT_VERSION", 4)
    monkeypatch.setitem(schema._SCHEMAS, 4, (*schema._SCHEMAS[3], notes))
    monkeypatch.setitem(schema.MIGRATIONS, 3, add_a_table)
    ids = gallery.ids
    assert gallery.info()["format_version"] == 3  # reading migrates nothing
    assert gallery.sync(photos).encoded == 0
    assert gallery.info()["format_version"] == 4 and gallery.ids == ids
    with store.GalleryTables.open_reader(gallery.path) as opened:
        assert opened.count("notes") == 0


def test_a_migration_that_fails_leaves_the_gallery_as_it_was(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: sqlite3.Connection) -> int:
        connection.execute("DELETE FROM items")
        connection.execute("DELETE FROM no_such_table")
        return 4

    monkeypatch.setitem(schema.MIGRATIONS, 3, fail)
    with pytest.raises(IntegrityError, match="no such table"):
        store.GalleryTables.open_writer(gallery.path)
    gallery.refresh()
    assert len(gallery) == 25 and gallery.info()["format_version"] == 3
