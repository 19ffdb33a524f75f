"""The one training loop. Every random choice depends on (seed, step) alone, so a resumed run is the same run."""

import dataclasses
import importlib.util
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

from nsfse import losses
from nsfse.batches import Batch, Pictures, augment, batches, drop_words
from nsfse.checkpoint import load_tensors, read_header, save_tensors, write_file, write_header
from nsfse.config import Config, TrainConfig
from nsfse.data import Source
from nsfse.data.sources import open_source
from nsfse.evaluate import evaluate
from nsfse.model import NSFSE
from nsfse.scorer import TorchScorer
from nsfse.similarity import PairSide, QuerySide
from nsfse.vocabulary import build_vocabulary
from nsfse_runtime.errors import DataError, UsageError
from nsfse_runtime.text import Tokenizer

SCALAR_PACE = 5.0  # temperatures and mixing weights must travel far: at the common rate they hardly move

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """Where the run lies and what was logged last."""

    path: Path
    metrics: dict[str, Any]
    interrupted: bool


class Memory:
    """Vectors of past batches' targets, as further negatives of stage 1."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.vectors = torch.zeros(0, 0)
        self.names: list[str] = []

    def add(self, vectors: Tensor, names: tuple[str, ...]) -> None:
        """Take in `vectors` [U, d], dropping the oldest beyond `size`."""
        old = self.vectors if len(self.names) else vectors[:0]
        self.vectors = torch.cat([old, vectors.detach()])[-self.size :]
        self.names = [*self.names, *names][-self.size :]

    def blocked(self, batch: Batch) -> Tensor:
        """Return [B, M]: which of the memory's pictures answer which query."""
        rows: dict[str, list[int]] = {}
        for at, name in enumerate(self.names):
            rows.setdefault(name, []).append(at)
        found = torch.zeros(len(batch.answers), len(self.names), dtype=torch.bool)
        for at, answers in enumerate(batch.answers):
            found[at, [row for name in answers for row in rows.get(name, ())]] = True
            found[at, rows.get(batch.names[int(batch.reference[at])], [])] = True
        return found


class Trainer:
    """Model, optimizer and position of one run."""

    def __init__(self, config: Config, model: NSFSE, total_steps: int) -> None:
        self.config, self.model, self.total_steps = config.train, model, total_steps
        decayed = [p for p in model.parameters() if p.ndim > 1]
        scalars = [p for n, p in model.named_parameters() if p.ndim == 0 or n == "head.mix"]
        rest = [p for n, p in model.named_parameters() if p.ndim == 1 and n != "head.mix"]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "pace": 1.0},
            {"params": rest, "weight_decay": 0.0, "pace": 1.0},
            {"params": scalars, "weight_decay": 0.0, "pace": SCALAR_PACE},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.train.lr, weight_decay=config.train.weight_decay, fused=True
        )
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        self.memory = Memory(config.train.memory)
        self.step = 0

    def learning_rate(self) -> float:
        """Rise over the warm-up, then fall by a cosine to 1 % of the peak."""
        warm = max(1, int(self.config.warmup * self.total_steps))
        if self.step < warm:
            return self.config.lr * (self.step + 1) / warm
        done = (self.step - warm) / max(1, self.total_steps - warm)
        return self.config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Take one optimizer step; return the losses."""
        self.model.train()
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["pace"]
        parts = self.batch_losses(batch, generator)
        loss = parts["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self._move_average()
        return {name: float(value.detach()) for name, value in parts.items()} | {"grad_norm": float(norm)}

    def batch_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of one batch by name, `loss` their weighted sum (docs/method.md §6)."""
        settings, model = self.config, self.model
        pixels = augment(batch.pixels, settings.augment, generator)
        ids = drop_words(batch.ids, batch.mask, settings.word_dropout, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.amp):
            vectors, regions = model.encode_images(pixels.contiguous())
        words, sentence = model.encode_text(ids, batch.mask)
        query = model.composer(vectors[batch.reference], sentence)
        blocked = batch.right.scatter(1, batch.target[:, None], False)
        parts = self._stage1(batch, vectors, query, sentence, blocked)
        cosines = query @ vectors.T
        rows = torch.arange(max(1, int(settings.head_share * len(query))))
        chosen = losses.choose_candidates(
            cosines[rows], blocked[rows], batch.target[rows], batch.reference[rows], settings.candidates, generator
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.amp):
            side = model.head.query_side(words[rows], sentence[rows], batch.mask[rows], regions[batch.reference[rows]])
            pair = model.head.pair_side_of_batch(side, regions, chosen)
        parts |= self._head(side, pair, chosen, cosines[rows].gather(1, chosen))
        weights = {
            "stage1": 1.0,
            "text": settings.sentence_weight,
            "head": settings.head_weight,
            "distill": settings.distill_weight,
            "boundary": settings.boundary_weight,
            "reverse": settings.reverse_weight,
        }
        parts["loss"] = sum((weights[name] * value for name, value in parts.items()), torch.zeros(()))
        return parts

    def _stage1(
        self, batch: Batch, vectors: Tensor, query: Tensor, sentence: Tensor, blocked: Tensor
    ) -> dict[str, Tensor]:
        scale = self.model.stage1_scale.exp().clamp_max(100.0)
        candidates = vectors
        barred = blocked
        if self.memory.size:
            if self.memory.names:
                candidates = torch.cat([vectors, self.memory.vectors])
                barred = torch.cat([blocked, self.memory.blocked(batch)], 1)
            self.memory.add(vectors, batch.names)
        parts = {"stage1": losses.classification(scale * query @ candidates.T, barred, batch.target)}
        if self.config.sentence_weight:
            parts["text"] = losses.classification(scale * sentence @ vectors.T, blocked, batch.target)
        if self.config.reverse_weight:
            scores = (scale * vectors[batch.target] @ query.T).masked_fill(
                batch.right[:, batch.target].T & ~torch.eye(len(query), dtype=torch.bool), losses.FAR
            )
            parts["reverse"] = F.cross_entropy(scores, torch.arange(len(query)))
        return parts

    def _head(self, side: QuerySide, pair: PairSide, chosen: Tensor, cosines: Tensor) -> dict[str, Tensor]:
        head = self.model.head
        scale = self.model.head_scale.exp().clamp_max(100.0)
        first = torch.zeros(len(cosines), dtype=torch.long)
        total = head.total(cosines.detach(), pair)
        cross = losses.boundary_terms(pair.x, side.word_weights, losses.sure_mismatches(chosen))
        visual = losses.boundary_terms(pair.y, side.probe_weights, losses.sure_mismatches(chosen))
        self._update_boundaries(cosines, cross, visual)
        return {
            "head": sum(
                (F.cross_entropy(scale * score, first) for score in (pair.cross, pair.visual, total)), torch.zeros(())
            )
            / 3,
            "distill": losses.distillation(self.model.stage1_scale.exp().clamp_max(100.0) * cosines, scale * total),
            "boundary": losses.boundary_loss(head.cross_boundary, cross)
            + losses.boundary_loss(head.visual_boundary, visual),
        }

    def _update_boundaries(self, cosines: Tensor, cross: losses.Terms, visual: losses.Terms) -> None:
        """Take statistics from queries whose target is among the five best candidates, all of them at first."""
        head = self.model.head
        good = (cosines[:, 1:] > cosines[:, :1]).sum(1) < 5
        if not head.cross_boundary.ready or int(good.sum()) == 0:
            good = torch.ones_like(good)
        for boundary, terms in ((head.cross_boundary, cross), (head.visual_boundary, visual)):
            boundary.update(
                terms.matched[good], terms.matched_w[good], terms.mismatched[good], terms.mismatched_w[good]
            )

    def _move_average(self) -> None:
        """Follow the weights; boundaries and counters are copied as they are."""
        decay = min(self.config.average, self.step / (self.step + 10.0)) if self.config.average else 0.0
        with torch.no_grad():
            now = self.model.state_dict()
            moving = [name for name, value in now.items() if value.dtype == torch.float32]
            torch._foreach_lerp_([self.average[n] for n in moving], [now[n] for n in moving], 1.0 - decay)
            for name in now.keys() - set(moving):
                self.average[name].copy_(now[name])

    def state(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as named tensors."""
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.average.items()}
        for at, slots in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{at}.{k}": v for k, v in slots.items()}
        found["memory"] = self.memory.vectors
        names = "\n".join(self.memory.names).encode()
        found["memory_names"] = (
            torch.frombuffer(bytearray(names), dtype=torch.uint8) if names else torch.zeros(0).byte()
        )
        return found | {"step": torch.tensor(self.step)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average = part("average.")
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer.").items():
            at, name = key.split(".", 1)
            slots.setdefault(int(at), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        self.step = int(tensors["step"])
        self.memory.vectors = tensors["memory"]
        names = bytes(tensors["memory_names"].tolist()).decode()
        self.memory.names = names.split("\n") if names else []


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question; a second one acts as usual."""
    seen: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever runs us handles signals
        before.clear()
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare(run: Path, config: Config, source: Source, resume: bool) -> tuple[Tokenizer, bool]:
    """Make or reopen the run's folder; return its tokenizer and whether there is a state to continue from."""
    if (run / "config.json").exists() and resume:
        if read_header(run)["config"] != config:
            raise UsageError(f"{run} holds a run of another configuration; name another folder or pass --fresh")
        return Tokenizer.from_file(run / "tokenizer.json", config.model.max_words), (run / "state.safetensors").exists()
    run.mkdir(parents=True, exist_ok=True)
    for old in ("state.safetensors", "metrics.jsonl", "best.safetensors", "model.safetensors"):
        (run / old).unlink(missing_ok=True)
    texts = [text for epoch in range(2) for triplet in source.triplets(epoch) for text in triplet.texts]
    if not texts:
        raise DataError(
            f"{source.name} has no training triplets in {config.data.folder or 'memory'}; check the data set"
        )
    vocabulary = build_vocabulary(texts)
    write_file(run / "tokenizer.json", vocabulary.to_str().encode())
    trained_on = {"source": source.name, "triplets_per_epoch": len(texts) // 2, "epochs": config.train.epochs}
    write_header(run, config, vocabulary.get_vocab_size(), trained_on)
    return Tokenizer.from_file(run / "tokenizer.json", config.model.max_words), False


def train(config: Config, out: Path, *, resume: bool = True, progress: Progress | None = None) -> TrainResult:
    """Train, or continue, the run in folder `out`.

    The same seed gives the same weights on the same CPU and thread count. `progress` is called after each step with
    what was logged. Raises UsageError where `out` holds a run of another configuration, and the data set's errors.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.train.seed)
    source = open_source(
        config.data.source, Path(config.data.folder) if config.data.folder else None, **config.data.options
    )
    tokenizer, found_state = _prepare(out, config, source, resume)
    model = NSFSE(config.model, len(tokenizer)).to(memory_format=torch.channels_last)
    pictures = Pictures(source, config.model.image_size, config.train.cache_gb * 2**30)
    per_epoch = len(source.triplets(0)) // config.train.batch
    if per_epoch == 0:
        raise DataError(f"{source.name} gives fewer triplets than one batch of {config.train.batch}; lower train.batch")
    trainer = Trainer(config, model, per_epoch * config.train.epochs)
    if found_state:
        trainer.load_state(load_tensors(out / "state.safetensors"))
    log = Log(out, source, pictures, tokenizer, config, progress)
    with _stop_on_signal() as stopped:
        for epoch in range(trainer.step // per_epoch, config.train.epochs):
            triplets = source.triplets(epoch)
            for batch in batches(triplets, config.train.batch, pictures, tokenizer, trainer.step % per_epoch):
                log.step(trainer, trainer.train_step(batch))
                if stopped():
                    log.save(trainer)
                    return TrainResult(out, log.last, True)
            log.epoch(trainer, epoch)
    return TrainResult(out, log.last, False)


class Log:
    """Writes metrics.jsonl, TensorBoard where installed, checkpoints; scores the validation protocols."""

    def __init__(
        self,
        run: Path,
        source: Source,
        pictures: Pictures,
        tokenizer: Tokenizer,
        config: Config,
        progress: Progress | None,
    ) -> None:
        self.run, self.source, self.pictures, self.tokenizer = run, source, pictures, tokenizer
        self.config: TrainConfig = config.train
        self.data, self.model_config = config.data, config.model
        self.progress = progress
        self.started = time.monotonic()
        self.last: dict[str, Any] = {}
        self.best = -1.0
        self.board = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run / "tensorboard"))

    def step(self, trainer: Trainer, parts: dict[str, float]) -> None:
        """Record one step's losses, every tenth in the file, with both boundaries' statistics."""
        entry: dict[str, Any] = {
            "step": trainer.step,
            "of": trainer.total_steps,
            "lr": trainer.learning_rate(),
            **parts,
        }
        entry["seconds"] = round(time.monotonic() - self.started, 2)
        if trainer.step % 10 == 0 or trainer.step == trainer.total_steps:
            entry["t_c"] = trainer.model.head.cross_boundary.summary()
            entry["t_v"] = trainer.model.head.visual_boundary.summary()
            self._write(entry, trainer.step)
        if self.progress:
            self.progress(entry)

    def epoch(self, trainer: Trainer, epoch: int) -> None:
        """Score the averaged weights on validation, keep the best, save for resuming."""
        model = NSFSE(self.model_config, len(self.tokenizer))
        model.load_state_dict(trainer.average)
        scores = self._validate(TorchScorer(model.eval(), self.tokenizer))
        entry = {
            "epoch": epoch + 1,
            "step": trainer.step,
            "seconds": round(time.monotonic() - self.started, 2),
        } | scores
        self.last = entry
        self._write(entry, trainer.step)
        mean = scores.get("mean_R@1", float(epoch))
        if mean > self.best:
            self.best = mean
            save_tensors(self.run / "best.safetensors", trainer.average)
        self.save(trainer)
        if self.progress:
            self.progress(entry)

    def save(self, trainer: Trainer) -> None:
        """Write the averaged weights for use and the whole state for resuming."""
        save_tensors(self.run / "model.safetensors", trainer.average)
        save_tensors(self.run / "state.safetensors", trainer.state())

    def _validate(self, scorer: TorchScorer) -> dict[str, Any]:
        limit = self.data.validation_queries
        found: dict[str, Any] = {}
        for protocol in self.source.protocols(self.data.validation) if limit else []:
            short = dataclasses.replace(protocol, queries=protocol.queries[:limit])
            found[protocol.name] = evaluate(scorer, short, self.pictures).scores
        if found:
            found["mean_R@1"] = sum(scores["R@1"] for scores in found.values()) / len(found)
        return found

    def _write(self, entry: dict[str, Any], step: int) -> None:
        with (self.run / "metrics.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
        if self.board:
            for name, value in entry.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, step)
