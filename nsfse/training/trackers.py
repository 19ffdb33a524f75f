"""TensorBoard, Weights & Biases and MLflow: what `train.trackers` names gets each line of metrics.jsonl, too.

None is imported unless it is named. A continued run goes on in the same record of its tracker.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from nsfse.config import Config
from nsfse.models.checkpoint import write_file
from nsfse_runtime.errors import UsageError
from nsfse_runtime.extras import need

RECORDS = "trackers.json"
"""File of a run: the name that each tracker gave to its record of it."""


class Tracker(Protocol):
    """Where scalars go."""

    record: str
    """The tracker's own name for its record of this run; empty where there is none."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the values of one step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    record = ""

    def __init__(self, run: Path, config: Config, record: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: dict[str, float], step: int) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See Tracker."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `nsfse`, or of the one that WANDB_PROJECT names."""

    def __init__(self, run: Path, config: Config, record: str, step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "nsfse"),
            name=run.resolve().name,
            dir=str(run),
            config=msgspec.to_builtins(config),
            id=record or None,
            resume="allow",
        )
        self.record = str(self._run.id)

    def log(self, values: dict[str, float], step: int) -> None:
        """See Tracker."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()


class MLflow:
    """A run in MLflow, where MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say."""

    def __init__(self, run: Path, config: Config, record: str, step: int) -> None:
        import mlflow

        self._mlflow = mlflow
        started = mlflow.start_run(run_id=record or None, run_name=None if record else run.resolve().name)
        self.record = str(started.info.run_id)
        if not record:
            mlflow.log_dict(msgspec.to_builtins(config), "config.json")

    def log(self, values: dict[str, float], step: int) -> None:
        """See Tracker; of the signs in its names MLflow allows some alone, so `R@1` is `R_1`."""
        self._mlflow.log_metrics({re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """See Tracker."""
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[Path, Config, str, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def check_trackers(config: Config) -> None:
    """Raise MissingExtraError where a tracker is not installed; its extra has its name."""
    for name in config.train.trackers:
        need(name, name)


class Trackers:
    """The trackers of a run. One that fails while it trains is left out, with a note: it costs no training."""

    def __init__(self, run: Path, config: Config, step: int, note: Callable[[str], None]) -> None:
        self._note = note
        self._open: dict[str, Tracker] = {}
        known = _read_records(run / RECORDS) if step else {}
        for name in config.train.trackers:
            try:
                self._open[name] = TRACKERS[name](run, config, known.get(name, ""), step)
            except Exception as error:  # a library of others, which may need a network or an account
                raise UsageError(
                    f"train.trackers: {name} did not start ({error}); set it up, or leave it out"
                ) from None
        if records := {name: tracker.record for name, tracker in self._open.items() if tracker.record}:
            write_file(run / RECORDS, msgspec.json.encode(known | records))

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """Pass on the numbers of an entry of metrics.jsonl, nested ones as `outer/inner`."""
        values = {name: value for name, value in _numbers(entry) if name not in ("step", "of", "epoch")}
        self._each(lambda tracker: tracker.log(values, step))

    def close(self) -> None:
        """Close all."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._open[name]
                self._note(f"train.trackers: {name} failed and is left out from here on: {error}")


def _numbers(entry: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return the numbers of nested dicts with their paths."""
    found = []
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{prefix}{name}", float(value)))
    return found


def _read_records(path: Path) -> dict[str, str]:
    """Return the records of an earlier part of the run; none where the file is gone or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}
