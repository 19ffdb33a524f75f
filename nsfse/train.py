"""The one training loop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nsfse.baselines import build_model
from nsfse.batches import Pictures, batches
from nsfse.checkpoint import load_tensors, read_header, write_file, write_header
from nsfse.config import Config
from nsfse.data import Source
from nsfse.data.sources import open_source
from nsfse.log import Log, Progress
from nsfse.trainer import Trainer
from nsfse.vocabulary import build_vocabulary
from nsfse_runtime.errors import DataError, OutputError, UsageError
from nsfse_runtime.text import Tokenizer


@dataclass(frozen=True)
class TrainResult:
    """Where the run lies and what was logged last."""

    path: Path
    metrics: dict[str, Any]
    interrupted: bool


def train(
    config: Config,
    out: Path,
    *,
    resume: bool = True,
    progress: Progress | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train, or continue, the run in folder `out`.

    The same seed gives the same weights on the same CPU and thread count. `progress` is called after each step with
    what was logged; where `enough()` is true after a step, the run is saved and left to be continued. Raises
    UsageError where `out` holds a run of another configuration, and the data set's errors.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.train.seed)
    source = open_source(
        config.data.source, Path(config.data.folder) if config.data.folder else None, **config.data.options
    )
    tokenizer, found_state = _prepare(out, config, source, resume)
    model = build_model(config.model, len(tokenizer))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = Pictures(source, config.model.image_size, config.train.cache_gb * 2**30)
    per_epoch = len(source.triplets(0)) // config.train.batch
    if per_epoch == 0:
        raise DataError(f"{source.name} gives fewer triplets than one batch of {config.train.batch}; lower train.batch")
    trainer = Trainer(config, model, per_epoch * config.train.epochs)
    if found_state:
        trainer.load_state(load_tensors(out / "state.safetensors"))
    log = Log(out, source, pictures, tokenizer, config, progress)
    with _stop_on_signal(enough) as stopped, _sound_convolutions(config.model.width), _same_each_time():
        for epoch in range(trainer.step // per_epoch, config.train.epochs):
            triplets = source.triplets(epoch)
            for batch in batches(triplets, config.train.batch, pictures, tokenizer, trainer.step % per_epoch):
                log.step(trainer, trainer.train_step(batch))
                if stopped() and trainer.step % per_epoch:
                    log.save(trainer, trainer.average)
                    return TrainResult(out, log.last, True)
            log.epoch(trainer, epoch, triplets)
            if stopped():
                break
    return TrainResult(out, log.last, trainer.step < trainer.total_steps)


def _prepare(run: Path, config: Config, source: Source, resume: bool) -> tuple[Tokenizer, bool]:
    """Make or reopen the run's folder; return its tokenizer and whether there is a state to continue from."""
    if (run / "config.json").exists() and resume:
        if read_header(run)["config"] != config:
            raise UsageError(f"{run} holds a run of another configuration; name another folder or pass --fresh")
        return Tokenizer.from_file(run / "tokenizer.json", config.model.max_words), (run / "state.safetensors").exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {run}: {error.strerror}; choose another place with -o") from None
    for old in ("state.safetensors", "metrics.jsonl", "best.safetensors", "model.safetensors"):
        (run / old).unlink(missing_ok=True)
    texts = [text for epoch in range(2) for triplet in source.triplets(epoch) for text in triplet.texts]
    if not texts:
        raise DataError(f"{source.name} has no training triplets in {config.data.folder}; check the data set")
    vocabulary = build_vocabulary(texts)
    write_file(run / "tokenizer.json", vocabulary.to_str().encode())
    trained_on = {"source": source.name, "triplets_per_epoch": len(texts) // 2, "epochs": config.train.epochs}
    write_header(run, config, vocabulary.get_vocab_size(), trained_on)
    return Tokenizer.from_file(run / "tokenizer.json", config.model.max_words), False


def _sound_convolutions(width: int) -> AbstractContextManager[None]:
    """Do without oneDNN where it corrupts memory: convolutions of channels that are no multiple of 16, torch 2.13."""
    return nullcontext() if width % 16 == 0 else torch.backends.mkldnn.flags(enabled=False)


@contextmanager
def _same_each_time() -> Iterator[None]:
    """Ask torch for deterministic algorithms: its parallel scatter on a CPU adds in whatever order threads come."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _stop_on_signal(enough: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question; a second one acts as usual."""
    seen: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[int(number)] = signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever runs us handles signals
        before.clear()
    try:
        yield lambda: bool(seen) or enough()
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
