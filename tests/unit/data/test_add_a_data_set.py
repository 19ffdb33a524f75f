"""An example that runs: what a new data set needs is a reader with its options, and a line in the registry."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from nsfse.data import CheckReport, EvaluationProtocol, TrainingTriplet
from nsfse.data.registry import SOURCES, SourceEntry, open_source
from nsfse.evaluation.evaluate import evaluate_source
from nsfse_runtime.errors import UsageError
from tests.unit.evaluation.number_scorer import NumberScorer


class NumbersOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int = 8


class Numbers:
    """Images of one brightness each, whose ids are the numbers; a text names the number of its answer."""

    name = "numbers"
    missing = ()

    def __init__(self, folder: Path, options: NumbersOptions) -> None:
        self._ids = tuple(str(number) for number in range(options.count))

    def load(self, item, size):
        return np.full((*size, 3), int(item), np.uint8)

    def items(self, split):
        return self._ids

    def triplets(self, epoch):
        return [TrainingTriplet("0", item, (item,)) for item in self._ids[1:]]

    def protocols(self, split):
        queries = tuple(triplet.as_query() for triplet in self.triplets(0))
        return [EvaluationProtocol("numbers", "1", self._ids, queries)]

    def check(self):
        return CheckReport(self.name, {"found": len(self._ids)})


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(SOURCES, "numbers", SourceEntry(Numbers, NumbersOptions))


def test_a_new_data_set_is_opened_and_scored_by_its_name(tmp_path):
    source = open_source("numbers", tmp_path, count=6)
    (result,) = evaluate_source(NumberScorer(), source, source.protocols("test")).results
    assert (result.scores["queries"], result.scores["R@1"]) == (5, 100.0)


def test_its_options_are_checked_by_their_struct(tmp_path):
    with pytest.raises(UsageError, match="no option 'cuont'; did you mean 'count'"):
        open_source("numbers", tmp_path, cuont=6)
    with pytest.raises(UsageError, match=r"data\.options of 'numbers': Expected int, got str - at .*count"):
        open_source("numbers", tmp_path, count="six")
