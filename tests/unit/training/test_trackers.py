"""Trackers: named, they get what metrics.jsonl has; not named, none is imported. Their modules are stood in for."""

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("torch")

from nsfse.config import load_config
from nsfse.training import trackers
from nsfse.training.trackers import Trackers, check_trackers
from nsfse_runtime.errors import DataError, MissingExtraError, UsageError

ENTRY = {"step": 10, "of": 20, "loss": 0.5, "drawn": {"R@1": 40, "name": "x"}, "done": True, "t_c": {"t": 0.25}}
NAMES = "'tensorboard', 'torch.utils.tensorboard', 'wandb', 'mlflow'"
VALUES = {"loss": 0.5, "drawn/R@1": 40.0, "t_c/t": 0.25}


@pytest.fixture
def calls(monkeypatch):
    """Put stand-ins in place of the three packages, and return the list of what they were called with."""
    calls = []

    def note(name, answer=None):
        return lambda *args, **kwargs: calls.append((name, args, kwargs)) or answer

    wandb, mlflow, board = ModuleType("wandb"), ModuleType("mlflow"), ModuleType("torch.utils.tensorboard")
    wandb.init = note("wandb.init", SimpleNamespace(id="w1", log=note("wandb.log"), finish=note("wandb.finish")))
    mlflow.start_run = note("mlflow.start_run", SimpleNamespace(info=SimpleNamespace(run_id="m1")))
    for name in ("log_dict", "log_metrics", "end_run"):
        setattr(mlflow, name, note(f"mlflow.{name}"))
    writer = SimpleNamespace(add_scalar=note("board.add"), close=note("board.close"))
    board.SummaryWriter = note("board", writer)
    for module in (wandb, mlflow, board):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def configured(*names):
    return load_config(overrides=[f"train.trackers={json.dumps(names)}"])


def test_each_tracker_gets_the_numbers_and_a_continued_run_its_record(calls, tmp_path):
    config, run = configured("tensorboard", "wandb", "mlflow"), tmp_path / "mine"
    run.mkdir()
    opened = Trackers(run, config, 0, calls.append)
    opened.log(ENTRY, 10)
    opened.close()
    found = {name: (args, kwargs) for name, args, kwargs in calls}
    assert found["wandb.log"] == ((VALUES,), {"step": 10})
    renamed = {"loss": 0.5, "drawn/R_1": 40.0, "t_c/t": 0.25}
    assert found["mlflow.log_metrics"] == ((renamed,), {"step": 10})
    assert [args for name, args, _ in calls if name == "board.add"] == [
        (name, value, 10) for name, value in VALUES.items()
    ]
    assert found["wandb.init"][1]["id"] is None and found["wandb.init"][1]["name"] == "mine"
    assert found["wandb.init"][1]["config"]["train"]["trackers"] == ("tensorboard", "wandb", "mlflow")
    assert {"board.close", "wandb.finish", "mlflow.end_run"} <= found.keys()
    calls.clear()
    Trackers(run, config, 10, calls.append)
    found = {name: (args, kwargs) for name, args, kwargs in calls}
    assert found["wandb.init"][1]["id"] == "w1" and found["mlflow.start_run"][1]["run_id"] == "m1"
    assert found["board"][1] == {"purge_step": 11} and "mlflow.log_dict" not in found


def test_one_that_fails_in_training_is_left_out_with_a_note(calls, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", fail)
    notes = []
    opened = Trackers(tmp_path, configured("mlflow", "wandb"), 0, notes.append)
    opened.log(ENTRY, 10)
    opened.log(ENTRY, 20)
    assert notes == ["train.trackers: mlflow failed and is left out from here on: no network"]
    assert [name for name, *_ in calls].count("wandb.log") == 2
    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.raises(UsageError, match="wandb did not start"):
        Trackers(tmp_path, configured("wandb"), 0, notes.append)


def test_one_that_is_missing_or_unknown_is_named(monkeypatch):
    monkeypatch.setattr("nsfse_runtime.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "nsfse\[wandb\]"'):
        check_trackers(configured("wandb"))
    check_trackers(configured())
    with pytest.raises(DataError, match="trackers"):
        configured("comet")


def test_none_is_imported_unless_named():
    code = f"import sys; sys.path[:0] = {[entry for entry in sys.path if entry]}; import nsfse.training.loop; "
    code += f"sys.exit(' '.join({{{NAMES}}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


def test_tensorboard_itself_reads_what_is_written(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    opened = trackers.Trackers(tmp_path, configured("tensorboard"), 0, print)
    opened.log(ENTRY, 10)
    opened.close()
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("drawn/R@1")] == [(10, 40.0)]
