"""The benchmarks that measure quality: what they count, on data small enough to count by hand."""

import importlib.util
import json
import sys
from pathlib import Path
from runpy import run_path
from xml.etree import ElementTree

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


def load(name):
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "benchmarks" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def result_rows(topic, entry, output):
    """Return the rows that docs/results takes from a benchmark's output."""
    script = run_path(str(ROOT / "docs" / "write_results.py"))
    return script["select"](output, script["load"](topic)["entries"][entry]["select"])


def test_evidence_counts_hits_that_are_wrong_in_one_attribute(tmp_path, monkeypatch):
    from nsfse.config import ModelConfig
    from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
    from tests import random_run

    queries = DrawnSource(DrawnOptions("easy", gallery=64)).protocols("test")[0].queries
    monkeypatch.setattr(random_run, "TEXTS", [text for query in queries for text in query.texts])
    run = random_run.write_random_run(tmp_path / "run", ModelConfig(width=16, dim=16, image_size=(32, 32)))
    found = load("evidence").measure(run, "easy", gallery=64)
    kinds = found["kinds"].values()
    assert found["all"]["hits"] == sum(kind["hits"] for kind in kinds) > 100
    assert 0 < found["all"]["violating"] < found["all"]["hits"]
    assert 0.2 < found["all"]["auc_whole"] < 0.8  # nothing was learned
    assert len(result_rows("evidence", "words", found)) == 1 + len(kinds)


def test_a_model_that_knows_nothing_does_not_know_that_nothing_matches(tmp_path, monkeypatch):
    from nsfse.config import ModelConfig
    from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
    from nsfse.models.checkpoint import write_decision
    from nsfse_runtime.errors import NotFoundError
    from nsfse_runtime.inference.confidence import Decision
    from tests import random_run

    queries = DrawnSource(DrawnOptions("easy", gallery=64)).protocols("test")[0].queries
    monkeypatch.setattr(random_run, "TEXTS", [text for query in queries for text in query.texts])
    run = random_run.write_random_run(tmp_path / "run", ModelConfig(width=16, dim=16, image_size=(32, 32)))
    measure = load("decision").measure
    with pytest.raises(NotFoundError, match="has no confidence model"):
        measure(run, "easy", gallery=64)
    weights = (0.0, 0.0, 1.0, *(0.0,) * 116)
    write_decision(run, Decision((0.0,) * 14, (1.0,) * 14, weights, -2.0, 0.3))
    found = measure(run, "easy", gallery=64)
    assert found["rankings"] > 100 and 0.4 < found["auc"] < 0.7
    assert found["at_ten_percent"]["false_alarms"] == pytest.approx(10, abs=0.5)
    assert 0 < found["as_fitted"]["false_alarms"] <= found["as_fitted"]["without_answers"] + 5
    assert sum(row["count"] * row["right"] for row in found["reliability"]) > 0
    assert result_rows("confidence", "drawn", found)[0][2:] == [pytest.approx(10, abs=0.5), round(found["auc"], 4)]
    assert len(result_rows("confidence", "reliability", found)) == len(found["reliability"])


def test_reliability_by_hand():
    bench = load("decision")
    confidence = np.array([0.0, 0.05, 0.12, 0.18, 0.95, 1.0])
    right = np.array([False, False, True, False, True, True])
    rows = bench.reliability(confidence, right)
    assert [(round(row["confidence"], 3), row["right"], row["count"]) for row in rows] == [
        (0.025, 0.0, 2),
        (0.15, 0.5, 2),
        (0.975, 1.0, 2),
    ]
    svg = bench.plot(rows)
    assert svg.startswith("<svg") and svg.count("<circle") == 3
    ElementTree.fromstring(svg)


def test_each_query_is_told_in_six_ways(tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "set", tmp_path / "out"
    (folder / "images").mkdir(parents=True)
    (folder / "items.csv").write_text(
        "id,colour,gender,usage\na,Red,Men,Sports\nb,Navy Blue,Men,Sports\nc,Red,Women,\nd,Navy Blue,Men,Casual\n"
    )
    asked = [("a", "b", None), ("a", "c", "gender"), ("b", "c", None), ("a", "d", None)]
    rows = [{"protocol": "p", "reference": r, "texts": ["?"], "targets": [t], "changed": c} for r, t, c in asked]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["phrasings.py", str(folder), str(out)])
    load("phrasings").main()
    told = [json.loads(line)["texts"] for line in (out / "queries.jsonl").read_text().splitlines()]
    assert [len(set(texts)) for texts in told] == [6, 6]  # the last two change two things
    assert all("navy blue" in text for text in told[0]) and all("women" in text for text in told[1])
    assert "2 of 4" in capsys.readouterr().out


def test_the_part_of_a_detail_is_small_and_that_of_a_colour_is_the_product():
    from nsfse.data.synthetic.source import DrawnOptions, DrawnSource

    source, pointing = DrawnSource(DrawnOptions("easy", gallery=64)), load("pointing")
    item = next(item for item in source.items("test") if source.describe(item)["detail"] == "with")
    detail, product = (pointing.part_of(source, item, name, (64, 64)) for name in ("detail", "category"))
    assert 0 < detail.sum() < product.sum() / 2 < 64 * 64 / 2
    assert not product[0].any() and not product[:, 0].any()


def test_the_naive_ways_are_asked_beside_ours(tmp_path, monkeypatch):
    from nsfse.config import ModelConfig
    from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
    from tests import random_run

    protocols = DrawnSource(DrawnOptions("easy", gallery=160)).compound_protocols()
    queries = [query for protocol in protocols for query in protocol.queries]
    said = [text for query in queries for texts in (query.texts, *query.more_texts) for text in texts]
    monkeypatch.setattr(random_run, "TEXTS", [*said, "and no", *(word for q in queries for word in q.negative_texts)])
    run = random_run.write_random_run(tmp_path / "run", ModelConfig(width=8, dim=16, image_size=(32, 32)))
    rows = load("queries").measure(run, "easy", 4, gallery=160)
    kinds = {(row["protocol"], row["kind"]): [r["way"] for r in rows if r["kind"] == row["kind"]] for row in rows}
    assert len(kinds) == 6 and all(ways[0] == "ours" and len(set(ways)) == len(ways) > 2 for ways in kinds.values())
    assert all(row["queries"] == 4 and 0 <= row["mAP@10"] <= 100 for row in rows)
    assert len({(row["kind"], row["R@1"], row["mAP@10"], row["hard_negative_rate"]) for row in rows}) > len(kinds)
    table = result_rows("queries", "demo", rows)
    assert {name for name, *_ in table} >= {"two references", "two edits", "exclusion: has"} and table[0][1] == "nsfse"


def test_a_service_is_asked_with_bad_images_and_odd_strings_and_restarted(tmp_path, monkeypatch, capsys):
    pytest.importorskip("starlette")
    from tests.serving import image, open_served

    open_served(tmp_path).gallery.close()
    folder, said = tmp_path / "images", tmp_path / "strings.json"
    folder.mkdir()
    (folder / "good.png").write_bytes(image(1))
    (folder / "bad.png").write_bytes(image(1)[:40])
    said.write_text(json.dumps(["make it red", "", "\0"]))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = load("hostile")
    monkeypatch.setattr(bench, "SECONDS_UP", 0.2)
    options = ["--images", str(folder), "--strings", str(said), "--restarts", "1"]
    monkeypatch.setattr(sys, "argv", ["hostile.py", str(tmp_path / "shop.gallery"), *options])
    assert bench.main() == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert "| 1 × 200, 1 × 422;" in rows[0]
    assert "200" in rows[1] and "400" in rows[1] and len(rows) == 3
    assert all(bench.Outcomes(bench.Counter(statuses)).failed() for statuses in ({200: 1, 500: 1}, {0: 1}))
    assert not bench.Outcomes(bench.Counter({200: 1, 422: 1})).failed()


def test_first_stage_searches_are_timed():
    pytest.importorskip("faiss")
    found = {"search": [load("stage1").measure("clustered", 1500, 1)]}
    ((kind, size, *figures),) = result_rows("first-stage", "search", found)
    assert (kind, size) == ("clustered", 1500) and all(figure is not None for figure in figures)


def test_queries_are_said_by_voices_that_training_never_hears(tmp_path, monkeypatch):
    from nsfse.config import ModelConfig
    from tests import random_run

    bench = load("voices")
    source, (found,) = bench.protocols("drawn-easy", "val", gallery=64)
    assert {p.voice for p in found.positions} == {"marketplace", "storyteller"}
    for query in found.protocol.queries:
        value = source.attributes(query.targets[0])[query.word_labels[0].attribute_key]
        assert all(source.attributes(t)[query.word_labels[0].attribute_key] == value for t in query.targets)
        assert len(query.texts) == 14 and query.targets
    monkeypatch.setattr(random_run, "TEXTS", [text for query in found.protocol.queries for text in query.texts])
    run = random_run.write_random_run(tmp_path / "run", ModelConfig(width=16, dim=16, image_size=(32, 32)))
    scores = bench.measure(run, "drawn-easy", "val", gallery=64)["drawn-voices"]
    by_hand = [row["R@1"] for row in scores["sentences"]]
    assert scores["spread"] == pytest.approx(max(by_hand) - min(by_hand))
    old, rest = ([row["R@1"] for row in scores["sentences"] if bool(row["old"]) is named] for named in (True, False))
    assert (len(old), len(rest)) == (6, 8)
    assert scores["old_gap"] == pytest.approx(sum(rest) / 8 - sum(old) / 6)
    assert 0 <= scores["spread"] <= scores["sensitivity"] <= 100


def test_a_query_of_a_table_changes_what_its_kind_names():
    from nsfse.data import EvalQuery
    from nsfse.data.text.template_file import load_templates
    from nsfse.evaluation.voices import table_change

    rows = {"a": {"colour": "Red", "article": "t-shirt"}, "b": {"colour": "Light-Blue", "article": "t-shirt"}}
    rows |= {"c": {"colour": "Red", "article": "dress"}, "d": {"colour": "-", "article": "t-shirt"}}
    english = load_templates("en")
    new, old = table_change(rows, EvalQuery("a", ("?",), ("b",)), english)
    assert (new.fields["v"], old.fields["v"]) == ("light blue", "red")
    assert table_change(rows, EvalQuery("b", ("?",), ("c",)), english) is None
    assert table_change(rows, EvalQuery("b", ("?",), ("c",), kind="colour"), english)[0].fields["v"] == "red"
    assert table_change(rows, EvalQuery("a", ("?",), ("d",)), english) is None
    assert table_change(rows, EvalQuery("b", ("?",), ("a", "d")), english) is None
