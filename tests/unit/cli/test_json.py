"""What --json prints is what docs/json.md says and docs/schemas hold it to: no field more, none less."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("jsonschema")
pytest.importorskip("onnxruntime")

import jsonschema

from nsfse.cli import app
from nsfse.cli.formatting import to_json
from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.evaluate import evaluate
from nsfse.evaluation.results import Evaluation
from nsfse_runtime.retrieval.retriever import Hit, Result, WordEvidence
from tests.unit.evaluation.number_scorer import NumberScorer, number_images
from tests.unit.evaluation.test_abstention import SureOfScores

GOLDEN, DOCS = Path(__file__).parents[2] / "golden", Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "json.md").read_text("utf-8")


def schema(command):
    return json.loads((DOCS / "schemas" / f"{command}.json").read_text("utf-8"))


def check(command, value):
    jsonschema.Draft202012Validator(schema(command)).validate(value)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A query set of the golden images, and a gallery of them."""
    folder = tmp_path_factory.mktemp("shelf")
    shutil.copytree(GOLDEN / "images", folder / "images")
    names = sorted(path.stem for path in (folder / "images").iterdir())
    with (folder / "items.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id",), *((name,) for name in names)])
    asked = {"protocol": "toy", "texts": ["in green", "make it green"], "reference": names[0], "targets": names[1:3]}
    queries = [
        asked | {"kind": "colour", "hard_negatives": names[3:4]},
        asked | {"negative_images": names[4:5], "kind": "minus"},
    ]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), "utf-8")
    with pytest.raises(SystemExit) as stop:
        app.main(["index", str(folder / "g"), str(folder / "images"), "-b", str(GOLDEN / "bundle"), "--json"])
    assert stop.value.code == 0
    return folder


def printed(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        app.main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return json.loads(out)


def test_a_query_prints_what_is_documented(shelf, capsys):
    first, second, *_ = sorted(path.name for path in (shelf / "images").iterdir())
    for more in (
        ["in green"],
        ["in green", "--heatmaps", "--rerank", "0"],
        ["in green", "--and-like", second, "--and", "make it red", "--exclude-text", "dots", "-k", "3"],
        ["--balance", "0"],
        [shelf / "images" / second, "in green"],
    ):
        image, rest = (more[0], more[1:]) if isinstance(more[0], Path) else (first, more)
        found = printed(capsys, "query", image, *rest, "-g", shelf / "g")
        assert found["hits"]
        check("query", found)
    # Only a trained model is sure of anything, and a condition may leave nothing.
    evidence = (WordEvidence("red", 0.5, True, -0.5, (0.1, -0.2)),)
    hit = Hit("a.png", "a.png", 1.0, True, evidence, 0.8)
    sure = Result(hits=(hit,), has_match=True, timings_ms={"total": 1.0}, grid=(1, 2))
    for result in (sure, Result(hits=(), timings_ms={"total": 1.0})):
        check("query", json.loads(to_json(result)))


def test_an_evaluation_prints_what_is_documented(shelf, capsys, tmp_path):
    page = tmp_path / "page.html"
    modes = ("--mode", "composed", "--mode", "text-only")
    found = printed(capsys, "evaluate", GOLDEN / "bundle", shelf, *modes, "--html", page)
    check("evaluate", found)
    assert set(found["protocols"]["toy"]["kinds"]) == {"colour", "minus"} and set(found["modes"]) == {"text-only"}
    assert found["files"] == [str(page)] and 'id="p-toy"' in page.read_text("utf-8")


def test_what_public_data_sets_add_is_documented():
    query = EvalQuery("0", ("6 1 2",), ("2",), subset=("1", "2", "3"), soft=(("6", 0.5), ("2", 1.0)), pairid="7")
    lost = (replace(query, targets=("9",)), replace(query, reference="8"))
    toy = EvaluationProtocol(
        "cirr-toy", "rc2", tuple("01234567"), (query, *lost), ks=(1, 5, 10, 50), missing=2, missing_ids=("8",)
    )
    result = evaluate(SureOfScores(), toy, number_images, abstention=True)
    assert result.abstention
    hidden = replace(toy, name="test", queries=(replace(query, targets=()),))
    every = Evaluation(
        "0" * 64,
        (result, evaluate(NumberScorer(), hidden, number_images)),
        {
            "fashioniq": {"R@10": 1.0, "R@50": 2.0, "categories": 3, "expected": 3, "missing": []},
            "fashioniq-VAL": {"R@10": None, "R@50": None, "categories": 2, "expected": 3, "missing": ["dress"]},
        },
        skipped=("none",),
        reasons={"none": "the annotations hold no query of it"},
    )
    found = json.loads(to_json(every.to_json()))
    assert {"headline", "R_subset@1", "soft_R@1", "soft_R_subset@1"} <= set(found["protocols"]["cirr-toy"])
    assert len(found["protocols"]["cirr-toy"]["incomplete"]["left_out"]) == 2
    assert found["protocols"]["cirr-toy"]["odd_queries"]
    check("evaluate", found)


@pytest.mark.parametrize("command", ["query", "evaluate"])
def test_the_examples_fit_and_every_field_is_told(command):
    told = PAGE[PAGE.index(f"## {command}\n") :].split("\n## ")[0]
    example = re.search(r"```json\n(.*?)```", told, re.DOTALL)[1].replace('"…"', f'"{"0" * 64}"')
    check(command, json.loads(example))
    names = re.findall(r'"properties": \{|"(\w+)": \{', json.dumps(schema(command)))
    fields = {name for name in names if name} - {"items", "properties", "patternProperties", "additionalProperties"}
    structure = {"result", "results", "kind", "percent", "percent_or_null", "noted", "hit", "propertyNames", "defs"}
    structure |= {"reading", "unknown_word", "negation"}
    assert [name for name in sorted(fields - structure) if f'"{name}"' not in told and f"`{name}`" not in told] == []


@pytest.mark.parametrize("command", ["query", "evaluate"])
def test_a_field_that_is_not_documented_is_noticed(command):
    told = PAGE[PAGE.index(f"## {command}\n") :]
    example = re.search(r"```json\n(.*?)```", told, re.DOTALL)[1].replace('"…"', f'"{"0" * 64}"')
    with pytest.raises(jsonschema.ValidationError, match="new"):
        check(command, json.loads(example) | {"new": 1})
