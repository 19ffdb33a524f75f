"""`nsfse bench accuracy`: the table's arithmetic, and the road of two methods and two seeds at toy size."""

import contextlib
import json
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from nsfse import cli, comparison
from nsfse.comparison import ABLATIONS, compare, method_settings
from nsfse.comparison_table import Row, markdown, mean_and_deviation, plot, spread, table
from nsfse.config import load_config
from nsfse.significance import Versus
from nsfse.train import train
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
    return compare(protocols, methods, out, **({"seeds": 2, "overrides": TOY} | options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("table")
    return out, toy(out)


def refuse(*arguments, **options):
    raise AssertionError("this was done before")


def test_mean_and_deviation_are_those_of_a_sample():
    # Deviations −3, −1, 4 of the mean 5: (9 + 1 + 16) / 2 = 13.
    assert mean_and_deviation([2.0, 4.0, 9.0]) == (5.0, pytest.approx(13**0.5))
    assert mean_and_deviation([7.0]) == (7.0, None)
    assert (spread(12.34, 0.46), spread(12.34, None), spread(None, None)) == ("12.3 ± 0.5", "12.3", "")


def entry(method, seed, seconds, **protocols):
    scores = {
        name: dict(zip(("R@1", "R@10", "hard_negative_rate", "phrasing_spread"), values, strict=True))
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
    assert load_config(overrides=method_settings(f"nsfse:{switch}")) != load_config()
    with pytest.raises(UsageError, match="no ablation"):
        method_settings(f"nsfse:{name}{'=1' if '=' in ABLATIONS[name] else ''}")


def test_ablations_join_and_a_wrong_value_is_refused():
    model = load_config(overrides=method_settings("nsfse:fixed-t=0.2+sentence")).model
    assert (model.method, model.boundary, model.words) == ("nsfse", 0.2, "sentence")
    with pytest.raises(DataError, match="boundary"):
        load_config(overrides=method_settings("nsfse:fixed-t=high"))


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
    monkeypatch.setattr(comparison, "train", refuse)
    more = toy(out, protocols=("drawn-easy-single", "drawn-easy"))
    assert [row.r1 for row in more.rows[:2]] == [row.r1 for row in found.rows]
    assert {row.protocol for row in more.rows} == {"drawn-easy-single", "drawn-easy"}
    monkeypatch.setattr(comparison, "evaluate_source", refuse)
    assert toy(out).rows == found.rows


def test_another_configuration_is_refused(whole):
    with pytest.raises(UsageError, match="another configuration"):
        toy(whole[0], overrides=[*TOY, "train.lr=0.5"])


def test_a_time_box_stops_in_the_midst_of_a_training_and_the_next_call_continues(whole, tmp_path, monkeypatch):
    now = [0.0]

    @contextlib.contextmanager
    def slow_bar():
        yield lambda entry: now.__setitem__(0, now[0] + 90.0)

    monkeypatch.setattr(comparison, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(comparison, "training_bar", slow_bar)
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
        return train(config, folder, enough=lambda: True)

    monkeypatch.setattr(comparison, "train", stopped)
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
            cli.main([*common, "--seeds", "2", *sets, *options])
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        if options:
            assert json.loads(printed)["rows"][1]["method"] == "nsfse:gamma=0"
        else:
            assert "nsfse:gamma=0" in printed and "hours now" in printed and "table.svg" in printed
