"""The precision gate: what is scored, what is refused, and its messages."""

from types import SimpleNamespace

import numpy as np
import pytest

for name in ("torch", "onnx", "onnxruntime"):
    pytest.importorskip(name)

from nsfse.config import DataConfig
from nsfse.data import EvaluationProtocol
from nsfse_export import ExportOptions
from nsfse_export.precision_gate import check_recall, compare, evaluator_for, format_scores
from nsfse_runtime.errors import DataError, IntegrityError, NotFoundError, UsageError


def evaluation(**recalls):
    results = [
        SimpleNamespace(
            protocol=EvaluationProtocol(name, "2", ("a", "b", "c"), ()),
            scores={"queries": 200, "R@1": 1.0, "R@10": recall},
        )
        for name, recall in recalls.items()
    ]
    return SimpleNamespace(results=results)


def test_scores_are_recorded_with_their_protocol():
    scores = compare("int8", evaluation(shop=61.25), evaluation(shop=60.75))
    assert scores == {
        "verified": True,
        "most_points": 0.5,
        "protocols": {
            "shop": {
                "version": "2",
                "queries": 200,
                "gallery": 3,
                "R@1": {"fp32": 1.0, "int8": 1.0},
                "R@10": {"fp32": 61.25, "int8": 60.75},
            }
        },
    }
    assert format_scores("int8", scores).splitlines()[1].split() == ["shop", "200", "61.25", "60.75", "-0.50"]


@pytest.mark.parametrize(
    ("precision", "before", "after", "right"),
    [
        ("int8", 33.3, 32.8, True),
        ("int8", 33.3, 32.79, False),
        ("int8", 33.3, 33.81, False),
        ("fp16", 33.3, 33.4, True),
        ("bf16", 33.3, 33.19, False),
        ("fp16", 33.3, float("nan"), False),
    ],
)
def test_a_large_change_of_recall_is_refused_in_one_line(precision, before, after, right):
    scores = compare(precision, evaluation(shop=50.0, street=before), evaluation(shop=50.0, street=after))
    if right:
        return check_recall(precision, scores)
    with pytest.raises(IntegrityError, match=r"street 33\.30 → .*nothing was written") as refusal:
        check_recall(precision, scores)
    assert refusal.value.exit_code == 5 and "shop" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_run_is_scored_on_its_own_validation_data(monkeypatch):
    calls = []
    monkeypatch.setattr("nsfse_export.precision_gate.evaluate_source", lambda *a, **k: calls.append(a))
    drawn = DataConfig(options={"level": "easy", "gallery": 40})
    evaluator_for(ExportOptions(precision="int8"), drawn)(np)
    ((scorer, source, protocols),) = calls
    assert scorer is np and source.name == "drawn-easy" and [p.name for p in protocols] == ["drawn"]


@pytest.mark.parametrize(
    ("trained_on", "why"),
    [
        (DataConfig(source="table", folder="nowhere"), "nowhere"),
        (DataConfig(options={"level": "easy", "gallery": 40}, validation="train"), "drawn-easy has no queries"),
    ],
)
def test_without_queries_the_message_names_both_options(trained_on, why):
    with pytest.raises(
        DataError, match=rf"verify the precision on \(.*{why}.*--verify-on.*--skip-verification"
    ) as refusal:
        evaluator_for(ExportOptions(precision="fp16"), trained_on)
    assert "\n" not in str(refusal.value)


def test_contradictory_options_are_refused(tmp_path):
    assert evaluator_for(ExportOptions(), DataConfig()) is None
    assert evaluator_for(ExportOptions(precision="int8", skip_verification=True), DataConfig(source="table")) is None
    for precision, queries, skip_verification in (
        ("int8", tmp_path, True),
        ("fp32", tmp_path, False),
        ("fp32", None, True),
    ):
        with pytest.raises(UsageError, match="--verify-on and --skip-verification"):
            options = ExportOptions(precision=precision, verify_on=queries, skip_verification=skip_verification)
            evaluator_for(options, DataConfig())
    with pytest.raises((NotFoundError, DataError)):
        evaluator_for(ExportOptions(precision="int8", verify_on=tmp_path / "no query set"), DataConfig())
