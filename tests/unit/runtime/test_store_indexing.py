"""A folder indexed into a store: what a file's sync promises, as far as a store can."""

from pathlib import Path

import pytest

from nsfse_runtime.errors import DataError, InputError, UsageError, VersionError
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.report import SyncProgress
from nsfse_runtime.stores.file import FileStore
from nsfse_runtime.stores.indexing import facts_of, index_folder
from nsfse_runtime.stores.protocol import GalleryStore, all_ids
from tests.galleries import ColourScorer, save_image, save_images


@pytest.fixture
def model() -> ColourScorer:
    return ColourScorer()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_images(tmp_path / "photos", 12)
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path, photos: Path, model: ColourScorer) -> GalleryStore:
    return FileStore(tmp_path / "s.gallery", facts_of(model, "", str(photos.resolve())))


def contents(store: GalleryStore) -> dict[str, tuple[bytes, bytes, bytes, dict[str, str]]]:
    records = store.fetch(list(all_ids(store)))
    return {r.id: (r.sha256, r.vector.tobytes(), r.regions, dict(r.metadata)) for r in records}


def test_a_store_gets_what_a_gallery_file_has(tmp_path, photos, store, model) -> None:
    (photos / "shelf00/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    (photos / "shelf00/copy.png").write_bytes((photos / "shelf00/item0003.png").read_bytes())
    table = tmp_path / "t.csv"
    table.write_text("id,price\n" + "".join(f"shelf00/item000{n}.png,{n}\n" for n in range(1, 9)))
    seen: list[SyncProgress] = []
    report = index_folder(store, photos, model, table=table, progress=seen.append, batch=5)
    file = Gallery.open(tmp_path / "f.gallery", ColourScorer(), create=True)
    expected = file.sync(photos, metadata=table)
    assert contents(store) == contents(FileStore(file.path))
    assert (report.added, report.encoded, [name for name, _ in report.failed]) == (13, 12, ["shelf00/broken.png"])
    assert (report.added, report.failed) == (expected.added, expected.failed)
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total == 14
    assert {name for progress in seen for name in progress.ids} == set(all_ids(store))


def test_what_is_known_is_not_encoded_again(tmp_path, photos, store, model) -> None:
    index_folder(store, photos, model)
    before, model.encoded = contents(store), 0
    report = index_folder(store, photos, model)
    assert (report.unchanged, report.encoded, model.encoded) == (12, 0, 0) and contents(store) == before
    (photos / "shelf00/item0001.png").rename(photos / "moved.png")
    (photos / "shelf00/item0002.png").unlink()
    save_image(photos / "shelf00/item0003.png", 77)
    table = tmp_path / "t.csv"
    table.write_text("id,price\nshelf00/item0004.png,9\n")
    report = index_folder(store, photos, model, table=table)
    done = (report.renamed, report.removed, report.updated, report.added, report.unchanged, report.metadata_changed)
    assert done == (1, 1, 1, 0, 9, 1) and model.encoded == 1
    after = contents(store)
    assert after["moved.png"] == before["shelf00/item0001.png"]
    assert after.keys() == before.keys() - {"shelf00/item0001.png", "shelf00/item0002.png"} | {"moved.png"}
    assert after["shelf00/item0004.png"][3] == {"price": "9"}
    assert store.info().distinct == 11


def test_a_renamed_image_takes_its_metadata_along(tmp_path, photos, store, model) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,price\nshelf00/item0001.png,9\n")
    index_folder(store, photos, model, table=table)
    (photos / "shelf00/item0001.png").rename(photos / "moved.png")
    index_folder(store, photos, model)
    assert contents(store)["moved.png"][3] == {"price": "9"}


def test_an_image_that_becomes_unreadable_goes(photos, store, model) -> None:
    index_folder(store, photos, model)
    (photos / "shelf00/item0001.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    report = index_folder(store, photos, model)
    assert "shelf00/item0001.png" not in contents(store) and len(report.failed) == 1 and report.unchanged == 11


def test_most_images_do_not_go_unless_that_is_allowed(photos, store, model) -> None:
    index_folder(store, photos, model)
    for path in sorted(photos.rglob("*.png"))[:7]:
        path.unlink()
    with pytest.raises(InputError, match=r"7 of 12 images of .* are gone .* nothing was changed; .*--allow-removals"):
        index_folder(store, photos, model)
    assert store.info().images == 12
    assert index_folder(store, photos, model, allow_removals=True).removed == 7
    report = index_folder(store, photos, model, exclude=["shelf01/*"])
    assert report.excluded == 2 and report.removed == 0 and store.info().images == 3


def test_features_that_another_process_deletes_are_encoded_again(photos, store, model) -> None:
    index_folder(store, photos, model)
    shown = "shelf00/item0001.png"
    (photos / "copy.png").write_bytes((photos / shown).read_bytes())
    (photos / shown).unlink()
    link, links = store.link, []

    def deleted_meanwhile(wanted):
        links.append(wanted)
        if len(links) == 1:
            store.delete([shown])
        link(wanted)

    store.link = deleted_meanwhile
    report = index_folder(store, photos, model)
    assert len(links) == 1 and "copy.png" in contents(store) and (report.encoded, report.renamed) == (1, 1)


def test_other_folders_models_and_empty_tables_are_refused(tmp_path, photos, store, model) -> None:
    save_images(tmp_path / "others", 2)
    with pytest.raises(UsageError, match=r"follows .*photos, not .*others; index that one, or this one into another"):
        index_folder(store, tmp_path / "others", model)
    with pytest.raises(VersionError, match="another bundle"):
        index_folder(store, photos, ColourScorer("other"))
    (tmp_path / "t.csv").write_text("id,price\n")
    with pytest.raises(DataError, match="no rows"):
        index_folder(store, photos, model, table=tmp_path / "t.csv")
    assert store.info().images == 0
