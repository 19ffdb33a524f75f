"""A bundle is whole or refused, with the reason and what to do."""

import json
from pathlib import Path

import pytest

from nsfse_runtime.errors import IntegrityError, NotFoundError, OutputError, VersionError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.manifest import FILES, FORMAT_VERSION, MANIFEST, Manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(name.encode() * 50)
    manifest = Manifest(
        name="tiny",
        created_with="0.1.0",
        image_size=(48, 64),
        dim=8,
        regions=3,
        max_words=24,
        boundary={"t_c": 0.4, "t_v": 0.3},
    )
    write_manifest(folder, manifest)
    return folder


def test_what_was_written_is_read(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest.image_size == (48, 64) and bundle.manifest.boundary == {"t_c": 0.4, "t_v": 0.3}
    assert bundle.read("text.onnx") == b"text.onnx" * 50
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, MANIFEST])


def test_no_byte_can_flip_unseen(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    for name in (*FILES, MANIFEST):
        path = folder / name
        whole = path.read_bytes()
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            try:
                assert Bundle.open(folder).manifest == manifest, f"{name} at {at}"
                assert name == MANIFEST and whole[at : at + 1].isspace(), f"{name} at {at}"
            except (IntegrityError, VersionError) as error:
                assert "\n" not in str(error)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"short")
    with pytest.raises(IntegrityError, match=rf"{name} is damaged .*export the bundle again"):
        Bundle.open(folder)
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match=rf"{name} is damaged \(No such file"):
        Bundle.open(folder)


def test_a_file_that_changes_after_opening_is_not_handed_out(folder: Path) -> None:
    bundle = Bundle.open(folder)
    (folder / "image.onnx").write_bytes(b"other".ljust(450))
    with pytest.raises(IntegrityError):
        bundle.read("image.onnx")


def test_a_newer_format_names_both_versions(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({"format_version": 7, "files": raw["files"]}))
    with pytest.raises(VersionError, match=rf"format 7, this nsfse reads up to {FORMAT_VERSION}"):
        Bundle.open(folder)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        Bundle.open(tmp_path / "gone")
    with pytest.raises(NotFoundError, match="is not a bundle"):
        Bundle.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match="is not a bundle"):
        Bundle.open(tmp_path / "file")


def test_a_listed_path_outside_is_refused(folder: Path) -> None:
    from nsfse_runtime.inference.manifest import checksum_of

    raw = json.loads((folder / MANIFEST).read_text())
    raw.pop("sha256")
    raw["files"]["../secret"] = raw["files"]["text.onnx"]
    (folder / MANIFEST).write_text(json.dumps({**raw, "sha256": checksum_of(raw)}))
    with pytest.raises(IntegrityError, match="outside"):
        Bundle.open(folder)


def test_fields_of_a_later_writer_are_passed_over(folder: Path) -> None:
    from nsfse_runtime.inference.manifest import checksum_of

    raw = json.loads((folder / MANIFEST).read_text())
    raw.pop("sha256")
    raw["licence"] = "Apache-2.0"
    (folder / MANIFEST).write_text(json.dumps({**raw, "sha256": checksum_of(raw)}))
    assert Bundle.open(folder).manifest.name == "tiny"


def test_the_fingerprint_is_of_the_model_not_the_card(folder: Path) -> None:
    before = Bundle.open(folder).fingerprint
    (folder / "README.md").write_text("A note by its owner.")
    assert Bundle.open(folder).fingerprint == before
    (folder / "image.onnx").write_bytes(b"another model")
    manifest = Bundle(folder, write_manifest(folder, Bundle(folder, _manifest(folder)).manifest))
    assert manifest.fingerprint != before


def _manifest(folder: Path) -> Manifest:
    from nsfse_runtime.inference.manifest import read_manifest

    return read_manifest(folder)


def test_writing_without_a_graph_or_a_place_is_one_line(folder: Path, tmp_path: Path) -> None:
    manifest = _manifest(folder)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_manifest(folder, manifest)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    (folder / "pair.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"pair\.onnx is damaged \(it is missing\)"):
        write_manifest(folder, manifest)
