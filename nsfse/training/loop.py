"""The one training loop."""

import ctypes
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from nsfse.config import Config, ModelConfig
from nsfse.data import HasTitles, HasTrainingTexts, Source, TrainingTriplet, notes_of
from nsfse.data.registry import open_source
from nsfse.data.text.vocabulary import build_vocabulary, count_read, read_note
from nsfse.models.autocast import choose
from nsfse.models.baselines import build_model
from nsfse.models.checkpoint import DECISION, STATES, load_state, read_header, write_file, write_header
from nsfse.models.pretrained import freeze, kept_instead, load_pretrained, origin, own_tokenizer, settle
from nsfse.training.dataloader import ImageCache, batches
from nsfse.training.distributed import Share, joined, pick_device
from nsfse.training.run_logger import Log, Progress, Silence
from nsfse.training.trainer import Trainer
from nsfse_runtime.errors import DataError, NsfseError, OutputError, UsageError
from nsfse_runtime.inference.tokenizer import Tokenizer
from nsfse_runtime.output_files import check_folder

MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_MAX = -1, -4  # of malloc.h


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
    steps: int = 0,
    enough: Callable[[], bool] = lambda: False,
    kept: dict[str, NDArray[Any]] | None = None,
) -> TrainResult:
    """Train, or continue, the run in folder `out`.

    The same seed gives the same weights on the same CPU and thread count. `progress` is called after each step with
    what was logged; `steps` ends training after so many in all, on the schedule of the whole; where `enough()` is true
    after a step, the run is saved and left to be continued. `kept` are images, or their features, that earlier
    trainings on the same data, size and trunk have in memory. Under torchrun all processes train one model together;
    the first one alone writes and calls `progress`. Raises UsageError where `out` holds a run of another configuration,
    and the data set's errors.
    """
    config = settle(config)
    choose(
        str(config.train.bf16_autocast), pick_device(config.train.device)
    )  # a wrong setting is refused before all else
    with joined(config.train) as share:
        return _train(config, out, resume, progress, steps, enough, kept, share)


def _train(
    config: Config,
    out: Path,
    resume: bool,
    progress: Progress | None,
    steps: int,
    enough: Callable[[], bool],
    kept: dict[str, NDArray[Any]] | None,
    share: Share,
) -> TrainResult:
    _keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.train.seed)
    source = open_source(
        config.data.source, Path(config.data.folder) if config.data.folder else None, **config.data.options
    )
    if progress and not share.rank:
        for told in notes_of(source, training=True):
            progress({"note": told})
    if share.rank:
        share.wait()  # until the first process has made the folder
    triplets = source.triplets(0)
    tokenizer = _prepare(out, config, source, triplets, resume or share.rank > 0)
    if not share.rank:
        share.wait()
    state, note = load_state(out)
    device = pick_device(config.train.device)
    model = build_model(config.model, len(tokenizer))
    if not state:
        load_pretrained(model, out / "tokenizer.json")
    freeze(model, config)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size, room, instead = config.model.image_size, config.train.cache_gb * 2**30, kept_instead(model, config)
    images = ImageCache(source, size, room, config.train.workers, instead, kept)
    per_epoch = len(triplets) // config.train.batch
    if per_epoch == 0:
        raise DataError(f"{source.name} gives fewer triplets than one batch of {config.train.batch}; lower train.batch")
    total = config.train.total_steps or per_epoch * config.train.epochs
    trainer = Trainer(config, model, total, share)
    if state:
        trainer.load_state(state)
    log = Silence() if share.rank else Log(out, source, images, tokenizer, config, progress, trainer.step)
    notes = [note, "" if state else read_note(read_header(out)["trained_on"], config.model.max_words)]
    if progress and share.rank == 0:
        for line in filter(None, notes):
            progress({"note": line})
    with (
        _stop_on_signal(enough, share.world > 1) as stopped,
        _sound_convolutions(config.model),
        _same_each_time(device),
    ):
        epochs = math.ceil(total / per_epoch) if trainer.step < total else 0
        for epoch in range(trainer.step // per_epoch, epochs):
            triplets, start = source.triplets(epoch) if epoch else triplets, trainer.step % per_epoch
            for batch in batches(triplets, config.train.batch, images, tokenizer, share, start):
                log.step(trainer, trainer.train_step(batch))
                ended = 0 < steps <= trainer.step
                if trainer.step % per_epoch == 0 or trainer.step == total:
                    break  # the epoch's end saves, after its scores
                if share.any(stopped(), device) or ended:
                    log.stop(trainer, triplets)
                    return TrainResult(out, dict(log.last), not ended)
                log.save_state(trainer, due=False)
            log.epoch(trainer, epoch, triplets)
            if share.any(stopped(), device) or ended:
                break
    return TrainResult(out, dict(log.last), trainer.step < trainer.total_steps and not 0 < steps <= trainer.step)


def _prepare(run: Path, config: Config, source: Source, first: list[TrainingTriplet], resume: bool) -> Tokenizer:
    """Make or reopen the run's folder; return its tokenizer."""
    if (run / "config.json").exists() and resume:
        if read_header(run)["config"] != config:
            raise UsageError(f"{run} holds a run of another configuration; name another folder or pass --fresh")
        return Tokenizer.from_file(run / "tokenizer.json", config.model.max_words)
    _refuse_others(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {run}: {error.strerror}; choose another place with -o") from None
    for old in (*STATES, "metrics.jsonl", "best.safetensors", "model.safetensors", DECISION):
        (run / old).unlink(missing_ok=True)
    seen = [*first, *source.triplets(1)]
    texts = [triplet.text for triplet in seen]
    if not texts:
        why = "; ".join(("", *notes_of(source, training=True)))
        raise DataError(f"{source.name} has no training triplets in {config.data.folder}{why}; check the data set")
    typos = [typo for triplet in seen for typo in triplet.typos]
    titles = source.titles.values() if isinstance(source, HasTitles) and config.train.title_weight else ()
    told = [*texts, *(source.training_texts if isinstance(source, HasTrainingTexts) else ())]
    vocabulary = own_tokenizer(config.model) or build_vocabulary(told, typos=typos, titles=titles)
    write_file(run / "tokenizer.json", vocabulary.to_str().encode())
    trained_on = {"source": source.name, "triplets_per_epoch": len(texts) // 2, "epochs": config.train.epochs}
    tokenizer = Tokenizer.from_file(run / "tokenizer.json", config.model.max_words)
    trained_on |= count_read(tokenizer, texts, typos)
    trained_on |= {"steps": config.train.total_steps} if config.train.total_steps else {}
    trained_on |= origin(config.model) | ({"knows": knows} if (knows := getattr(source, "knows", "")) else {})
    write_header(run, config, vocabulary.get_vocab_size(), trained_on)
    return tokenizer


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


def _keep_freed_memory() -> None:
    """Ask glibc, where it is there, to keep the memory that large tensors leave: every step makes them anew.

    Given back each time, a step of the pair head took a quarter longer on a CPU of two cores.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MALLOC_MMAP_MAX, 0)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def _sound_convolutions(model: ModelConfig) -> Iterator[None]:
    """Do without oneDNN where it corrupts memory: convolutions of channels that are no multiple of 16, torch 2.13."""
    channels = model.width if model.backbone == "tiny" else 2 * model.dim  # those of a trunk's tail
    with ExitStack() as stack:
        if channels % 16:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # of Intel's GPUs
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


@contextmanager
def _same_each_time(device: torch.device) -> Iterator[None]:
    """Ask torch for deterministic algorithms: its parallel scatter on a CPU adds in whatever order threads come.

    Not on a GPU, where some steps have no such form without a setting of cuBLAS made before torch starts. New tensors
    are not filled on the way, as torch would then do: that took one twentieth of a step, and nothing reads them unset.
    """
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(device.type == "cpu")
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


@contextmanager
def _stop_on_signal(enough: Callable[[], bool], always: bool) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question, true also where `enough` is; a second one acts as usual.

    With `always` it does not: torchrun passes on a Ctrl-C that its processes have already had.
    """
    seen: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        if not always:
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
