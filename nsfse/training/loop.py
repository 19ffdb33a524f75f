"""The one training loop."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nsfse.config import Config
from nsfse.data import HasTitles, HasTrainingTexts, Source, TrainingTriplet, notes_of
from nsfse.data.registry import open_source
from nsfse.data.text.vocabulary import build_vocabulary, count_read, read_note
from nsfse.models.autocast import choose
from nsfse.models.backbones.registry import get_backbone
from nsfse.models.baselines import Baseline, build_model
from nsfse.models.checkpoint import DECISION, STATES, load_state, read_header, write_file, write_header
from nsfse.models.device import pick_device
from nsfse.models.nsfse import NSFSE
from nsfse.models.pretrained import (
    common_words,
    feature_extractor,
    freeze,
    load_pretrained,
    origin,
    own_tokenizer,
    resolve_config,
)
from nsfse.models.training_free import TrainingFree
from nsfse.training.dataloader import AttributeClasses, ImageCache, attribute_classes, batches
from nsfse.training.distributed import DistributedContext, distributed_session
from nsfse.training.objectives import learns_attributes, with_blocks
from nsfse.training.run_logger import NullRunLogger, Progress, RunLogger
from nsfse.training.signals import Signals, catch_signals
from nsfse.training.trackers import RECORDS, check_trackers
from nsfse.training.trainer import Trainer
from nsfse.training.workarounds import deterministic_algorithms, keep_freed_memory, safe_convolutions, seeded
from nsfse_runtime.errors import DataError, NsfseError, OutputError, UsageError
from nsfse_runtime.inference.tokenizer import Tokenizer
from nsfse_runtime.output_files import check_folder


@dataclass(frozen=True)
class TrainResult:
    """A run's folder, what was logged last, and whether it was left to be continued."""

    path: Path
    metrics: dict[str, Any]
    interrupted: bool


@dataclass(frozen=True)
class RunContext:
    """What stays the same while a run is trained."""

    config: Config
    folder: Path
    source: Source
    classes: AttributeClasses
    tokenizer: Tokenizer
    device: torch.device
    distributed: DistributedContext
    progress: Progress | None
    step_limit: int
    """Steps in all after which training ends; 0 for none."""
    should_stop: Callable[[], bool]

    def stops(self, signalled: bool) -> bool:
        """Return whether any process is to stop."""
        return self.distributed.any(signalled or self.should_stop(), self.device)

    def reached(self, step: int) -> bool:
        """Return whether `step` is the limit or beyond."""
        return 0 < self.step_limit <= step

    def report(self, note: str) -> None:
        """Pass a note to `progress`, in the first process alone."""
        if note and self.progress and not self.distributed.rank:
            self.progress({"note": note})


def train(
    config: Config,
    out: Path,
    *,
    resume: bool = True,
    progress: Progress | None = None,
    steps: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    feature_cache: dict[str, NDArray[Any]] | None = None,
) -> TrainResult:
    """Train a run, or continue one.

    The same seed gives the same weights on the same CPU and thread count. Under torchrun all processes train one model
    together; the first one alone writes and calls `progress`.

    Args:
        config: The whole configuration.
        out: The run's folder.
        resume: Whether to continue a run that is in `out`, instead of starting again.
        progress: Called after each step with what was logged.
        steps: Ends training after so many steps in all, on the schedule of the whole; 0 for none.
        should_stop: Called after each step; where true, the run is saved and left to be continued.
        feature_cache: Images, or their features, that trainings on the same data, size and trunk keep in memory.

    Returns:
        The run's folder and what was logged last.

    Raises:
        UsageError: `out` holds a run of another configuration, or the device is missing.
        DataError: The data set or a setting is wrong.
        OutputError: `out` cannot be written.
    """
    config = resolve_config(config)
    check_trackers(config)
    device = pick_device(config.train.device)
    choose(str(config.train.bf16_autocast), device)  # a wrong setting or folder is refused before all else
    _refuse_others(out)
    keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    with distributed_session(config.train) as distributed:
        folder = Path(config.data.folder) if config.data.folder else None
        source = open_source(config.data.source, folder, **config.data.options)
        if progress and not distributed.rank:
            for note in notes_of(source, training=True):
                progress({"note": note})
        triplets = source.triplets(0)
        classes = attribute_classes(source, triplets) if learns_attributes(config) else AttributeClasses({})
        config = with_blocks(config, classes)
        tokenizer = _open_run(out, config, source, triplets, resume, distributed)
        run = RunContext(config, out, source, classes, tokenizer, device, distributed, progress, steps, should_stop)
        return _train(run, triplets, feature_cache)


def _open_run(
    out: Path,
    config: Config,
    source: Source,
    triplets: list[TrainingTriplet],
    resume: bool,
    distributed: DistributedContext,
) -> Tokenizer:
    """Make or reopen the run's folder, the first process before the others; return its tokenizer."""
    if distributed.rank:
        distributed.wait()
    tokenizer = _prepare(out, config, source, triplets, resume or distributed.rank > 0)
    if not distributed.rank:
        distributed.wait()
    return tokenizer


def _train(
    run: RunContext, triplets: list[TrainingTriplet], feature_cache: dict[str, NDArray[Any]] | None
) -> TrainResult:
    """Set up model, images, trainer and log, and run the epochs."""
    config = run.config
    state, note = load_state(run.folder)
    model = _make_model(run, state)
    extract = feature_extractor(model, config)
    train, views = config.train, max(1, config.train.cached_views)
    size, limit, strength = config.model.image_size, train.cache_gb * 2**30, train.augment_strength
    images = ImageCache(run.source, size, limit, train.workers, extract, feature_cache, views, strength, run.classes)
    per_epoch = len(triplets) // config.train.batch
    if per_epoch == 0:
        raise DataError(
            f"{run.source.name} gives fewer triplets than one batch of {config.train.batch}; lower train.batch"
        )
    total_steps = config.train.total_steps or per_epoch * config.train.epochs
    trainer = Trainer(config, model, total_steps, run.distributed, list(run.classes.counts.values()))
    if state:
        trainer.load_state(state)
    log: RunLogger | NullRunLogger = NullRunLogger()
    if not run.distributed.rank:
        log = RunLogger(run.folder, run.source, images, run.tokenizer, config, run.progress, trainer.step)
    run.report(note)
    if not state:
        run.report(read_note(read_header(run.folder)["trained_on"], config.model.max_words))
    channels = get_backbone(config.model.backbone).narrowest_channels(config.model)
    with (
        catch_signals(repeat=run.distributed.world_size > 1) as signals,
        closing(log),
        safe_convolutions(channels),
        deterministic_algorithms(run.device),
    ):
        return _run_epochs(run, trainer, log, images, triplets, per_epoch, signals)


def _make_model(run: RunContext, state: dict[str, Tensor] | None) -> NSFSE | Baseline:
    """Build the model, with its first weights where there is no `state` to continue from."""
    config = run.config
    with seeded(config.train.seed, run.device):
        model = build_model(config.model, len(run.tokenizer))
    if isinstance(model, TrainingFree):
        raise DataError("model.evidence is fitted by nsfse import-clip --images, and not trained; leave it out")
    if not state:
        load_pretrained(model, run.folder / "tokenizer.json")
    freeze(model, config)
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _run_epochs(
    run: RunContext,
    trainer: Trainer,
    log: RunLogger | NullRunLogger,
    images: ImageCache,
    triplets: list[TrainingTriplet],
    per_epoch: int,
    signals: Signals,
) -> TrainResult:
    """Train epoch by epoch until the end, the step limit or a stop; an epoch's end is saved, then fitted and scored.

    An end of which the fits were stopped is fitted first when the run continues.
    """
    total = trainer.total_steps
    if trainer.step and (trainer.step % per_epoch == 0 or trainer.step == total):
        if not log.finished:
            epoch = (trainer.step - 1) // per_epoch
            log.epoch(trainer, epoch, run.source.triplets(epoch) if epoch else triplets, signals)
        if run.stops(signals.seen):
            return TrainResult(run.folder, dict(log.last), trainer.step < total or not log.finished)
    log.finished = True
    epochs = math.ceil(total / per_epoch) if trainer.step < total else 0
    for epoch in range(trainer.step // per_epoch, epochs):
        triplets, start = run.source.triplets(epoch) if epoch else triplets, trainer.step % per_epoch
        size, seed = run.config.train.batch, (run.config.train.seed, epoch)
        for batch in batches(triplets, size, images, run.tokenizer, run.distributed, start, seed):
            log.step(trainer, trainer.train_step(batch))
            if trainer.step % per_epoch == 0 or trainer.step == total:
                break
            if run.stops(signals.seen) or run.reached(trainer.step):
                log.stop(trainer, triplets, signals)
                return TrainResult(run.folder, dict(log.last), not run.reached(trainer.step))
            log.save_state(trainer, due=False)
        log.epoch(trainer, epoch, triplets, signals)
        if run.stops(signals.seen) or run.reached(trainer.step):
            break
    is_partial = trainer.step < total and not run.reached(trainer.step)
    return TrainResult(run.folder, dict(log.last), is_partial or not log.finished)


def _prepare(run: Path, config: Config, source: Source, first: list[TrainingTriplet], resume: bool) -> Tokenizer:
    """Make or reopen the run's folder; return its tokenizer."""
    if (run / "config.json").exists() and resume:
        if read_header(run)["config"] != config:
            raise UsageError(f"{run} holds a run of another configuration; name another folder or pass --no-resume")
        return Tokenizer.from_file(run / "tokenizer.json", config.model.max_words)
    _clear_folder(run)
    triplets = [*first, *source.triplets(1)]
    texts = [triplet.text for triplet in triplets]
    if not texts:
        why = "; ".join(("", *notes_of(source, training=True)))
        raise DataError(f"{source.name} has no training triplets in {config.data.folder}{why}; check the data set")
    typos = [typo for triplet in triplets for typo in triplet.typos]
    titles = source.titles.values() if isinstance(source, HasTitles) and config.train.title_weight else ()
    read = [*texts, *(source.training_texts if isinstance(source, HasTrainingTexts) else ())]
    known = common_words(config.model)
    vocabulary = own_tokenizer(config.model) or build_vocabulary(read, typos=typos, titles=titles, known=known)
    write_file(run / "tokenizer.json", vocabulary.to_str().encode())
    tokenizer = Tokenizer.from_file(run / "tokenizer.json", config.model.max_words)
    trained_on = {"source": source.name, "triplets_per_epoch": len(texts) // 2, "epochs": config.train.epochs}
    trained_on |= count_read(tokenizer, texts, typos)
    trained_on |= {"steps": config.train.total_steps} if config.train.total_steps else {}
    trained_on |= origin(config.model) | ({"knows": knows} if (knows := getattr(source, "knows", "")) else {})
    write_header(run, config, vocabulary.get_vocab_size(), trained_on)
    return tokenizer


def _clear_folder(run: Path) -> None:
    """Make the folder, or remove the files of an earlier run from it."""
    _refuse_others(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {run}: {error.strerror}; choose another place with -o") from None
    for old in (*STATES, RECORDS, "metrics.jsonl", "best.safetensors", "model.safetensors", DECISION):
        (run / old).unlink(missing_ok=True)


def _refuse_others(run: Path) -> None:
    """Raise OutputError where `run` is a folder of something else, whose files a new run would overwrite."""
    files = ("tokenizer.json", "metrics.jsonl", "config.json.part", "tokenizer.json.part")
    if not (run / "config.json").exists():
        check_folder(run, files, ())
        return
    try:
        read_header(run)
    except (NsfseError, KeyError):
        raise OutputError(f"{run} holds a config.json that is no run's; choose another folder with -o") from None
