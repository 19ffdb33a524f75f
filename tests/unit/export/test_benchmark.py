"""`nsfse bench speed`: its arithmetic, a random gallery beside a real index, and whole queries of a tiny bundle."""

import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch")

from nsfse_export.benchmark import scaling, speed, timing
from nsfse_export.benchmark.fixtures import (
    Setting,
    check_photos,
    check_sizes,
    image_id,
    query_text,
    random_jpeg,
    write_random_gallery,
)
from nsfse_export.benchmark.report import markdown, plot
from nsfse_runtime import Gallery, Retriever, open_model
from nsfse_runtime.errors import UsageError
from nsfse_runtime.images.decode import decode_image

BUNDLE = Path(__file__).parents[2] / "golden" / "bundle"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A tiny bundle in the place of a model in torch, too."""
    scorer = open_model(BUNDLE, "cpu")
    model = SimpleNamespace(config=SimpleNamespace(backbone="tiny", max_words=scorer.bundle.manifest.max_words))
    torch_like = SimpleNamespace(
        model=model,
        tokenizer=scorer.tokenizer,
        image_size=scorer.image_size,
        **{name: getattr(scorer, name) for name in ("encode_images", "sentence", "compose", "score_pairs")},
    )
    folder = tmp_path_factory.mktemp("speed")
    return Setting(BUNDLE, torch_like, {"fp32": scorer}, folder, 3, deadline=float("inf"))


def test_timing_is_interleaved_and_ratios_are_medians(monkeypatch):
    calls, clock = [], iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock) / 1000)
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    found = timing.interleaved({name: (lambda name=name: calls.append(name)) for name in "abc"}, rounds=4)
    assert calls == list("abc" + "abc" + "bca" + "cab" + "abc")
    assert found == {name: [pytest.approx(1)] * 4 for name in "abc"}
    slow = {"torch": [8.0, 4.0, 100.0], "int8": [2.0, 2.0, 20.0]}
    assert timing.ratios(slow, "torch") == {
        "torch": {"ms": 8.0, "times_faster": 1.0},
        "int8": {"ms": 2.0, "times_faster": 4.0},
    }
    assert timing.quantiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p95": 2.9, "p99": 2.98}


def test_queries_can_use_a_random_gallery(setting):
    with Gallery.open(
        write_random_gallery(setting.folder / "own.gallery", setting.best.bundle, 230), setting.best
    ) as gallery:
        assert len(gallery) == 230 and gallery.info()["regions"] == setting.best.bundle.manifest.regions
        targets = gallery.snapshot.targets([0, 229])
        for rows in (gallery.snapshot.vectors, targets.regions):
            np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)
        hits = Retriever(setting.best, gallery).query(image_id(3), query_text(setting.best.bundle), k=5).hits
        assert len({hit.id for hit in hits}) == 5 and image_id(3) not in {hit.id for hit in hits}


def test_a_whole_query_is_timed_by_part_beside_pytorch(setting, monkeypatch):
    monkeypatch.setattr(speed, "_padded", lambda setting: setting.torch)
    monkeypatch.setattr(speed, "random_jpeg", lambda _: random_jpeg(0.01))
    found = speed.whole(setting, 220, queries=4)
    image, known = (found["ways"][name] for name in ("an image of 1 megapixel", "an image of the gallery"))
    assert image["laps"]["decode"] > 0 and image["laps"]["image"] > 0
    assert known["laps"]["decode"] == known["laps"]["image"] == 0 < known["laps"]["stage2"]
    assert known["p50"] <= known["p95"] <= known["p99"] and found["ways"][found["base"]]["times_faster"] == 1


def test_growth_is_tables_and_plots_and_names_what_is_left_out(setting, monkeypatch):
    monkeypatch.setattr(scaling, "random_jpeg", lambda _: random_jpeg(0.01))
    curves = scaling.growth(setting, (200, 220))
    assert list(curves["images in the gallery"]["whole query"]) == [200, 220] and len(curves) == 5
    svg = plot(curves)
    ElementTree.fromstring(svg)
    assert svg.count("<circle") == sum(len(line) for lines in curves.values() for line in lines.values())
    machine = {"threads": 2, "cores": 2, "gflops": 90.0, "gb_per_second_one_thread": 9.0, "load": 0.1, "versions": {}}
    found = {"machine": machine, "model": speed._model(setting), "growth": curves, "left_out": ["cold"]}
    text = markdown(found | {"parts": None, "whole": None, "cold": None, "index": None})
    assert "| images in the gallery (ms) | 200 | 220 |" in text and "for want of time (--minutes): cold" in text
    late = Setting(BUNDLE, setting.torch, setting.models, setting.folder, 3, deadline=0)
    assert scaling.growth(late, (200,)) == {} and "images in the gallery: 200" in late.left_out


def test_a_random_jpeg_has_its_size_and_sizes_are_checked():
    height, width, _ = decode_image(random_jpeg(0.12)).shape
    assert height * width == pytest.approx(120_000, rel=0.02) and len(random_jpeg(0.12)) > 12_000
    with pytest.raises(UsageError, match="200 at least"):
        check_sizes([100])


def test_a_folder_without_images_is_refused_first(tmp_path):
    (tmp_path / "photos.tar.gz").write_bytes(b"no image")
    with pytest.raises(UsageError, match="no image in"):
        check_photos(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(random_jpeg(0.01))
    check_photos(tmp_path)


def test_a_process_is_measured_alone_and_must_succeed():
    span, peak = scaling._process([sys.executable, "-S", "-c", "held = bytearray(60_000_000)"])
    assert span > 0 and 60 < peak < 120  # not what this process holds
    with pytest.raises(UsageError, match="ended with 3: no"):
        scaling._process([sys.executable, "-S", "-c", "import sys; sys.stderr.write('no'); sys.exit(3)"])
