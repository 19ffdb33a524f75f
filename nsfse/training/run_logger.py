"""What a run leaves behind: metrics.jsonl, its trackers, checkpoints, scores on validation."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from nsfse.config import Config
from nsfse.data import Source, TrainingTriplet, calibration_split
from nsfse.evaluation.evaluate import evaluate, scorable_queries, unlisted
from nsfse.models.baselines import build_model
from nsfse.models.checkpoint import save_state, save_tensors, write_decision, write_file
from nsfse.models.nsfse import NSFSE
from nsfse.models.pretrained import caches_features, freeze
from nsfse.models.torch_scorer import TorchScorer, make_scorer
from nsfse.training.calibration import fit_decision, protocol_from_triplets
from nsfse.training.dataloader import ImageCache
from nsfse.training.score_weights import fit_served
from nsfse.training.signals import Interrupted, Signals
from nsfse.training.trackers import Trackers
from nsfse.training.trainer import Trainer
from nsfse_runtime.inference.tokenizer import Tokenizer
from nsfse_runtime.regular_files import read_regular

FITTED = 3000  # triplets of the epoch whose images make a gallery to fit on

Progress = Callable[[dict[str, Any]], None]


class RunLogger:
    """Writes metrics.jsonl, trackers and checkpoints; scores the validation protocols."""

    def __init__(
        self,
        run: Path,
        source: Source,
        images: ImageCache,
        tokenizer: Tokenizer,
        config: Config,
        progress: Progress | None,
        step: int = 0,
    ) -> None:
        self.run, self.source, self.images, self.tokenizer = run, source, images, tokenizer
        self.config, self.data = config, config.data
        self.progress = progress
        self.started = self.saved = time.monotonic()
        self.save_every = 60.0 * config.train.save_every
        self.last: dict[str, Any] = {}
        self.best, self.finished = _truncate_log(run / "metrics.jsonl", step)
        self.trackers = Trackers(run, config, step, lambda note: progress({"note": note}) if progress else None)

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
            if isinstance(trainer.model, NSFSE):
                entry["t_c"] = trainer.model.head.cross_boundary.summary()
                entry["t_v"] = trainer.model.head.visual_boundary.summary()
            self._write(entry, trainer.step)
        if self.progress:
            self.progress(entry)

    def epoch(self, trainer: Trainer, epoch: int, triplets: Sequence[TrainingTriplet], signals: Signals) -> None:
        """Save for resuming; fit t and ω of the averaged weights, score them on validation, keep the best.

        After the last epoch the confidence is fitted, too. A signal ends the fits: `finished` is False, and a run that
        continues begins with them.
        """
        self.finished = False
        self.save(trainer, trainer.ema)
        try:
            with signals.interruptible():
                self._say("fitting boundaries and score weights")
                scorer, boundaries = self._served(trainer, triplets)
                self._say("scoring on validation")
                scores = self._validate(scorer)
                if isinstance(scorer.model, NSFSE) and trainer.step == trainer.total_steps:
                    self._say("fitting the confidence")
                    self._calibrate(scorer, triplets)
        except Interrupted:
            return
        served = scorer.model.state_dict()
        save_tensors(self.run / "model.safetensors", served)
        entry = {
            "epoch": epoch + 1,
            "step": trainer.step,
            "seconds": round(time.monotonic() - self.started, 2),
        } | (boundaries | scores)
        self.last = entry
        mean = scores.get("mean_R@1", float(epoch))
        if mean > self.best:
            self.best = mean
            save_tensors(self.run / "best.safetensors", served)
        self._write(entry, trainer.step)  # last: it says that all of this is done
        self.finished = True
        if self.progress:
            self.progress(entry)

    def stop(self, trainer: Trainer, triplets: Sequence[TrainingTriplet], signals: Signals) -> None:
        """Save within an epoch; fit t and ω where no signal wants an end."""
        self.save(trainer, trainer.ema)
        try:
            with signals.interruptible():
                served = self._served(trainer, triplets)[0].model.state_dict()
        except Interrupted:
            return
        save_tensors(self.run / "model.safetensors", served)

    def _say(self, what: str) -> None:
        if self.progress:
            self.progress({"note": what})

    def _served(self, trainer: Trainer, triplets: Sequence[TrainingTriplet]) -> tuple[TorchScorer, dict[str, Any]]:
        """Return a scorer of the averaged weights with t and ω fitted to them, and both boundaries for metrics.jsonl.

        The trainer's own weights and boundaries stay as they are: training continues as if nothing had been fitted.
        """
        model = build_model(self.config.model, len(self.tokenizer)).to(trainer.device).eval()
        model.load_state_dict(trainer.ema)
        freeze(model, self.config)
        scorer = make_scorer(model, self.tokenizer, cached_features=caches_features(self.config))
        if not isinstance(model, NSFSE):
            return scorer, {}
        fitting = calibration_split(self.source) or protocol_from_triplets(triplets[:FITTED])
        refits = fit_served(scorer, fitting, self.images, self.data.fitting_queries, triplets, self.images.classes)
        boundaries: dict[str, Any] = {}
        for name, boundary in (("t_c", model.head.cross_boundary), ("t_v", model.head.visual_boundary)):
            boundaries[name] = boundary.summary() | {"refit": refits[name]}
            if self.progress and refits[name] not in ("refitted", "fixed"):
                self.progress(
                    {"note": f"{name} of the served weights: {refits[name]}; training's {boundary.t:.3f} stays"}
                )
        return scorer, boundaries

    def _calibrate(self, scorer: TorchScorer, triplets: Sequence[TrainingTriplet]) -> None:
        known, queries = triplets[:FITTED], self.data.fitting_queries
        decision = fit_decision(scorer, self.source, self.data.validation, known, self.images, queries)
        if decision:
            write_decision(self.run, decision)

    def save(self, trainer: Trainer, served: dict[str, Tensor]) -> None:
        """Write the weights for use and the whole state for resuming."""
        save_tensors(self.run / "model.safetensors", served)
        self.save_state(trainer)

    def save_state(self, trainer: Trainer, due: bool = True) -> None:
        """Write the state for resuming; unless `due`, only when `train.save_every` minutes have passed."""
        if due or time.monotonic() - self.saved >= self.save_every:
            save_state(self.run, trainer.state())
            self.saved = time.monotonic()

    def _validate(self, scorer: TorchScorer) -> dict[str, Any]:
        """Score the first queries of every protocol that can be answered; the mean says over how many protocols."""
        limit, source = self.data.validation_queries, self.source
        protocols = source.protocols(self.data.validation) if limit else []
        missing, strange = source.missing, unlisted(source, protocols)
        scores: dict[str, Any] = {}
        for protocol in protocols:
            queries = scorable_queries(protocol, missing, strange)[:limit]
            if protocol.gallery and any(query.targets for query in queries):
                short = dataclasses.replace(protocol, queries=tuple(queries))
                scores[protocol.name] = evaluate(scorer, short, self.images).scores
        others = [protocol.name for protocol in protocols if protocol.name not in scores]
        if scores:
            scores["mean_R@1"] = sum(result["R@1"] for result in scores.values()) / len(scores)
        if others:
            scores["not_scored"] = others
            if self.progress:
                mean = f"mean R@1 is over {len(protocols) - len(others)} of {len(protocols)} protocols"
                self.progress({"note": f"validation: {mean}; no query can be answered of {', '.join(others)}"})
        return scores

    def _write(self, entry: dict[str, Any], step: int) -> None:
        with (self.run / "metrics.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
        self.trackers.log(entry, step)

    def close(self) -> None:
        """Close the trackers."""
        self.trackers.close()


class NullRunLogger:
    """The logger of a process that is not the first: it writes nothing."""

    last: Mapping[str, Any] = {}
    finished = True

    def step(self, trainer: Trainer, parts: dict[str, float]) -> None:
        """Write nothing."""

    def epoch(self, trainer: Trainer, epoch: int, triplets: Sequence[TrainingTriplet], signals: Signals) -> None:
        """Write nothing."""

    def stop(self, trainer: Trainer, triplets: Sequence[TrainingTriplet], signals: Signals) -> None:
        """Write nothing."""

    def save_state(self, trainer: Trainer, due: bool = True) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close nothing."""


def _truncate_log(file: Path, step: int) -> tuple[float, bool]:
    """Drop what was logged after `step`, where a run continues.

    Returns the best validation score left, or −1, and whether no end of an epoch, saved at `step`, lacks its fits.
    """
    lines = read_regular(file).splitlines() if file.exists() else []
    entries = [entry for line in lines if (entry := _entry(line)) and entry["step"] <= step]
    if lines:
        write_file(file, b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
    best = max((entry.get("mean_R@1", -1.0) for entry in entries), default=-1.0)
    return best, not step or any("epoch" in entry and entry["step"] == step for entry in entries)


def _entry(line: bytes) -> dict[str, Any] | None:
    """Read one line of metrics.jsonl; None for one that a kill cut short."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
