"""The demo assets: small enough, whole, and a page that answers where there is no torch."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("starlette")

from nsfse.data.wardrobe import annotations
from nsfse.demo import app
from nsfse_runtime import Bundle, Gallery, Retriever
from nsfse_runtime.errors import OutputError, UsageError
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from tests.demo_images import cut

ROOT = Path(__file__).parents[3]
COLLECTIONS = pytest.mark.parametrize("collection", [app.PHOTOS, app.DRAWN], ids=lambda each: each.name)

FEW = """
from dataclasses import replace
from pathlib import Path
from nsfse.cli.app import main
from nsfse.demo import app
app.PHOTOS, app.DRAWN = replace(app.PHOTOS, archive=Path({PHOTOS!r})), replace(app.DRAWN, archive=Path({DRAWN!r}))
main()
"""


def table(collection):
    """Return file name → row of a collection's table."""
    with ZipFile(collection.archive) as packed:
        rows = csv.DictReader(packed.read(app.TABLE).decode().splitlines())
        return {Path(row["file"]).name: row for row in rows}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A few drawings, and the model that knows them."""
    return cut(app.DRAWN, tmp_path_factory.mktemp("few"), 10), OnnxScorer(Bundle.open(app.DRAWN.bundle))


def test_the_assets_are_small():
    sizes = {path: path.stat().st_size for path in app.ASSETS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 15_500_000  # weights compress by a tenth


@COLLECTIONS
def test_a_model_is_in_int8_with_a_card(collection):
    manifest = Bundle.open(collection.bundle).manifest
    assert manifest.precision == "int8" and manifest.retrieval["verified"] and manifest.decision
    card = (collection.bundle / "README.md").read_text("utf-8")
    assert "make box" in card and "## On the demo images" in card and "Apache-2.0" in card


def test_the_card_of_the_photos_names_scores_limits_and_licences():
    card = (app.PHOTOS.bundle / "README.md").read_text("utf-8")
    for part in ("| val, wardrobe-attribute, composed |", "| test, wardrobe-caption, composed |", "CC0 1.0"):
        assert part in card
    for part in ("clothing-dataset, commit 7ed86a9", "all-MiniLM-L6-v2 (Apache-2.0)", "vision-language model"):
        assert part in " ".join(card.split())


@COLLECTIONS
def test_the_table_names_every_image(collection):
    rows = table(collection)
    with ZipFile(collection.archive) as packed:
        assert set(packed.namelist()) == {app.TABLE, *(row["file"] for row in rows.values())}
    assert all(Path(row["file"]).stem == row["id"] for row in rows.values())


def test_photos_are_of_val_and_test_and_show_nobody():
    labels = {row["id"]: row for row in csv.DictReader(annotations("items.csv").decode().splitlines())}
    shown = {labels[row["photo"]]["id"]: row for row in table(app.PHOTOS).values()}
    about = [labels[name] for name in shown]
    assert {row["split"] for row in about} == {"val", "test"} and len(shown) == len(about) == 1302
    assert {row["view"] for row in about} == {"flat", "hanging"}
    assert all(labels[name]["colour"] == row["colour"] for name, row in shown.items())


def test_make_it_red_brings_red_drawings_first(tmp_path):
    scorer, truth = OnnxScorer(Bundle.open(app.DRAWN.bundle)), table(app.DRAWN)
    gallery = app.open_gallery(app.DRAWN, tmp_path, scorer)
    ask = Retriever(scorer, gallery)
    form = {name: tuple(row[key] for key in ("category", "pattern", "length", "detail")) for name, row in truth.items()}
    there = {form[name] for name in gallery.ids if truth[name]["colour"] == "red"}
    others = [name for name in gallery.ids if truth[name]["colour"] != "red" and form[name] in there]
    assert len(others) > 20
    for name in others[:: len(others) // 20]:
        first = ask.query(gallery.snapshot.path_of(gallery.snapshot.row(name)), "make it red", k=3).hits[0]
        assert (truth[first.id]["colour"], truth[first.id]["category"]) == ("red", truth[name]["category"])
        assert first.evidence[-1].word == "red" and first.evidence[-1].matched


def test_photos_are_found_by_what_their_labels_say(tmp_path):
    names = ("dress-001", "dress-002")
    photos = cut(app.PHOTOS, tmp_path, 60, *(f"{name}.avif" for name in names))
    scorer, truth = OnnxScorer(Bundle.open(photos.bundle)), table(photos)
    ask = Retriever(scorer, app.open_gallery(photos, tmp_path, scorer))
    right = 0
    for text, column, value in (("in black", "colour", "black"), ("shorts instead", "category", "shorts")):
        for name in names:
            right += any(truth[hit.id][column] == value for hit in ask.query(f"{name}.avif", text, k=3).hits)
    assert right >= 3


def test_the_gallery_is_that_of_the_images(few, tmp_path):
    collection, scorer = few
    gallery, truth = app.open_gallery(collection, tmp_path, scorer), table(collection)
    assert set(gallery.ids) == set(truth) and len(gallery) == 10
    row = gallery.snapshot.row("test-000040.webp")
    assert gallery.snapshot.metadata[row]["colour"] == truth["test-000040.webp"]["colour"]
    assert gallery.snapshot.path_of(row).parent == (tmp_path / "drawn" / app.IMAGES).resolve()
    assert gallery.bundle_path == app.DRAWN.bundle


def test_what_was_lost_or_changed_is_made_right_again_and_nothing_is_encoded(few, tmp_path, monkeypatch):
    collection, scorer = few
    first = app.open_gallery(collection, tmp_path, scorer)
    ids = first.ids
    first.close()
    monkeypatch.setattr(type(scorer), "encode_images", lambda *_: pytest.fail("an image was encoded"))
    images = tmp_path / "drawn" / app.IMAGES
    before = (images / ids[3]).read_bytes()
    (images / ids[3]).write_bytes(before[:100])
    (images / ids[4]).unlink()
    assert app.open_gallery(collection, tmp_path, scorer).ids == ids and (images / ids[3]).read_bytes() == before
    shutil.move(tmp_path, f"{tmp_path}-elsewhere")
    assert app.open_gallery(collection, Path(f"{tmp_path}-elsewhere"), scorer).ids == ids and len(ids) == 10


def test_files_of_somebody_else_are_left_alone(few, tmp_path):
    collection, scorer = few
    mine = tmp_path / "drawn" / app.TABLE
    mine.parent.mkdir()
    mine.write_text("id\nmine\n")
    with pytest.raises(OutputError, match=f"{app.TABLE} is not the demo's"):
        app.open_gallery(collection, tmp_path, scorer)
    assert mine.read_text() == "id\nmine\n" and not collection.gallery(tmp_path).exists()


def test_a_log_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / app.LOG).write_text("mine\n")
    with pytest.raises(OutputError, match=f"{app.LOG} is not the demo's"):
        app.open_demo(tmp_path, port=0)
    assert [entry.name for entry in tmp_path.iterdir()] == [app.LOG]


def test_a_gallery_that_a_lost_installation_unpacked_is_told_of_this_ones_bundle(few, tmp_path):
    collection, scorer = few
    app.open_gallery(replace(collection, bundle=tmp_path / "lost"), tmp_path, scorer).close()
    with Gallery.open(collection.gallery(tmp_path)) as left:
        assert left.bundle_path == tmp_path / "lost"
    assert app.open_gallery(collection, tmp_path, scorer).bundle_path == app.DRAWN.bundle


def test_where_nothing_can_be_written_one_line_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="name another folder with -o"):
        app.unpack(app.DRAWN, tmp_path / "file" / "folder")


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
    (tmp_path / "few").mkdir()
    few = {name: cut(getattr(app, name), tmp_path / "few", 10).archive for name in ("PHOTOS", "DRAWN")}
    code = FEW.format(**{name: str(archive) for name, archive in few.items()})
    command = [sys.executable, "-c", code, "demo", "--json", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as demo:
        told = ""
        while not told.endswith("\n}\n") and (line := demo.stdout.readline()):
            told += line
        ready = json.loads(told)
        with urllib.request.urlopen(ready["url"]) as page, urllib.request.urlopen(f"{ready['url']}v1/info") as info:
            assert b"<main>" in page.read()
            about = json.load(info)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(200) == 0
    assert [(each["name"], each["images"]) for each in ready["galleries"]] == [("photos", 10), ("drawn", 10)]
    assert [each["name"] for each in about["galleries"]] == ["photos", "drawn"]
    assert "has seen none of these photos" in about["note"] and "clothes alone" in about["note"]
    for each in ready["galleries"]:
        assert Gallery.open(each["gallery"]).bundle_path == Path(each["bundle"])
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["nsfse"]  # ONNX Runtime's reports lie elsewhere
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cache", "few", "no"]
