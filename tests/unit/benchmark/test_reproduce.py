"""Recipes: what they say is what the documents say, and a dry run tells it."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from nsfse.benchmark.reproduce import RECIPES, load_recipe
from nsfse.cli import app
from nsfse.config import TrainConfig, load_config
from nsfse_runtime.errors import UsageError

DOCS = Path(__file__).parents[3] / "docs"
BACKBONES = {"backbone_lr_scale"} <= {field.name for field in msgspec.structs.fields(TrainConfig)}


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        app.main(["reproduce", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_there_is_a_recipe_for_each_data_set_and_backbone():
    names = {f"{data}-{backbone}" for data in ("fashioniq", "cirr", "fashion200k") for backbone in ("resnet50", "clip")}
    assert set(RECIPES) == names
    for name in RECIPES:
        recipe = load_recipe(name)
        assert name == f"{recipe.dataset}-{recipe.config['model']['backbone']}"
        assert recipe.config["data"]["source"] == recipe.dataset and recipe.expected.scores


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_a_configuration(name):
    recipe = load_recipe(name)
    assert load_config(bases=[recipe.config]).model.image_size == (224, 224)
    if BACKBONES:
        assert load_config(bases=[recipe.config, recipe.pretrained]).train.backbone_lr_scale > 0


def test_expected_figures_stand_in_the_documents_and_what_is_not_known_is_not_made_up():
    published = (DOCS / "benchmarks.md").read_text("utf-8")
    row = {name: next(line for line in published.splitlines() if re.match(rf"\| {name}", line)) for name in ("NSFSE",)}
    cirr = load_recipe("cirr-resnet50").expected.scores["cirr-val"]
    assert [f"{figure:.2f}" for figure in cirr.values()] == re.findall(r"\d+\.\d+", row["NSFSE"])
    fashion = load_recipe("fashioniq-resnet50").expected.scores
    pairs = ["/".join(f"{figure:.2f}" for figure in figures.values()) for figures in fashion.values()]
    assert any(all(pair in line for pair in pairs) for line in published.splitlines() if line.startswith("| NSFSE"))
    for name in ("fashion200k-resnet50", "fashion200k-clip", "fashioniq-clip", "cirr-clip"):
        figures = [figure for scores in load_recipe(name).expected.scores.values() for figure in scores.values()]
        assert set(figures) == {"not known"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_tells_data_protocol_and_figures_without_any_data(capsys, name):
    code, out, err = run(capsys, name, "--dry-run")
    recipe = load_recipe(name)
    assert (code, err) == (0, "")
    for said in (
        recipe.data.image_source,
        *recipe.data.layout,
        *recipe.protocol,
        recipe.expected.source,
        "official counts",
    ):
        assert said in out
    told = json.loads(run(capsys, name, "--dry-run", "--json")[1])
    assert told["data"]["counts"] and told["expected"]["scores"] and told["settings"]["model"]["dim"] == 512


def bare_fashioniq(folder):
    for split in ("train", "val"):
        (folder / f"split.dress.{split}.json").write_text('["A", "B"]')
        (folder / f"cap.dress.{split}.json").write_text(
            '[{"candidate": "A", "target": "B", "captions": ["red", "long"]}]'
        )
    return folder


def test_where_images_are_absent_one_line_tells_how_to_get_them(capsys, tmp_path):
    code, out, err = run(capsys, "fashioniq-resnet50", "--data", bare_fashioniq(tmp_path))
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "fashion-iq-metadata" in err and "images/ID.jpg" in err and "--dry-run" in err
    code, out, _ = run(capsys, "fashioniq-resnet50", "--data", tmp_path, "--dry-run")
    assert code == 0 and "there: missing images 2" in out


def test_wrong_use_is_one_line(capsys, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'cirr-resnet50'"):
        load_recipe("cirr-resnet")
    assert run(capsys, "cirr-clip")[0] == 2
    for item in "AB":
        (tmp_path / f"{item}.jpg").write_bytes(b"\xff\xd8\xff")
    code, _, err = run(capsys, "fashioniq-clip", "--data", bare_fashioniq(tmp_path), "-o", tmp_path / "run")
    assert code == 2 and "--weights" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
