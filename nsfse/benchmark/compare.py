"""Methods and ablations under one loop, on the same batches and for the same steps; a table of what each scores.

Every training with its evaluation is one JSON file in OUT/results: a file that is finished is not made again, so the
same call continues a comparison that was stopped, and adds methods, seeds or protocols to one that is done.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from nsfse.benchmark.blocks import FACTS, MINUTES, Block, blocks_of
from nsfse.benchmark.equal_minutes import Timed, equal_minutes, minutes_text
from nsfse.benchmark.significance import outcomes
from nsfse.benchmark.table import Row, findings, markdown, plot, table
from nsfse.config import PRESETS, Config, load_config, same_config
from nsfse.data import EvaluationProtocol, HasAttributes, Source
from nsfse.data.registry import open_source
from nsfse.evaluation.evaluate import evaluate_source
from nsfse.models.checkpoint import checkpoint_info, write_file
from nsfse.models.pretrained import feature_extractor, is_frozen, resolve_config
from nsfse.models.torch_scorer import FeatureScorer, TorchScorer
from nsfse.open import open_run
from nsfse.progress import print_status, stages_bar, training_bar
from nsfse.training.dataloader import ImageCache
from nsfse.training.loop import train
from nsfse_runtime.errors import IntegrityError, OutputError, UsageError
from nsfse_runtime.json_schema import SCHEMA_VERSION
from nsfse_runtime.output_files import check_folder

SPLITS = ("test", "val")
"""Where a protocol is looked for: validation only where the data set has no test queries of it."""
ABLATIONS = {
    "fixed-t": "model.boundary",
    "gamma": "model.gamma",
    "alpha": "model.alpha",
    "no-infusion": "model.infusion=false",
    "unnamed": "train.word_role_weight=0 train.word_grounding_weight=0",
    "sentence": 'model.words="sentence"',
    "cross-only": 'model.branches="cross"',
    "visual-only": 'model.branches="visual"',
}
"""What may stand after `nsfse:`, as settings; those without a value here take one: nsfse:gamma=0."""


@dataclass(frozen=True)
class Task:
    """A preset to train by, the folder of its data, and the protocols that its models are scored on, by asked name."""

    preset: str
    config: Config
    source: Source
    protocols: dict[str, EvaluationProtocol]
    kept: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Images, or features of a frozen trunk, that its trainings share: all have the same."""


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


@dataclass(frozen=True)
class Comparison:
    """The table, what is not in it yet, and the hours it took: of this call, and of all trainings and evaluations."""

    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    hours: float
    total_hours: float
    files: tuple[Path, ...]
    interrupted: bool


def compare(
    protocols: Sequence[str],
    methods: Sequence[str],
    out: Path,
    *,
    seeds: int = 3,
    data: Mapping[str, Path] | None = None,
    overrides: Sequence[str] = (),
    minutes: float = 0.0,
    blocks: Sequence[str] = (),
) -> Comparison:
    """Train every method from seeds 0 ... `seeds` - 1, score each on `protocols`; write table.md, .json, .svg in `out`.

    With `blocks` (`blocks.py`) the plain `methods` are compared in each of them. Methods of equal minutes are timed
    first, and take the minutes of the first method of their block.
    A protocol belongs to the preset that its name starts with; `data` gives a preset's folder, `overrides` change every
    configuration alike. No training goes on after `minutes` (0: no limit). All methods of a seed come before the next
    seed. Raises UsageError for an unknown method, block or protocol and where `out` holds results of another
    configuration.
    """
    started = time.monotonic()
    protocols, parts = list(dict.fromkeys(protocols)), blocks_of(blocks, methods)
    every = list(dict.fromkeys(method for part in parts for method in part.methods))
    for method in every:
        method_settings(method)  # a wrong name is refused before any data is opened
    tasks = _tasks(protocols, data or {}, overrides)
    _refuse_nothing_to_learn(every, tasks)
    results = _Results(out)
    timed = {task.preset: _equal_minutes(task, parts, out, overrides) for task in tasks}
    runs = [
        _run(task, method, seed, overrides, timed[task.preset].get(method))
        for seed in range(seeds)
        for task in tasks
        for method in every
    ]
    for run in runs:
        results.read(run)

    def late() -> bool:
        return minutes > 0 and time.monotonic() - started > 60 * minutes

    interrupted = False
    for number, run in enumerate(runs, 1):
        if results.lacks(run) and not late():
            print_status(f"[{number}/{len(runs)}] {run.task.preset}, {run.method}, seed {run.seed}")
            if not _train(run, results, late):
                interrupted = not late()
                break
            _evaluate(run, results)
    found = [results.read(run) for run in runs]
    scored = [entry for entry in found if entry["scores"]]
    rows = tuple(row for part in parts for row in table(scored, protocols, part.methods, part.name))
    lacking = [(run, names) for run in runs if (names := results.lacks(run))]
    missing = tuple(f"{run.method}, seed {run.seed}: {', '.join(names)}" for run, names in lacking)
    captions = {part.name: _caption(part, timed) for part in parts if part.name}
    files = _write(out, rows, missing, captions)
    total = sum(entry["train_seconds"] + entry["evaluate_seconds"] for entry in found) / 3600
    return Comparison(rows, missing, (time.monotonic() - started) / 3600, total, files, interrupted)


def method_settings(method: str) -> list[str]:
    """Return the settings of a method with its switches: `nsfse:gamma=0+no-infusion`, `tirg:facts+minutes`.

    `minutes` is no setting of its own: the number of steps is measured. Raises UsageError.
    """
    from nsfse.models.baselines import METHODS

    name, _, switches = method.partition(":")
    if name not in ("nsfse", *METHODS):
        raise UsageError(f"no method {method!r}; there are: nsfse, {', '.join(METHODS)}, and nsfse:ABLATION")
    settings = [f"model.method={name}"]
    for switch in switches.split("+") if ":" in method else ():
        if switch != MINUTES:
            settings += _ablation(switch) if name == "nsfse" else _baseline_switch(name, switch)
    return settings


def _ablation(switch: str) -> list[str]:
    key, _, value = switch.partition("=")
    if key not in ABLATIONS or bool(value) == ("=" in ABLATIONS[key]):
        known = ", ".join(name if "=" in setting else f"{name}=NUMBER" for name, setting in ABLATIONS.items())
        raise UsageError(f"no ablation {switch!r} of nsfse; there are: {known}, {MINUTES}")
    return [f"{ABLATIONS[key]}={value}"] if value else ABLATIONS[key].split()


def _baseline_switch(name: str, switch: str) -> list[str]:
    if switch != FACTS:
        raise UsageError(f"no method '{name}:{switch}'; of {name} there are: {name}:{FACTS}, {name}:{MINUTES}")
    return ["model.attribute_supervision=true"]


def _switches(method: str) -> list[str]:
    return method.partition(":")[2].split("+")


def _refuse_nothing_to_learn(methods: Sequence[str], tasks: Sequence[Task]) -> None:
    """Raise UsageError for a method of facts on data that knows none: it would be the plain method again."""
    for method in methods:
        for task in tasks:
            if FACTS in _switches(method) and not isinstance(task.source, HasAttributes):
                raise UsageError(f"{method}: {task.source.name} knows no facts of its images; leave {FACTS!r} out")


def _equal_minutes(task: Task, parts: Sequence[Block], out: Path, overrides: Sequence[str]) -> dict[str, Timed]:
    """Return the steps of each method of equal minutes, timed; of nothing where there is none."""
    found: dict[str, Timed] = {}
    for part in parts:
        wanted = [method for method in part.methods if MINUTES in _switches(method)]
        first = part.methods[0]
        if wanted and first in wanted:
            raise UsageError(f"the first method sets the minutes by its own steps; put another before {first}")
        if wanted:
            configs = {method: _run(task, method, 0, overrides).config for method in [first, *wanted]}
            found |= equal_minutes(task.preset, configs, out, task.kept)
    return found


def _caption(part: Block, timed: Mapping[str, Mapping[str, Timed]]) -> str:
    """Return what stands above a block's tables, with the minutes that were measured."""
    measured = [
        minutes_text(preset, {method: times[method] for method in part.methods})
        for preset, times in timed.items()
        if any(MINUTES in _switches(method) for method in part.methods)
    ]
    return " ".join([part.caption, *(f"{line}." for line in measured)])


def _tasks(protocols: Sequence[str], data: Mapping[str, Path], overrides: Sequence[str]) -> list[Task]:
    """Group protocols by the preset of the longest name that theirs start with; open each one's data."""
    groups: dict[str, list[str]] = {}
    for name in protocols:
        fitting = [preset for preset in PRESETS if name == preset or name.startswith(f"{preset}-")]
        if not fitting:
            raise UsageError(f"no preset to train for {name!r}; a protocol starts with one of: {', '.join(PRESETS)}")
        groups.setdefault(max(fitting, key=len), []).append(name)
    if strange := sorted(set(data) - set(groups)):
        raise UsageError(f"--data {strange[0]}=... is of no protocol that is asked for; there are: {', '.join(groups)}")
    return [_task(preset, names, data.get(preset), overrides) for preset, names in groups.items()]


def _task(preset: str, names: Sequence[str], folder: Path | None, overrides: Sequence[str]) -> Task:
    config = load_config(preset, None, overrides, folder)
    if config.data.source != "drawn" and folder is None:
        raise UsageError(f"{names[0]} needs the folder of its data; name it with --data {preset}=DIR")
    source = open_source(config.data.source, folder, **config.data.options)
    there = {protocol.name: protocol for split in reversed(SPLITS) for protocol in source.protocols(split)}
    found = {}
    for name in names:
        # The drawn catalogue calls its protocols the same on every level: drawn-easy-single is its drawn-single.
        plain = config.data.source + name.removeprefix(preset)
        if name not in there and plain not in there:
            raise UsageError(f"{preset} has no protocol {name!r}; there are: {', '.join(there)}")
        found[name] = there.get(name) or there[plain]
    return Task(preset, config, source, found)


def _run(task: Task, method: str, seed: int, overrides: Sequence[str], timed: Timed | None = None) -> Run:
    own = [*overrides, *method_settings(method), f"train.seed={seed}", "data.validation_queries=0"]
    if timed and MINUTES in _switches(method):
        own.append(f"train.total_steps={timed.steps}")
    folder = Path(task.config.data.folder) if task.config.data.folder else None
    return Run(task, method, seed, load_config(task.preset, None, own, folder))


class _Results:
    """The JSON files of a comparison."""

    def __init__(self, out: Path) -> None:
        self.out = out
        check_folder(out, ("minutes.json",), ("results",))
        try:
            (out / "results").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {out}: {error.strerror}; choose another with -o") from None

    def read(self, run: Run) -> dict[str, Any]:
        """Return what is known of a run. Raises UsageError where it is known of another configuration."""
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
            entry: dict[str, Any] = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise IntegrityError(f"{file} is damaged: {error}; remove it, and its run is made again") from None
        if not same_config(entry["config"], run.config):
            raise UsageError(f"{file} is of another configuration; choose another folder with -o, or remove it")
        return entry

    def write(self, run: Run, **changes: Any) -> None:
        """Write what is known of a run, changed."""
        tree = self.read(run) | changes
        write_file(self.out / "results" / f"{run.name}.json", msgspec.json.format(msgspec.json.encode(tree), indent=2))

    def lacks(self, run: Run) -> tuple[str, ...]:
        """Return the protocols on which a run has no score yet."""
        scores = self.read(run)["scores"]
        return tuple(name for name in run.task.protocols if name not in scores)


def _train(run: Run, results: _Results, late: Callable[[], bool]) -> bool:
    """Train, or continue; return whether it is done. What a stopped training took counts for its time, too."""
    before = results.read(run)
    if before["trained"]:
        return True
    folder, started = results.out / "runs" / run.name, time.monotonic()

    def note() -> None:
        results.write(run, train_seconds=before["train_seconds"] + time.monotonic() - started)

    with training_bar() as follow:

        def progress(entry: dict[str, Any]) -> None:
            follow(entry)
            if "epoch" in entry:
                note()

        done = train(run.config, folder, progress=progress, should_stop=late, feature_cache=run.task.kept)
    note()
    if not done.interrupted:
        results.write(run, trained=True, steps=checkpoint_info(folder)["last_metrics"]["step"])
        for name in ("state.safetensors", "best.safetensors"):  # five times the weights that are scored
            (folder / name).unlink(missing_ok=True)
    return not done.interrupted


def _evaluate(run: Run, results: _Results) -> None:
    """Score a trained run on the protocols that it lacks."""
    entry, started = results.read(run), time.monotonic()
    lacking = results.lacks(run)
    with stages_bar() as follow:
        scorer = open_run(results.out / "runs" / run.name)
        if is_frozen(run.config):  # its images come as the features that training cached
            scorer = FeatureScorer(scorer.model, scorer.tokenizer, scorer.decision)
        protocols = [run.task.protocols[name] for name in lacking]
        scored = evaluate_source(scorer, run.task.source, protocols, progress=follow, images=_images(run, scorer))
    by_name = {result.protocol.name: result.to_json() | {"outcomes": outcomes(result)} for result in scored.results}
    scores = {name: by_name[run.task.protocols[name].name] for name in lacking}
    seconds = entry["evaluate_seconds"] + time.monotonic() - started
    results.write(run, scores=entry["scores"] | scores, evaluate_seconds=seconds)


def _images(run: Run, scorer: TorchScorer) -> ImageCache:
    """Return what reads images for a trained run, out of what trainings kept."""
    config = resolve_config(run.config)
    size, room, task = config.model.image_size, config.train.cache_gb * 2**30, run.task
    return ImageCache(task.source, size, room, config.train.workers, feature_extractor(scorer.model, config), task.kept)


def _write(out: Path, rows: Sequence[Row], missing: Sequence[str], captions: Mapping[str, str]) -> tuple[Path, ...]:
    tree = {
        "schema_version": SCHEMA_VERSION,
        "rows": rows,
        "findings": findings(rows),
        "blocks": captions,
        "missing": missing,
    }
    texts = {
        "table.md": markdown(rows, missing, captions).encode(),
        "table.json": msgspec.json.format(msgspec.json.encode(tree), indent=2),
        "table.svg": plot(rows).encode(),
    }
    for name, data in texts.items():
        write_file(out / name, data)
    return tuple(out / name for name in texts)
