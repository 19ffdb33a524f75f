"""Methods and ablations, trained on the same batches for the same steps, and a table of their scores.

Every training with its evaluation is one JSON file in OUT/results, and a finished file is not made
again. So the same call continues a comparison that was stopped. It also adds methods, seeds or
protocols to one that is done.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nsfse.benchmark.blocks import FACTS, MINUTES, Block, blocks_of
from nsfse.benchmark.equal_minutes import Timed, equal_minutes, minutes_text
from nsfse.benchmark.methods import method_settings, switches
from nsfse.benchmark.result_files import ResultFiles, Run, Task
from nsfse.benchmark.significance import outcomes
from nsfse.benchmark.table import Row, findings, latex, markdown, plot, table
from nsfse.config import PRESETS, load_config
from nsfse.data import HasAttributes
from nsfse.data.registry import open_source
from nsfse.evaluation.evaluate import evaluate_source
from nsfse.models.checkpoint import checkpoint_info, write_file
from nsfse.models.pretrained import caches_features, feature_extractor, freeze, resolve_config
from nsfse.models.torch_scorer import FeatureScorer, TorchScorer
from nsfse.open import open_run
from nsfse.progress import print_status, stages_bar, training_bar
from nsfse.training.dataloader import ImageCache
from nsfse.training.loop import train
from nsfse_runtime.errors import UsageError
from nsfse_runtime.json_schema import SCHEMA_VERSION

SPLITS = ("test", "val")
"""Where a protocol is looked for: validation only where the data set has no test queries of it."""


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
    """Train every method from several seeds, score each, and write table.md, .tex, .json and .svg.

    All methods of a seed come before the next seed. Methods of equal minutes are timed first, and take the minutes of
    the first method of their block.

    Args:
        protocols: Protocols by name; each belongs to the preset that its name starts with.
        methods: Methods by name, with switches; plain ones with `blocks`.
        out: Folder of the results; what is there is continued.
        seeds: How many trainings of each method, from seeds 0, 1 ...
        data: Preset → folder of its data.
        overrides: Settings that change every configuration alike.
        minutes: After how many minutes training stops; 0 for no limit.
        blocks: Tables in each of which `methods` are compared (blocks.py).

    Returns:
        The rows of all tables, and what is missing.

    Raises:
        UsageError: A method, block or protocol is unknown, or `out` holds results of another configuration.
    """
    started = time.monotonic()
    protocols, parts = list(dict.fromkeys(protocols)), blocks_of(blocks, methods)
    spelled = list(dict.fromkeys(method for part in parts for method in part.methods))
    for method in spelled:
        method_settings(method)  # an unknown name is an error before any data is opened
    tasks = _tasks(protocols, data or {}, overrides)
    _check_facts(spelled, tasks)
    results = ResultFiles(out)
    timed = {task.preset: _equal_minutes(task, parts, out, overrides) for task in tasks}
    runs = [
        _run(task, method, seed, overrides, timed[task.preset].get(method))
        for seed in range(seeds)
        for task in tasks
        for method in spelled
    ]
    for run in runs:
        results.read(run)  # an error before anything is trained
    interrupted = _train_and_score(runs, results, lambda: 0 < 60 * minutes < time.monotonic() - started)
    entries = [results.read(run) for run in runs]
    scored = [entry for entry in entries if entry["scores"]]
    rows = tuple(row for part in parts for row in table(scored, protocols, part.methods, part.name))
    unscored = [(run, names) for run in runs if (names := results.unscored(run))]
    missing = tuple(f"{run.method}, seed {run.seed}: {', '.join(names)}" for run, names in unscored)
    files = _write(out, rows, missing, {part.name: _caption(part, timed) for part in parts if part.name})
    total = sum(entry["train_seconds"] + entry["evaluate_seconds"] for entry in entries) / 3600
    return Comparison(rows, missing, (time.monotonic() - started) / 3600, total, files, interrupted)


def _train_and_score(runs: Sequence[Run], results: ResultFiles, is_late: Callable[[], bool]) -> bool:
    """Train and score what is not done yet, until `is_late`; return whether a signal stopped it."""
    for number, run in enumerate(runs, 1):
        if results.unscored(run) and not is_late():
            print_status(f"[{number}/{len(runs)}] {run.task.preset}, {run.method}, seed {run.seed}")
            if not _train(run, results, is_late):
                return not is_late()
            _evaluate(run, results)
    return False


def _check_facts(methods: Sequence[str], tasks: Sequence[Task]) -> None:
    """Raise UsageError for a method with facts on data without attributes: it would be the plain method."""
    for method in methods:
        for task in tasks:
            if FACTS in switches(method) and not isinstance(task.source, HasAttributes):
                raise UsageError(f"{method}: {task.source.name} knows no facts of its images; leave {FACTS!r} out")


def _equal_minutes(task: Task, parts: Sequence[Block], out: Path, overrides: Sequence[str]) -> dict[str, Timed]:
    """Return the steps of each method of equal minutes, timed."""
    timed: dict[str, Timed] = {}
    for part in parts:
        wanted = [method for method in part.methods if MINUTES in switches(method)]
        first = part.methods[0]
        if wanted and first in wanted:
            raise UsageError(f"the first method sets the minutes by its own steps; put another before {first}")
        if wanted:
            configs = {method: _run(task, method, 0, overrides).config for method in [first, *wanted]}
            timed |= equal_minutes(task.preset, configs, out, task.feature_cache)
    return timed


def _caption(part: Block, timed: Mapping[str, Mapping[str, Timed]]) -> str:
    """Return what stands above a block's tables, with the minutes that were measured."""
    measured = [
        minutes_text(preset, {method: times[method] for method in part.methods})
        for preset, times in timed.items()
        if any(MINUTES in switches(method) for method in part.methods)
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
    if unused := sorted(set(data) - set(groups)):
        raise UsageError(
            f"--data {unused[0]}=... belongs to no protocol of this comparison; there are: {', '.join(groups)}"
        )
    return [_task(preset, names, data.get(preset), overrides) for preset, names in groups.items()]


def _task(preset: str, names: Sequence[str], folder: Path | None, overrides: Sequence[str]) -> Task:
    config = load_config(preset, None, overrides, folder)
    if config.data.source != "drawn" and folder is None:
        raise UsageError(f"{names[0]} needs the folder of its data; name it with --data {preset}=DIR")
    source = open_source(config.data.source, folder, **config.data.options)
    known = {protocol.name: protocol for split in reversed(SPLITS) for protocol in source.protocols(split)}
    protocols = {}
    for name in names:
        # The drawn catalogue calls its protocols the same on every level: drawn-easy-single is its drawn-single.
        plain = config.data.source + name.removeprefix(preset)
        if name not in known and plain not in known:
            raise UsageError(f"{preset} has no protocol {name!r}; there are: {', '.join(known)}")
        protocols[name] = known.get(name) or known[plain]
    return Task(preset, config, source, protocols)


def _run(task: Task, method: str, seed: int, overrides: Sequence[str], timed: Timed | None = None) -> Run:
    settings = [*overrides, *method_settings(method), f"train.seed={seed}", "data.validation_queries=0"]
    if timed and MINUTES in switches(method):
        settings.append(f"train.total_steps={timed.steps}")
    folder = Path(task.config.data.folder) if task.config.data.folder else None
    return Run(task, method, seed, load_config(task.preset, None, settings, folder))


def _train(run: Run, results: ResultFiles, is_late: Callable[[], bool]) -> bool:
    """Train, or continue; return whether it is done. The time of a stopped training counts, too."""
    before = results.read(run)
    if before["trained"]:
        return True
    folder, started = results.out / "runs" / run.name, time.monotonic()

    def write_seconds() -> None:
        results.write(run, train_seconds=before["train_seconds"] + time.monotonic() - started)

    with training_bar() as follow:

        def progress(entry: dict[str, Any]) -> None:
            follow(entry)
            if "epoch" in entry:
                write_seconds()

        done = train(run.config, folder, progress=progress, should_stop=is_late, feature_cache=run.task.feature_cache)
    write_seconds()
    if not done.interrupted:
        results.write(run, trained=True, steps=checkpoint_info(folder)["last_metrics"]["step"])
        for name in ("state.safetensors", "best.safetensors"):  # five times the weights that are scored
            (folder / name).unlink(missing_ok=True)
    return not done.interrupted


def _evaluate(run: Run, results: ResultFiles) -> None:
    """Score a trained run on the protocols without a score."""
    entry, started = results.read(run), time.monotonic()
    unscored = results.unscored(run)
    with stages_bar() as follow:
        scorer = open_run(results.out / "runs" / run.name)
        if caches_features(run.config):  # its images come as the features that training cached
            freeze(scorer.model, run.config)
            scorer = FeatureScorer(scorer.model, scorer.tokenizer, scorer.decision)
        protocols = [run.task.protocols[name] for name in unscored]
        evaluation = evaluate_source(scorer, run.task.source, protocols, progress=follow, images=_images(run, scorer))
    by_name = {result.protocol.name: result.to_json() | {"outcomes": outcomes(result)} for result in evaluation.results}
    scores = {name: by_name[run.task.protocols[name].name] for name in unscored}
    seconds = entry["evaluate_seconds"] + time.monotonic() - started
    results.write(run, scores=entry["scores"] | scores, evaluate_seconds=seconds)


def _images(run: Run, scorer: TorchScorer) -> ImageCache:
    """Return the cache that a run was trained from, to read images for its scorer."""
    config = resolve_config(run.config)
    size, capacity, task = config.model.image_size, config.train.cache_gb * 2**30, run.task
    return ImageCache(
        task.source, size, capacity, config.train.workers, feature_extractor(scorer.model, config), task.feature_cache
    )


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
        "table.tex": latex(rows).encode(),
        "table.json": msgspec.json.format(msgspec.json.encode(tree), indent=2),
        "table.svg": plot(rows).encode(),
    }
    for name, data in texts.items():
        write_file(out / name, data)
    return tuple(out / name for name in texts)
