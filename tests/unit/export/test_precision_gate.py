"""Reduced bundles on trial: what is scored, what is refused, and what is said."""

from types import SimpleNamespace

import numpy as np
import pytest

for name in ("torch", "onnx", "onnxruntime"):
    pytest.importorskip(name)

from nsfse.config import DataConfig
from nsfse.data import EvaluationProtocol
from nsfse_export.precision_gate import compare, exam_of, refuse, table
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


def test_scores_are_kept_with_what_they_are_scores_of():
    found = compare("int8", evaluation(shop=61.25), evaluation(shop=60.75))
    assert found == {
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
    assert table("int8", found).splitlines()[1].split() == ["shop", "200", "61.25", "60.75", "-0.50"]


@pytest.mark.parametrize(
    ("precision", "whole", "other", "right"),
    [
        ("int8", 33.3, 32.8, True),
        ("int8", 33.3, 32.79, False),
        ("int8", 33.3, 33.81, False),
        ("fp16", 33.3, 33.4, True),
        ("bf16", 33.3, 33.19, False),
        ("fp16", 33.3, float("nan"), False),
    ],
)
def test_what_is_too_far_from_float32_is_refused_in_one_line(precision, whole, other, right):
    found = compare(precision, evaluation(shop=50.0, street=whole), evaluation(shop=50.0, street=other))
    if right:
        return refuse(precision, found)
    with pytest.raises(IntegrityError, match=r"street 33\.30 → .*nothing was written") as refusal:
        refuse(precision, found)
    assert refusal.value.exit_code == 5 and "shop" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_run_is_examined_on_what_it_learned_from(monkeypatch):
    asked = []
    monkeypatch.setattr("nsfse_export.precision_gate.evaluate_source", lambda *a, **k: asked.append(a))
    drawn = DataConfig(options={"level": "easy", "gallery": 40})
    exam_of("int8", drawn)(np)
    ((scorer, source, protocols),) = asked
    assert scorer is np and source.name == "drawn-easy" and [p.name for p in protocols] == ["drawn"]


@pytest.mark.parametrize(
    ("trained_on", "why"),
    [
        (DataConfig(source="table", folder="nowhere"), "nowhere"),
        (DataConfig(options={"level": "easy", "gallery": 40}, validation="train"), "drawn-easy has no queries"),
    ],
)
def test_without_queries_the_line_names_both_ways_out(trained_on, why):
    with pytest.raises(
        DataError, match=rf"verify the precision on \(.*{why}.*--verify-on.*--skip-verification"
    ) as refusal:
        exam_of("fp16", trained_on)
    assert "\n" not in str(refusal.value)


def test_options_that_say_nothing_together_are_refused(tmp_path):
    assert exam_of("fp32", DataConfig()) is None and exam_of("int8", DataConfig(source="table"), None, True) is None
    for precision, queries, unverified in (("int8", tmp_path, True), ("fp32", tmp_path, False), ("fp32", None, True)):
        with pytest.raises(UsageError, match="--verify-on and --skip-verification"):
            exam_of(precision, DataConfig(), queries, unverified)
    with pytest.raises((NotFoundError, DataError)):
        exam_of("int8", DataConfig(), tmp_path / "no query set")
