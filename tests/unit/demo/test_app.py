"""The demo assets: small enough, whole, and a page that answers where there is no torch."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("starlette")

from nsfse.demo import app
from nsfse_runtime import Bundle, Gallery, Retriever
from nsfse_runtime.errors import OutputError, UsageError
from nsfse_runtime.inference.onnx_scorer import OnnxScorer

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The assets unpacked: its folder, its scorer, its gallery, and what is in each image."""
    folder = tmp_path_factory.mktemp("unpacked")
    scorer = OnnxScorer(Bundle.open(app.BUNDLE))
    gallery = app.open_gallery(folder, scorer)
    with (folder / app.TABLE).open(encoding="utf-8") as file:
        truth = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    return folder, scorer, gallery, truth


def test_the_assets_are_small_and_its_model_is_in_int8_with_a_card():
    sizes = {path: path.stat().st_size for path in app.ASSETS.rglob("*") if path.is_file()}
    assert sum(size for path, size in sizes.items() if app.BUNDLE in path.parents) <= 6_000_000
    assert sum(sizes.values()) <= 11_000_000  # of the wheel's 12 MB
    manifest = Bundle.open(app.BUNDLE).manifest
    assert manifest.precision == "int8" and manifest.retrieval["verified"] and manifest.decision
    card = (app.BUNDLE / "README.md").read_text("utf-8")
    assert "make demo-assets" in card and "| drawn, composed |" in card and "Apache-2.0" in card


def test_make_it_red_brings_red_ones_first(unpacked):
    _, scorer, gallery, truth = unpacked
    ask = Retriever(scorer, gallery)
    form = {name: tuple(row[key] for key in ("category", "pattern", "length", "detail")) for name, row in truth.items()}
    there = {form[name] for name in gallery.ids if truth[name]["colour"] == "red"}
    others = [name for name in gallery.ids if truth[name]["colour"] != "red" and form[name] in there]
    for name in others[:: len(others) // 40]:
        first = ask.query(gallery.snapshot.path_of(gallery.snapshot.row(name)), "make it red", k=3).hits[0]
        assert (truth[first.id]["colour"], truth[first.id]["category"]) == ("red", truth[name]["category"])
        assert first.evidence[-1].word == "red" and first.evidence[-1].matched


def test_the_gallery_is_that_of_the_images_and_encodes_none(unpacked, monkeypatch):
    folder, scorer, gallery, truth = unpacked
    assert set(gallery.ids) == set(truth) and len(gallery) == 2000
    assert (
        gallery.snapshot.metadata[gallery.snapshot.row("test-000005.webp")]["colour"]
        == truth["test-000005.webp"]["colour"]
    )
    assert gallery.snapshot.is_current(0) and gallery.snapshot.path_of(0).parent == (folder / app.IMAGES).resolve()
    assert gallery.bundle_path == app.BUNDLE
    data = app.INDEXED.read_bytes()
    assert not [place for place in (str(Path.home()), "/tmp/", str(ROOT)) if place.encode() in data]
    fresh = scorer.encode_images(_pixels(gallery, scorer, 7))
    kept = gallery.snapshot.targets([7])
    assert float(fresh.vectors[0] @ kept.vectors[0]) > 0.9999


def _pixels(gallery, scorer, row):
    from nsfse_runtime.images.decode import load_image

    return load_image(gallery.snapshot.path_of(row), scorer.image_size)[None]


def test_what_was_lost_or_changed_is_made_right_again_and_nothing_is_encoded(unpacked, tmp_path, monkeypatch):
    scorer = unpacked[1]
    (tmp_path / app.IMAGES).mkdir()
    with ZipFile(app.IMAGES_ZIP) as whole, ZipFile(tmp_path / "few.zip", "w") as few:
        for name in (app.TABLE, *(name for name in whole.namelist() if "00000" in name)):
            few.writestr(name, whole.read(name))
    monkeypatch.setattr(app, "IMAGES_ZIP", tmp_path / "few.zip")
    monkeypatch.setattr(type(scorer), "encode_images", lambda *_: pytest.fail("an image was encoded"))
    first = app.open_gallery(tmp_path, scorer)
    ids = first.ids
    first.close()
    image = tmp_path / app.IMAGES / ids[3]
    before = image.read_bytes()
    image.write_bytes(before[:100])
    (tmp_path / app.IMAGES / ids[4]).unlink()
    assert app.open_gallery(tmp_path, scorer).ids == ids and image.read_bytes() == before
    (tmp_path / app.GALLERY).unlink()
    shutil.move(tmp_path / app.IMAGES, tmp_path / "elsewhere")
    assert app.open_gallery(tmp_path, scorer).ids == ids and len(ids) == 10


@pytest.mark.parametrize("name", [app.TABLE, app.LOG])
def test_files_of_somebody_else_are_left_alone(unpacked, tmp_path, name):
    (tmp_path / name).write_text("id\nmine\n")
    with pytest.raises(OutputError, match=f"{name} is not the demo's"):
        app.open_gallery(tmp_path, unpacked[1])
    assert (tmp_path / name).read_text() == "id\nmine\n" and not (tmp_path / app.GALLERY).exists()


def test_a_gallery_that_a_lost_installation_unpacked_is_told_of_this_ones_bundle(unpacked, tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(app, "BUNDLE", tmp_path / "lost")
        app.open_gallery(tmp_path, unpacked[1]).close()
    with Gallery.open(tmp_path / app.GALLERY) as left:
        assert left.bundle_path == tmp_path / "lost"
    assert app.open_gallery(tmp_path, unpacked[1]).bundle_path == app.BUNDLE


def test_where_nothing_can_be_written_one_line_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="name another folder with -o"):
        app.unpack(tmp_path / "file" / "folder")


def test_a_port_that_is_taken_is_refused_by_name_and_passed_over_otherwise():
    with app.listen_on(None) as one, app.listen_on(None) as other:
        ports = [listener.getsockname()[1] for listener in (one, other)]
        assert ports[0] != ports[1] and one.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UsageError, match=f"port {ports[0]}"):
            app.listen_on(ports[0])


def test_the_command_shows_a_page_without_torch_or_anything_beside_its_own_folder(tmp_path):
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "torch.py").write_text("raise SystemExit('torch was imported')")
    path = os.pathsep.join(str(place) for place in (tmp_path / "no", ROOT, ROOT / "export", ROOT / "runtime"))
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-m", "nsfse", "demo", "--json", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as demo:
        told = ""
        while not told.endswith("}\n") and (line := demo.stdout.readline()):
            told += line
        ready = json.loads(told)
        with urllib.request.urlopen(ready["url"]) as page, urllib.request.urlopen(f"{ready['url']}v1/info") as info:
            assert b"<main>" in page.read()
            note = json.load(info)["note"]
        demo.send_signal(signal.SIGINT)
        assert demo.wait(200) == 0
    assert ready["images"] == 2000 and Gallery.open(ready["gallery"]).bundle_path == Path(ready["bundle"])
    assert "drawings of 6 kinds (shirt" in note and "8 colours (red" in note and "photographs" in note
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["nsfse"]  # ONNX Runtime's reports lie elsewhere
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cache", "no"]
