"""The benchmarks that measure quality: what they count, on data small enough to count by hand."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def load(name):
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "benchmarks" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_auc_is_the_share_of_pairs_in_order():
    auc = load("evidence").auc
    low, high = np.array([0.1, 0.4, 0.5]), np.array([0.3, 0.5, 0.9])
    pairs = [(b > a) + (b == a) / 2 for a in low for b in high]
    assert auc(low, high) == pytest.approx(sum(pairs) / 9)
    assert np.isnan(auc(low[:0], high))


def test_evidence_counts_hits_that_are_wrong_in_one_attribute(tmp_path, monkeypatch):
    from nsfse.config import ModelConfig
    from nsfse.data.drawn import DrawnSource
    from tests import random_run

    queries = DrawnSource("easy", gallery=64).protocols("test")[0].queries
    monkeypatch.setattr(random_run, "TEXTS", [text for query in queries for text in query.texts])
    run = random_run.write_random_run(tmp_path / "run", ModelConfig(width=16, dim=16, image_size=(32, 32)))
    found = load("evidence").measure(run, "easy", gallery=64)
    kinds = found["kinds"].values()
    assert found["all"]["hits"] == sum(kind["hits"] for kind in kinds) > 100
    assert 0 < found["all"]["violating"] < found["all"]["hits"]
    assert 0.2 < found["all"]["auc_whole"] < 0.8  # nothing was learned


def test_each_query_is_told_in_six_ways(tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "set", tmp_path / "out"
    (folder / "images").mkdir(parents=True)
    (folder / "items.csv").write_text(
        "id,colour,gender,usage\na,Red,Men,Sports\nb,Navy Blue,Men,Casual\nc,Red,Women,\n"
    )
    asked = [("a", "b", None), ("a", "c", "gender"), ("b", "c", None)]
    rows = [{"protocol": "p", "reference": r, "texts": ["?"], "targets": [t], "changed": c} for r, t, c in asked]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["phrasings.py", str(folder), str(out)])
    load("phrasings").main()
    told = [json.loads(line)["texts"] for line in (out / "queries.jsonl").read_text().splitlines()]
    assert [len(set(texts)) for texts in told] == [6, 6]  # the third changes two things
    assert all("navy blue" in text for text in told[0]) and all("women" in text for text in told[1])
    assert "2 of 3" in capsys.readouterr().out
