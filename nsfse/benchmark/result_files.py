"""What a comparison trains, and the JSON file that stores each training with its scores."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from nsfse.config import Config, same_config
from nsfse.data import EvaluationProtocol, Source
from nsfse.models.checkpoint import write_file
from nsfse_runtime.errors import IntegrityError, OutputError, UsageError
from nsfse_runtime.json_schema import SCHEMA_VERSION
from nsfse_runtime.output_files import check_folder
from nsfse_runtime.regular_files import read_regular


@dataclass(frozen=True)
class Task:
    """A preset to train by, its data, and the protocols that its models are scored on, by requested name."""

    preset: str
    config: Config
    source: Source
    protocols: dict[str, EvaluationProtocol]
    feature_cache: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Images, or features of a frozen trunk, shared by its trainings."""


@dataclass(frozen=True)
class Run:
    """One method, trained from one seed for one task."""

    task: Task
    method: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Return its name as of a file: `products-nsfse_gamma=0-s1`."""
        return f"{self.task.preset}-{self.method.replace(':', '_')}-s{self.seed}"


class ResultFiles:
    """The JSON files of a comparison, one for each run."""

    def __init__(self, out: Path) -> None:
        """Make the folder. Raises OutputError where it cannot be made, or holds something else."""
        self.out = out
        check_folder(out, ("minutes.json",), ("results",))
        try:
            (out / "results").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {out}: {error.strerror}; choose another with -o") from None

    def read(self, run: Run) -> dict[str, Any]:
        """Return the entry of a run, an empty one at first. Raises UsageError where it has another configuration."""
        file = self.out / "results" / f"{run.name}.json"
        config = msgspec.to_builtins(run.config)
        if not file.exists():
            known = {
                "schema_version": SCHEMA_VERSION,
                "method": run.method,
                "seed": run.seed,
                "preset": run.task.preset,
            }
            times = {"trained": False, "steps": 0, "train_seconds": 0.0, "evaluate_seconds": 0.0}
            return {**known, **times, "scores": {}, "config": config}
        try:
            entry: dict[str, Any] = msgspec.json.decode(read_regular(file), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise IntegrityError(f"{file} is damaged: {error}; remove it to repeat its run") from None
        if not same_config(entry["config"], run.config):
            raise UsageError(f"{file} is of another configuration; choose another folder with -o, or remove it")
        return entry

    def write(self, run: Run, **changes: Any) -> None:
        """Change fields in the entry of a run."""
        tree = self.read(run) | changes
        write_file(self.out / "results" / f"{run.name}.json", msgspec.json.format(msgspec.json.encode(tree), indent=2))

    def unscored(self, run: Run) -> tuple[str, ...]:
        """Return the protocols on which a run has no score yet."""
        scores = self.read(run)["scores"]
        return tuple(name for name in run.task.protocols if name not in scores)
