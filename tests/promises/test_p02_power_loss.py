"""P2: a gallery that is cut or zeroed is reported, never served as another, and can be repaired.

Power cuts while it is written, and earlier states, are P1's.
Seen to fail with `_stated_size` of `Salvage` returning 0: nothing of a cut file was kept.
"""

import random
from pathlib import Path

import pytest

from nsfse_runtime.errors import IntegrityError, NsfseError, OutputError, UsageError
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.repair import repair, verify
from tests.galleries import ColourScorer, save_image, save_images
from tests.promises.counts import count

LENGTHS = count(9, 100)
DAMAGE = {
    "cut": lambda data, at: data[:at],
    "zero tail": lambda data, at: data[:at] + bytes(len(data) - at),
    "zero head": lambda data, at: bytes(at) + data[at:],
}


def served(gallery: Gallery) -> tuple:
    """Return all that a gallery gives."""
    snapshot = gallery.snapshot
    regions = snapshot.targets(range(len(snapshot))).regions.tobytes()
    info = {key: value for key, value in gallery.info().items() if key not in ("path", "bytes", "generation")}
    return snapshot.ids, snapshot.metadata, snapshot.vectors.tobytes(), regions, gallery.failures(), info


def write_table(path: Path, names: list[str]) -> Path:
    path.write_text("id,colour\n" + "".join(f"{name},c{number}\n" for number, name in enumerate(names)))
    return path


@pytest.mark.parametrize("mode", DAMAGE)
def test_a_damaged_file_is_an_error_and_is_repaired(tmp_path: Path, mode: str) -> None:
    scorer, names = ColourScorer(), save_images(tmp_path / "photos", 90)
    with Gallery.open(tmp_path / "g", scorer, create=True) as gallery:
        gallery.sync(tmp_path / "photos", metadata=write_table(tmp_path / "t.csv", names))
        expected = served(gallery)
    whole, kept = (tmp_path / "g").read_bytes(), set()
    for step in range(1, LENGTHS):
        at = len(whole) * step // LENGTHS + step * 37 % 511
        folder = tmp_path / f"{step}"
        folder.mkdir()
        path = folder / "g"
        path.write_bytes(DAMAGE[mode](whole, at))
        try:
            with Gallery.open(path) as damaged:
                assert served(damaged) == expected  # what was lost was empty
                continue
        except IntegrityError:
            assert verify(path).faults
        scorer.encoded = 0
        report = repair(path, tmp_path / "photos", scorer)
        assert report.kept + report.encoded == 90 and not set(report.gone) & set(names) and not report.problem
        assert scorer.encoded == report.encoded
        assert Path(report.set_aside).read_bytes() == DAMAGE[mode](whole, at)
        assert verify(path).faults == []
        with Gallery.open(path) as repaired:
            ids, metadata, *features = served(repaired)
            assert (ids, *features[:2]) == (expected[0], *expected[2:4])
            lost = {name for name, values in zip(ids, metadata, strict=True) if not values}
            assert lost == set(report.without_metadata)
            assert all(values in ({}, right) for values, right in zip(metadata, expected[1], strict=True))
        kept.add(report.kept)
    assert mode == "zero head" or max(kept) > 0


def test_a_repair_keeps_what_checks_and_says_what_is_gone(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    names = list(gallery.ids)
    gallery.sync(photos, metadata=write_table(tmp_path / "t.csv", names))
    vectors = gallery.snapshot.vectors[[3, 4]]
    gallery.close()
    data = bytearray(gallery.path.read_bytes())
    for vector in vectors:
        data[data.index(vector.tobytes())] ^= 1
    at = data.index(b'"c7"')
    data[at + 1 : at + 3] = b"d7"
    gallery.path.write_bytes(data)
    (photos / names[4]).unlink()
    found = verify(gallery.path)
    assert any(f"the entry of {names[7]}" in fault for fault in found.faults)
    assert [fault for fault in found.faults if fault.endswith("has no features that can be read")] == [
        f"items: {name} has no features that can be read" for name in (names[3], names[4])
    ]
    scorer = ColourScorer()
    report = repair(gallery.path, None, scorer)  # the folder is the one that it remembers
    assert (report.kept, scorer.encoded) == (22, 2)
    assert (report.gone, report.without_metadata) == ([names[4]], [names[7]])
    with Gallery.open(gallery.path) as repaired:
        row = repaired.snapshot.row(names[3])
        assert repaired.snapshot.metadata[row] == {"colour": "c3"}
    assert repair(gallery.path, None, scorer).faults == []


def test_a_repair_without_folder_or_bundle_keeps_what_checks(gallery: Gallery, photos: Path) -> None:
    vector = gallery.snapshot.vectors[3]
    gallery.close()
    data = gallery.path.read_bytes()
    at = data.index(vector.tobytes())
    gallery.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    report = repair(gallery.path, None, None)
    assert report.kept == 24 and "index the folder" in report.problem and len(report.gone) == 1
    with Gallery.open(gallery.path, ColourScorer()) as repaired:
        assert len(repaired) == 24 and repaired.sync(photos).encoded == 1


def test_a_gallery_that_lost_its_facts_needs_bundle_and_folder(gallery: Gallery, photos: Path) -> None:
    gallery.close()
    gallery.path.write_bytes(bytes(9000) + gallery.path.read_bytes()[9000:])
    with pytest.raises(UsageError, match="name both: GALLERY FOLDER -b BUNDLE"):
        repair(gallery.path, photos, None)
    assert repair(gallery.path, photos, ColourScorer()).encoded == 25


def test_other_files_are_not_repaired(tmp_path: Path, gallery: Gallery, photos: Path) -> None:
    photo = save_image(tmp_path / "photo.png", 1)
    before = photo.read_bytes()
    for check in (verify, lambda path: repair(path, photos, ColourScorer())):
        with pytest.raises(IntegrityError, match="is not a gallery"):
            check(photo)
        with pytest.raises(NsfseError, match="no gallery at"):
            check(tmp_path / "nothing")
    assert photo.read_bytes() == before
    vector = gallery.snapshot.vectors[3]
    gallery.close()
    with pytest.raises(UsageError, match="features of another bundle"):
        data = gallery.path.read_bytes()
        at = data.index(vector.tobytes())
        gallery.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        repair(gallery.path, photos, ColourScorer("another"))


def test_a_repair_that_fails_leaves_the_gallery_as_it_was(gallery: Gallery, photos: Path, monkeypatch) -> None:
    gallery.close()
    data = bytearray(gallery.path.read_bytes())
    for at in random.Random(1).sample(range(8192, len(data)), 40):
        data[at] ^= 255
    gallery.path.write_bytes(data)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nsfse_runtime.gallery.store.GalleryTables.delete_unused_contents", fails)
    with pytest.raises(OutputError, match="No space left on device"):
        repair(gallery.path, photos, ColourScorer())
    assert gallery.path.read_bytes() == data
    monkeypatch.undo()
    assert repair(gallery.path, photos, ColourScorer()).faults and verify(gallery.path).faults == []
