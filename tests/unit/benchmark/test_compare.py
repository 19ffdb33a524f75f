"""`nsfse bench accuracy`: the table's arithmetic, and the road of two methods and two seeds at toy size."""

import contextlib
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")

from nsfse.benchmark import compare, equal_minutes
from nsfse.benchmark.blocks import CAPTIONS, blocks_of
from nsfse.benchmark.markdown import latex_table
from nsfse.benchmark.methods import ABLATIONS, method_settings
from nsfse.benchmark.significance import Versus
from nsfse.benchmark.table import Row, findings, format_mean_std, markdown, mean_and_std, plot, table
from nsfse.cli import app
from nsfse.config import PRESETS, load_config
from nsfse.training.loop import train
from nsfse_runtime.errors import DataError, UsageError

TOY = [
    "data.options.items=64",
    "data.options.triplets=32",
    "data.options.gallery=32",
    "data.fitting_queries=20",
    "model.backbone=tiny",
    "model.frozen_stages=0",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=16",
    "train.batch=16",
    "train.candidates=6",
    "train.epochs=1",
]
METHODS = ("sum", "nsfse:gamma=0")


def toy(out, methods=METHODS, protocols=("drawn-easy-single",), **options):
    return compare.compare(protocols, methods, out, **({"seeds": 2, "overrides": TOY} | options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("table")
    return out, toy(out)


def refuse(*arguments, **options):
    raise AssertionError("this was done before")


def test_mean_and_std_are_those_of_a_sample():
    # Deviations −3, −1, 4 of the mean 5: (9 + 1 + 16) / 2 = 13.
    assert mean_and_std([2.0, 4.0, 9.0]) == (5.0, pytest.approx(13**0.5))
    assert mean_and_std([7.0]) == (7.0, None)
    assert (format_mean_std(12.34, 0.46), format_mean_std(12.34, None), format_mean_std(None, None)) == (
        "12.3 ± 0.5",
        "12.3",
        "",
    )


def entry(method, seed, seconds, **protocols):
    scores = {
        name: dict(zip(("R@1", "R@10", "hard_negative_rate", "phrasing_gap"), values, strict=True))
        for name, values in protocols.items()
    }
    return {"method": method, "seed": seed, "train_seconds": seconds, "steps": 5, "scores": scores}


def test_a_table_has_a_row_for_each_method_on_each_protocol():
    results = [
        entry("tirg", 0, 60, a=(10.0, 40.0, 5.0, None), b=(1.0, 2.0, 3.0, 4.0)),
        entry("tirg", 1, 120, a=(20.0, 40.0, 7.0, None)),
        entry("sum", 0, 30, a=(5.0, 6.0, None, 2.0)),
    ]
    rows = table(results, ["b", "a"], ["sum", "tirg"])
    no_p = {name: Versus(name, no_p="results of an older version") for name in ("sum", "tirg")}
    assert rows == (
        Row("tirg", "b", 1, 1.0, None, 2.0, None, 3.0, 4.0, 1.0, 5),
        Row("sum", "a", 1, 5.0, None, 6.0, None, None, 2.0, 0.5, 5, against_best=no_p["tirg"]),
        Row(
            *("tirg", "a", 2, 15.0, pytest.approx(50**0.5), 40.0, 0.0, 6.0, None, 1.5, 5),
            **{name: no_p["sum"] for name in ("against_best", "against_first", "least_sure")},
        ),
    )
    text = markdown(rows, ["sum, seed 1: a"])
    assert "| tirg | 2 | 15.0 ± 7.1 | 40.0 ± 0.0 | 6.0 |  | 5 | 1.5 |" in text
    assert text.index("## b") < text.index("## a") and text.endswith("- sum, seed 1: a\n")


def bits(method, shares, queries=300, of="x"):
    """Make an entry for each seed: method finds its `shares` of four phrasings of each query at R@1."""
    chance, entries = np.random.default_rng(0).random(queries), []
    for seed, share in enumerate(shares):
        rng = np.random.default_rng([seed, *method.encode()])
        hits = rng.random((queries, 4)) < np.clip(chance[:, None] + share - 0.5, 0, 1)
        words = " ".join("".join(map(str, row.astype(int))) for row in hits)
        one = entry(method, seed, 60, a=(100 * hits.mean(), 100 * hits.mean(), None, None))
        one["scores"]["a"]["outcomes"] = {"queries": of, "R@1": words, "R@10": words}
        entries.append(one)
    return entries


def test_a_lead_is_bold_and_said_from_p_alone():
    near = [*bits("nsfse", (0.51, 0.52, 0.5)), *bits("sum", (0.5, 0.51, 0.5)), *bits("tirg", (0.3, 0.3, 0.3))]
    clear = [*bits("nsfse", (0.7, 0.72, 0.71)), *near[3:]]
    for entries, leads in ((near, False), (clear, True)):
        rows = table(entries, ["a"], ["tirg", "nsfse", "sum"])
        assert rows[1].r1 > max(rows[0].r1, rows[2].r1) and [row.leads for row in rows] == [False, leads, False]
        (said,) = findings(rows)
        text, image = markdown(rows), plot(rows)
        assert said.leader == ("nsfse" if leads else "")
        assert (
            ("**Nsfse leads at R@1: +" in text) == ("| nsfse | 3 | **" in text) == (", leads</text>" in image) == leads
        )
        assert ("No lead is shown at R@1: nsfse is +" in text) == ("no lead is shown" in image) == (not leads)
        assert "| nsfse | tirg, the first | +" in text and "| nsfse | sum, the best other | +" in text
        assert "| tirg | nsfse, the best other | −" in text and "not resampled" not in text
        assert rows[1].against_best.r1.p == rows[2].against_best.r1.p and rows[0].against_first is None
        ElementTree.fromstring(image)


def test_the_best_of_all_leads_only_where_no_other_is_as_good():
    # sum is hardly behind but sure to be, tirg further behind on average and unsure: nothing is shown.
    entries = [*bits("nsfse", (0.6, 0.6, 0.6)), *bits("sum", (0.5, 0.5, 0.5)), *bits("tirg", (0.8, 0.3, 0.35))]
    rows = table(entries, ["a"], ["nsfse", "sum", "tirg"])
    assert rows[0].against_best.method == "sum" and rows[0].against_best.r1.p < 0.05
    assert rows[0].least_sure.method == "tirg" and rows[0].least_sure.r1.p > 0.05 and not rows[0].leads
    assert "nsfse is +" in findings(rows)[0].text and "over tirg" in findings(rows)[0].text


def test_a_variant_is_no_other_method_where_there_are_others():
    entries = [*bits("nsfse", (0.7, 0.7)), *bits("nsfse:gamma=0", (0.7, 0.7)), *bits("sum", (0.4, 0.4))]
    rows = table(entries, ["a"], ["nsfse", "nsfse:gamma=0", "sum"])
    assert [row.against_best.method for row in rows[:2]] == ["sum", "sum"]
    assert rows[1].against_first.method == "nsfse" and any(row.leads for row in rows)
    rows = table(entries, ["a"], ["nsfse", "nsfse:gamma=0"])
    assert rows[0].against_best.method == "nsfse:gamma=0" and not any(row.leads for row in rows)


def test_one_seed_and_other_queries_are_said():
    one = table([*bits("nsfse", (0.9,)), *bits("sum", (0.4, 0.4))], ["a"], ["nsfse", "sum"])
    text = markdown(one)
    assert (
        one[0].leads and "one seed: seeds were not resampled" in text and "p says nothing of another training" in text
    )
    other = table([*bits("nsfse", (0.9,)), *bits("sum", (0.4,), of="y")], ["a"], ["nsfse", "sum"])
    assert other[0].against_best.no_p == "not the same queries" and not other[0].leads


@pytest.mark.parametrize("name", ["drawn", "products"])
def test_tables_of_an_older_version_are_read_without_p(name):
    tree = json.loads(
        (Path(__file__).parents[3] / "docs" / "results" / "comparison" / f"{name}.json").read_text("utf-8")
    )
    rows = msgspec.convert(tree["rows"], tuple[Row, ...])
    if any(row.against_best for row in rows):
        pytest.skip("this table is of a newer version")
    text = markdown(rows)
    assert "| nsfse | 3 | 67.8 ± 0.5 |" in text or name != "drawn"
    assert "no p (results of an older version)" in text and "leads" not in text
    ElementTree.fromstring(plot(rows))


def test_the_plot_puts_each_mean_on_its_scale():
    rows = table(
        [entry("<tirg>", s, 60, a=(r1, 40.0, None, None)) for s, r1 in enumerate((10.0, 20.0))], ["a"], ["<tirg>"]
    )
    root = ElementTree.fromstring(plot(rows))
    (circle,) = root.iter("{http://www.w3.org/2000/svg}circle")
    # 15 of a scale to 40 (15 + 7.07 is over 20): 240 + 460 · 15 / 40
    assert float(circle.get("cx")) == 412.5
    assert "<tirg>" in "".join(root.itertext())
    assert plot(()).startswith("<svg")


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_a_valid_configuration_of_its_own(name):
    switch = name if "=" in ABLATIONS[name] else f"{name}=0.5"
    settings = method_settings(f"nsfse:{switch}")
    bases = (None, *PRESETS)  # some switch off what only a preset switches on
    assert any(load_config(base, overrides=settings) != load_config(base) for base in bases)
    with pytest.raises(UsageError, match="no ablation"):
        method_settings(f"nsfse:{name}{'=1' if '=' in ABLATIONS[name] else ''}")


def test_ablations_join_and_a_wrong_value_is_refused():
    model = load_config(overrides=method_settings("nsfse:fixed-t=0.2+sentence")).model
    assert (model.method, model.boundary, model.words) == ("nsfse", 0.2, "sentence")
    with pytest.raises(DataError, match="boundary"):
        load_config(overrides=method_settings("nsfse:fixed-t=high"))


def test_blocks_spell_their_methods():
    every = blocks_of(list(CAPTIONS), ["nsfse", "sum", "tirg"])
    assert [block.methods for block in every] == [
        ("nsfse:unnamed", "sum", "tirg"),
        ("nsfse", "sum:facts", "tirg:facts"),
        ("nsfse", "sum:facts+minutes", "tirg:facts+minutes"),
    ]
    assert blocks_of(["minutes"], ["sum", "nsfse"])[0].methods == ("sum:facts", "nsfse:minutes")
    assert blocks_of((), ["sum", "sum", "nsfse:gamma=0"])[0].methods == ("sum", "nsfse:gamma=0")
    for names, methods, said in ((["fact"], ["sum"], "no block 'fact'"), (["facts"], ["sum:facts"], "name sum, not")):
        with pytest.raises(UsageError, match=said):
            blocks_of(names, methods)
    for block in every:
        assert "never use" in block.caption
        for method in block.methods:
            load_config(overrides=method_settings(method))
    model = load_config(overrides=method_settings("tirg:facts+minutes")).model
    assert (model.method, model.attribute_supervision) == ("tirg", True)


@pytest.mark.parametrize("method", ["tirg:gamma=0", "tirg:fact", "nsfse:facts", "nsfse:", "sum:", "sum:facts+"])
def test_a_switch_of_another_method_is_refused(method):
    with pytest.raises(UsageError, match=r"no (method|ablation) '"):
        method_settings(method)


def test_steps_take_the_minutes_of_the_first_method(tmp_path, monkeypatch, capsys):
    seconds, asked = {"nsfse": [9.0, 2.0, 2.5], "sum": [0.75, 0.5], "tirg": [8.0, 4.0]}, []

    def steps(config, out, kept):
        asked.append(config.model.method)
        return seconds[config.model.method].pop(0), 30

    monkeypatch.setattr(equal_minutes, "_steps", steps)
    configs = {name: load_config(overrides=method_settings(name)) for name in ("nsfse", "sum:minutes")}
    found = equal_minutes.equal_minutes("drawn", configs, tmp_path, {})
    # The first turn reads images and does not count; 30 steps of 2 s are a minute, and 120 of half a second.
    assert asked == ["nsfse", "nsfse", "sum", "nsfse", "sum"]
    assert [(one.steps, one.minutes) for one in found.values()] == [(30, 1.0), (120, 1.0)]
    assert "sum:minutes 120 steps of 0.5 s = 1.00 minutes" in capsys.readouterr().err
    again = equal_minutes.equal_minutes("drawn", configs, tmp_path, {})
    assert [one.steps for one in again.values()] == [30, 120] and len(asked) == 5
    seconds["nsfse"] = [7.0, 7.0, 7.0]
    more = equal_minutes.equal_minutes(
        "drawn", configs | {"tirg:minutes": load_config(overrides=method_settings("tirg"))}, tmp_path, {}
    )
    assert (more["tirg:minutes"].steps, more["nsfse"].minutes) == (15, 1.0)
    with pytest.raises(UsageError, match="another configuration"):
        equal_minutes.equal_minutes("drawn", {"nsfse": load_config(overrides=["train.lr=0.5"])}, tmp_path, {})
    with pytest.raises(UsageError, match="first method sets the minutes"):
        toy(tmp_path, methods=("sum:minutes", "nsfse"))


def test_steps_are_timed_and_leave_nothing(tmp_path):
    seconds, steps = equal_minutes._steps(load_config("drawn-easy", overrides=[*TOY, "model.method=sum"]), tmp_path, {})
    assert 0 < seconds < 100 and steps == 2 and not list(tmp_path.iterdir())


def test_three_blocks_from_one_command(tmp_path, monkeypatch):
    speed = {"nsfse": 0.4, "sum": 0.2}
    monkeypatch.setattr(equal_minutes, "_steps", lambda config, *rest: (speed[config.model.method], 2))
    options = {"methods": ("nsfse", "sum"), "seeds": 1, "blocks": tuple(CAPTIONS)}
    found = toy(tmp_path, **options)
    assert [(row.block, row.method) for row in found.rows] == [
        ("right-answers", "nsfse:unnamed"),
        ("right-answers", "sum"),
        ("facts", "nsfse"),
        ("facts", "sum:facts"),
        ("minutes", "nsfse"),
        ("minutes", "sum:facts+minutes"),
    ]
    assert found.missing == () and len(list((tmp_path / "results").iterdir())) == 5  # nsfse is trained once
    timed = json.loads((tmp_path / "minutes.json").read_text())["drawn-easy, sum:facts+minutes"]
    assert found.rows[5].steps == timed["steps"] == 4 and found.rows[3].steps == 2
    assert (tmp_path / "table.tex").read_text().count(r"\toprule") == 3
    text = (tmp_path / "table.md").read_text()
    assert all(f"## {name}: drawn-easy-single" in text and CAPTIONS[name] in text for name in CAPTIONS)
    assert "measured beforehand with" in text and "seeds were not resampled" in text
    tree = json.loads((tmp_path / "table.json").read_text())
    assert [one["block"] for one in tree["findings"]] == list(tree["blocks"]) == list(CAPTIONS)
    assert tree["rows"][1]["against_first"]["method"] == "nsfse:unnamed"
    result = json.loads((tmp_path / "results" / "drawn-easy-sum_facts-s0.json").read_text())
    score = result["scores"]["drawn-easy-single"]
    words = score["outcomes"]["R@1"].split()
    assert len(words) == score["queries"]
    assert np.mean([word.count("1") / len(word) for word in words]) * 100 == pytest.approx(score["R@1"], abs=1e-3)
    monkeypatch.setattr(compare, "train", refuse)
    monkeypatch.setattr(equal_minutes, "_steps", refuse)
    assert toy(tmp_path, **options).rows == found.rows


def test_facts_need_a_source_that_knows_any(tmp_path, monkeypatch):
    class Unknowing:
        name = "unknowing"

        def __init__(self, source):
            self.protocols = source.protocols

    opened = compare.open_source
    monkeypatch.setattr(compare, "open_source", lambda *given, **options: Unknowing(opened(*given, **options)))
    with pytest.raises(UsageError, match="sum:facts: unknowing knows no facts"):
        toy(tmp_path, methods=("sum:facts",))


def test_two_methods_and_two_seeds_make_a_table(whole):
    out, found = whole
    assert [(row.method, row.protocol, row.seeds, row.steps) for row in found.rows] == [
        (method, "drawn-easy-single", 2, 2) for method in METHODS
    ]
    assert found.missing == () and not found.interrupted and 0 < found.total_hours <= found.hours
    saved = json.loads((out / "table.json").read_text())
    assert saved["rows"][0]["r1"] == found.rows[0].r1 and saved["missing"] == []
    assert "| sum | 2 |" in (out / "table.md").read_text()
    assert not list(out.glob("runs/*/state.safetensors")) and len(list(out.glob("runs/*/model.safetensors"))) == 4
    for name in ("sum-s0", "sum-s1", "nsfse_gamma=0-s0", "nsfse_gamma=0-s1"):
        result = json.loads((out / "results" / f"drawn-easy-{name}.json").read_text())
        assert result["trained"] and result["train_seconds"] > 0
        assert result["scores"]["drawn-easy-single"]["protocol"]["gallery_size"] == 32


def test_what_is_done_is_not_done_again_and_another_protocol_needs_no_training(whole, monkeypatch):
    out, found = whole
    monkeypatch.setattr(compare, "train", refuse)
    more = toy(out, protocols=("drawn-easy-single", "drawn-easy"))
    assert [row.r1 for row in more.rows[:2]] == [row.r1 for row in found.rows]
    assert {row.protocol for row in more.rows} == {"drawn-easy-single", "drawn-easy"}
    monkeypatch.setattr(compare, "evaluate_source", refuse)
    assert toy(out).rows == found.rows


def test_results_of_an_older_version_stay_and_have_no_p(whole, tmp_path, monkeypatch):
    out, found = whole
    shutil.copytree(out / "results", tmp_path / "results")
    assert found.rows[0].against_best.r1 and "no p" not in (out / "table.md").read_text()
    for file in (tmp_path / "results").glob("drawn-easy-sum-*.json"):
        tree = json.loads(file.read_text())
        del tree["config"]["model"]["attribute_supervision"], tree["config"]["train"]["total_steps"]
        for score in tree["scores"].values():
            del score["outcomes"]
        file.write_text(json.dumps(tree))
    monkeypatch.setattr(compare, "train", refuse)
    monkeypatch.setattr(compare, "evaluate_source", refuse)
    old = toy(tmp_path)
    assert [(row.method, row.r1, row.r10) for row in old.rows] == [(row.method, row.r1, row.r10) for row in found.rows]
    assert "no p (results of an older version)" in (tmp_path / "table.md").read_text()
    assert not any(row.leads for row in old.rows) and old.rows[0].against_best.r1 is None


def test_another_configuration_is_refused(whole):
    with pytest.raises(UsageError, match="another configuration"):
        toy(whole[0], overrides=[*TOY, "train.lr=0.5"])


def test_a_time_box_stops_in_the_midst_of_a_training_and_the_next_call_continues(whole, tmp_path, monkeypatch):
    now = [0.0]

    @contextlib.contextmanager
    def slow_bar():
        yield lambda entry: now.__setitem__(0, now[0] + 90.0)

    monkeypatch.setattr(compare, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(compare, "training_bar", slow_bar)
    stopped = toy(tmp_path, methods=("sum", "tirg"), seeds=1, minutes=1)
    monkeypatch.undo()
    assert stopped.missing == ("sum, seed 0: drawn-easy-single", "tirg, seed 0: drawn-easy-single")
    assert not stopped.interrupted and stopped.hours == stopped.total_hours == 90 / 3600
    assert "Missing" in (tmp_path / "table.md").read_text() and not (tmp_path / "runs" / "drawn-easy-tirg-s0").exists()
    done = toy(tmp_path, methods=("sum",), seeds=1)
    assert done.missing == () and done.rows[0].r1 == _seed_0(whole[0])
    assert done.rows[0].minutes > 1.5


def test_a_training_stopped_by_a_signal_stops_the_comparison(tmp_path, monkeypatch):
    def stopped(config, folder, **options):
        return train(config, folder, should_stop=lambda: True)

    monkeypatch.setattr(compare, "train", stopped)
    found = toy(tmp_path, methods=("sum", "tirg"), seeds=1)
    assert found.interrupted and len(found.missing) == 2 and len(list((tmp_path / "runs").iterdir())) == 1


def _seed_0(out):
    return json.loads((out / "results" / "drawn-easy-sum-s0.json").read_text())["scores"]["drawn-easy-single"]["R@1"]


def test_the_command_prints_the_table_and_the_hours(whole, capsys):
    out = whole[0]
    common = ["bench", "accuracy", "-o", str(out), "--protocols", "drawn-easy-single", "--methods", ",".join(METHODS)]
    sets = [part for setting in TOY for part in ("--set", setting)]
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            app.main([*common, "--seeds", "2", *sets, *options])
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        if options:
            assert json.loads(printed)["rows"][1]["method"] == "nsfse:gamma=0"
        else:
            assert "nsfse:gamma=0" in printed and "hours now" in printed and "table.svg" in printed


def test_a_table_for_latex_escapes_its_cells_and_is_bold_where_it_leads():
    text = latex_table(("method", "R@1"), [("a_b & c", "**40.0 ± 1.5**"), ("x", "3.0")], "50 % of {all}")
    assert r"\begin{tabular}{lr}" in text and r"\caption{50 \% of \{all\}}" in text
    assert r"a\_b \& c & \textbf{40.0 $\pm$ 1.5} \\" in text and text.count(r" \\") == 3
