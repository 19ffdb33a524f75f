"""How many steps of each method take equal minutes: a few steps of each are timed before anything is compared."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch
from numpy.typing import NDArray

from nsfse.config import Config, same_config
from nsfse.models.checkpoint import write_file
from nsfse.progress import print_status
from nsfse.training.loop import train
from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.regular_files import read_regular

STEPS, ROUNDS = 12, 2  # timed at once, and how often the methods take turns
WARMING = 2  # first steps of each turn, not counted


class Timed(msgspec.Struct, frozen=True):
    """One method of a preset: seconds a step, and the steps that take as many minutes as those of `like`."""

    like: str
    seconds_per_step: float
    steps: int
    minutes: float
    threads: int
    config: dict[str, Any]


def equal_minutes(
    preset: str, configs: Mapping[str, Config], out: Path, feature_cache: dict[str, NDArray[Any]]
) -> dict[str, Timed]:
    """Time each method, and return its steps for the minutes of the first one.

    The first method takes its own number of steps. Measurements are stored in `out`/minutes.json and
    not repeated.

    Args:
        preset: The preset that the methods train by.
        configs: Configurations by method; the first one sets the minutes.
        out: Folder of the comparison.
        feature_cache: Features of images that all trainings share.

    Returns:
        Steps and times by method.

    Raises:
        UsageError: The stored measurements are of another configuration.
        KeyboardInterrupt: A signal stopped it.
    """
    file, reference = out / "minutes.json", next(iter(configs))
    known = _read(file)
    names = {method: f"{preset}, {method}" for method in configs}
    for method, config in configs.items():
        before = known.get(names[method])
        if before and not (before.like == reference and same_config(before.config, config)):
            raise UsageError(f"{file} is of another configuration; choose another folder with -o, or remove it")
    lacking = [method for method in configs if names[method] not in known]
    if lacking:
        measured = _measure(
            {method: configs[method] for method in dict.fromkeys([reference, *lacking])}, out, feature_cache
        )
        first = known.get(names[reference])
        budget = first.minutes if first else measured[reference][0] * measured[reference][1] / 60
        for method in lacking:
            seconds, own_steps = measured[method]
            steps = own_steps if method == reference else max(1, round(60 * budget / seconds))
            tree = msgspec.to_builtins(configs[method])
            known[names[method]] = Timed(reference, seconds, steps, seconds * steps / 60, torch.get_num_threads(), tree)
        write_file(file, msgspec.json.format(msgspec.json.encode(known), indent=2))
    timed = {method: known[names[method]] for method in configs}
    print_status(minutes_text(preset, timed))
    return timed


def minutes_text(preset: str, timed: Mapping[str, Timed]) -> str:
    """Return a line on what was measured."""
    count = next(iter(timed.values())).threads
    threads = "1 thread" if count == 1 else f"{count} threads"
    method_texts = "; ".join(
        f"{method} {timing.steps} steps of {timing.seconds_per_step:.3g} s = {timing.minutes:.2f} minutes"
        for method, timing in timed.items()
    )
    return f"{preset}, measured beforehand with {threads}: {method_texts}"


def _read(file: Path) -> dict[str, Timed]:
    if not file.exists():
        return {}
    try:
        return msgspec.json.decode(read_regular(file), type=dict[str, Timed])
    except msgspec.DecodeError as error:
        raise IntegrityError(f"{file} is damaged: {error}; remove it, and steps are timed again") from None


def _measure(
    configs: Mapping[str, Config], out: Path, feature_cache: dict[str, NDArray[Any]]
) -> dict[str, tuple[float, int]]:
    """Return the seconds of a step and the steps of its configuration for each method.

    Methods take turns, and the faster turn counts: other work on the machine only adds.
    """
    print_status(f"timing {STEPS} steps of {', '.join(configs)}, {ROUNDS} times")
    times: dict[str, list[float]] = {method: [] for method in configs}
    steps: dict[str, int] = {}
    reference = next(iter(configs))
    for method in [reference, *[method for _ in range(ROUNDS) for method in configs]]:
        seconds, steps[method] = _steps(configs[method], out, feature_cache)
        times[method].append(seconds)
    times[reference].pop(0)  # it read the images that all share
    return {method: (min(turns), steps[method]) for method, turns in times.items()}


def _steps(config: Config, out: Path, feature_cache: dict[str, NDArray[Any]]) -> tuple[float, int]:
    """Train a few steps; return the median seconds of one and how many the whole training has."""
    clock, total = [time.monotonic()], [0]
    times: list[float] = []

    def follow(entry: dict[str, Any]) -> None:
        now = time.monotonic()
        if "of" in entry:
            times.append(now - clock[0])
            total[0] = entry["of"]
        clock[0] = now

    with tempfile.TemporaryDirectory(dir=out) as folder:
        if train(config, Path(folder) / "run", steps=STEPS, progress=follow, feature_cache=feature_cache).interrupted:
            raise KeyboardInterrupt
    return median(times[min(WARMING, len(times) - 1) :]), total[0]
