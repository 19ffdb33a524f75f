"""P7: an index encodes what is new, and nothing else.

Seen to fail with `known` of the sync returning nothing, and with `take_renamed` returning None.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime.gallery.gallery import Gallery
from tests.galleries import ColourScorer, save_image, save_images
from tests.promises.counts import count


def test_one_more_image_is_one_encode_in_a_large_gallery(tmp_path: Path, scorer: ColourScorer) -> None:
    names = save_images(tmp_path / "photos", count(200, 10_000))
    with Gallery.open(tmp_path / "g", scorer, create=True) as gallery:
        gallery.sync(tmp_path / "photos")
        steps = {
            "added": lambda: save_image(tmp_path / "photos/one-more.png", 10**6),
            "renamed": lambda: (tmp_path / "photos" / names[7]).rename(tmp_path / "photos/other.png"),
            "removed": (tmp_path / "photos" / names[8]).unlink,
            "unchanged": lambda: os.utime(tmp_path / "photos" / names[9]),
        }
        for what, change in steps.items():
            scorer.encoded = 0
            change()
            report = gallery.sync(tmp_path / "photos")
            assert getattr(report, what) >= 1 and scorer.encoded == (what == "added"), what
        assert names[8] not in gallery.ids and len(gallery) == len(names)


def test_only_what_is_new_is_encoded(gallery: Gallery, photos: Path, scorer: ColourScorer) -> None:
    vector = gallery.snapshot.vectors[gallery.snapshot.row("item0003")].copy()
    report = gallery.sync(photos)
    assert (report.unchanged, report.encoded, report.added) == (25, 0, 0)
    save_image(photos / "one-more.png", 99)
    (photos / "shelf00/item0003.png").rename(photos / "renamed.png")
    shutil.copy(photos / "shelf00/item0004.png", photos / "twin.png")
    (photos / "shelf00/item0005.png").unlink()
    save_image(photos / "shelf00/item0006.png", 98, (30, 10))
    os.utime(photos / "shelf00/item0007.png")
    report = gallery.sync(photos)
    counts = (report.added, report.renamed, report.removed, report.updated, report.unchanged, report.encoded)
    assert counts == (2, 1, 1, 1, 22, 2) and scorer.encoded == 2
    np.testing.assert_array_equal(gallery.snapshot.vectors[gallery.snapshot.row("renamed")], vector)
    twins = gallery.snapshot.vectors[[gallery.snapshot.row("twin"), gallery.snapshot.row("shelf00/item0004.png")]]
    np.testing.assert_array_equal(twins[0], twins[1])
    assert "shelf00/item0005.png" not in gallery.ids and "shelf00/item0003.png" not in gallery.ids
    assert gallery.info()["distinct"] == 25 and len(gallery) == 26


def test_images_that_exchange_names_are_not_encoded(gallery: Gallery, photos: Path, scorer: ColourScorer) -> None:
    one, two = photos / "shelf00/item0001.png", photos / "shelf00/item0002.png"
    before = gallery.snapshot.vectors[[1, 2]].copy()
    one.rename(photos / "aside")
    save_image(photos / "x.png", 1000, (40, 20))
    two.rename(one)
    (photos / "aside").rename(two)
    os.utime(one, (1, 1))
    os.utime(two, (2, 2))
    report = gallery.sync(photos)
    assert (report.updated, report.encoded) == (2, 1)
    np.testing.assert_array_equal(gallery.snapshot.vectors[[1, 2]], before[::-1])


@pytest.mark.parametrize(("age", "seen"), [(0.0, 1), (1.9, 1), (2.1, 0)])
def test_a_change_within_the_clocks_tick_is_seen(
    tmp_path: Path, scorer: ColourScorer, monkeypatch: pytest.MonkeyPatch, age: float, seen: int
) -> None:
    path = save_image(tmp_path / "photos/a.bmp", 1)
    stamp = path.stat()
    monkeypatch.setattr("time.time_ns", lambda: stamp.st_mtime_ns + int(age * 1e9))
    gallery = Gallery.open(tmp_path / "g", scorer, create=True)
    gallery.sync(tmp_path / "photos")
    save_image(path, 2)
    os.utime(path, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    assert gallery.sync(tmp_path / "photos").updated == seen


def test_a_folder_that_moved_is_not_encoded_again(gallery: Gallery, photos: Path, scorer: ColourScorer) -> None:
    moved = photos.rename(photos.parent / "moved")
    report = gallery.sync(moved)
    assert report.unchanged == 25 and scorer.encoded == 0 and gallery.snapshot.path_of(0).is_file()
