"""Abstention: whole and emptied galleries, and the risk of what is answered; figures counted by hand."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.abstention import risk_coverage, summary
from nsfse.evaluation.evaluate import evaluate
from nsfse.evaluation.notices import notices
from nsfse_runtime.inference.confidence import FEATURES, Decision
from tests.unit.evaluation.number_scorer import NumberScorer, number_images

COUNT = len(FEATURES)
WEIGHTS = [20.0, *[0.0] * (COUNT + COUNT * (COUNT + 1) // 2 - 1)]
ZEROS = [0.0] * (COUNT - 1)
NUMBERS = {"centre": [0.5, *ZEROS], "spread": [1.0] * COUNT, "weights": WEIGHTS, "bias": 0.0, "threshold": 0.5}


class SureOfScores(NumberScorer):
    """The confidence is that of S over ½."""

    info = replace(NumberScorer.info, confidence=msgspec.convert(NUMBERS, Decision))


def test_evaluate_ranks_whole_and_emptied_galleries_where_there_is_a_confidence():
    """Text "3 1" is about images 3 and 1: without 3 there is still 1, which has S 0.99; without both all have 0."""
    queries = (EvalQuery("0", ("3",), ("3",)), EvalQuery("0", ("3 1",), ("3",)), EvalQuery("2", ("5",), ("5",)))
    toy = EvaluationProtocol("toy", "1", tuple("012345"), queries, ks=(1,))
    result = evaluate(SureOfScores(), toy, number_images, abstention=True)
    found = result.to_json()["abstention"]
    assert (found["queries"], found["no_match"], found["false_alarms"]) == (3, pytest.approx(66.6667), 0.0)
    assert found["no_match@10"] == 100.0 and found["auroc"] == 100.0
    assert [round(point["risk"]) for point in found["risk_coverage"]] == [0, 0, 0, 0, 0, 25, 25, 50, 50, 50]
    assert any(line.startswith("nothing matches: said of 100.0 %") for line in notices(result.to_json()))
    assert evaluate(SureOfScores(), toy, number_images).abstention is None
    assert evaluate(NumberScorer(), toy, number_images, abstention=True).abstention is None


def test_emptied_galleries_are_told_at_the_tenth_of_whole_ones():
    complete = np.linspace(0.05, 0.95, 10)  # the tenth quantile is 0.14
    emptied = np.array([0.0] * 6 + [0.3] * 4)
    found = summary(complete, emptied, threshold=0.32)
    assert found == {
        "queries": 10,
        "auroc": pytest.approx(100 * (60 + 4 * 7) / 100),  # of 100 pairs
        "no_match@10": 60.0,
        "threshold": 0.32,
        "no_match": 100.0,
        "false_alarms": 30.0,
    }


def test_risk_is_the_share_of_wrong_first_hits_among_those_answered():
    confidence = np.linspace(1, 0, 20)
    right = np.array([True] * 8 + [False] * 12)
    found = risk_coverage(confidence, right)
    risks = [max(0, count - 8) / count for count in range(1, 21)]
    assert found["aurc"] == pytest.approx(100 * np.mean(risks), abs=1e-3)
    assert [point["coverage"] for point in found["risk_coverage"]] == [10.0 * step for step in range(1, 11)]
    assert [point["risk"] for point in found["risk_coverage"]] == pytest.approx(
        [100 * r for r in risks[1::2]], abs=1e-3
    )


def test_lists_of_one_confidence_are_answered_together():
    right = np.array([True, False, False, False])
    for order in (right, right[::-1]):
        assert risk_coverage(np.ones(4), order)["aurc"] == 75.0
