"""A run's folder: config.json, tokenizer.json, model.safetensors (last), best.safetensors, state.safetensors.

decision.json, what tells a match (inference/confidence.py), belongs to model.safetensors and is written at the end.
Every file is replaced whole (written beside, synced, renamed), so that a kill leaves the old one or the new one. The
previous state for resuming stays beside the newest, in case that is damaged.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nsfse.config import Config, parse_config
from nsfse.models.baselines import Baseline, build_model
from nsfse.models.nsfse import NSFSE
from nsfse.models.training_free import TrainingFree
from nsfse_runtime.atomic_write import atomic_write
from nsfse_runtime.errors import IntegrityError, NotFoundError, OutputError, VersionError
from nsfse_runtime.inference.confidence import Decision
from nsfse_runtime.inference.tokenizer import Tokenizer
from nsfse_runtime.regular_files import read_regular

FORMAT = 2
_RENAMED = {  # what format 1 called the settings, by section
    "model": {
        "cell": "stride",
        "cells": "pool_grid",
        "clip": "clip_config",
        "facts": "attribute_supervision",
        "head_reach": "head_grad_scale",
        "views": "global_tokens",
    },
    "train": {
        "accumulate": "grad_cache_chunks",
        "amp": "bf16_autocast",
        "augment": "augment_strength",
        "average": "ema_decay",
        "backbone_lr": "backbone_lr_scale",
        "clip": "max_grad_norm",
        "evidence_weight": "word_grounding_weight",
        "naming_weight": "word_role_weight",
        "warmup": "warmup_ratio",
    },
}
_RENAMED_OPTIONS = {  # and the options of a data set, in data.options
    "changes": "attribute_weights",
    "double": "double_ratio",
    "held_out": "calibration_ratio",
    "instance": "instance_ratio",
    "negation": "negation_ratio",
    "phrasings": "templates",
    "recoloured": "recolour_prob",
    "variety": "augment_prob",
}
STATES = ("state.safetensors", "state.previous.safetensors")  # the newest first
DECISION = "decision.json"
DIGEST = "sha256"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with what it needs to be used."""

    path: Path
    model: NSFSE | TrainingFree | Baseline
    config: Config
    tokenizer: Tokenizer
    info: dict[str, Any]
    decision: Decision | None = None


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, all or nothing. Raises OutputError where it cannot be written."""
    atomic_write(path, data, durable=True, sole_writer=True, hint="choose another place with -o")


def write_header(run: Path, config: Config, vocabulary: int, trained_on: dict[str, Any]) -> None:
    """Write config.json: the configuration, the vocabulary's size and what the model is trained on."""
    tree = {"format": FORMAT, "vocabulary": vocabulary, "trained_on": trained_on, "config": config}
    write_file(run / "config.json", msgspec.json.format(msgspec.json.encode(tree), indent=2))


def read_header(run: Path) -> dict[str, Any]:
    """Return config.json as a dict with `config` parsed. Raises NotFoundError, IntegrityError or VersionError."""
    try:
        tree = msgspec.json.decode(read_regular(run / "config.json"), type=dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{run} is not a checkpoint (no config.json); train one with `nsfse train`") from None
    except msgspec.DecodeError as error:
        raise IntegrityError(f"{run / 'config.json'} is damaged: {error}; train again or restore it") from None
    if tree.get("format") not in (1, FORMAT):
        raise VersionError(f"{run} has checkpoint format {tree.get('format')}, this nsfse reads {FORMAT}; update nsfse")
    config = _renamed(tree["config"]) if tree["format"] == 1 else tree["config"]
    return tree | {"config": parse_config(config, str(run / "config.json"))}


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of format 1 under the names of format 2."""
    tree = {section: _under(_RENAMED.get(section, {}), settings) for section, settings in config.items()}
    data = tree.get("data", {})
    return tree | ({"data": data | {"options": _under(_RENAMED_OPTIONS, data["options"])}} if "options" in data else {})


def _under(names: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in settings.items()}


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, all or nothing."""
    write_file(path, save({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, metadata))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors. Raises NotFoundError or IntegrityError."""
    try:
        return load(read_regular(path))
    except FileNotFoundError:
        raise NotFoundError(f"no weights at {path}; train with `nsfse train`") from None
    except SafetensorError as error:
        raise IntegrityError(f"{path} is damaged: {error}; train again or restore it") from None


def save_state(run: Path, tensors: dict[str, Tensor]) -> None:
    """Write all that resuming needs, with its own digest; what was the newest state is then the previous one."""
    newest, previous = (run / name for name in STATES)
    beside = run / "state.next"
    save_tensors(beside, tensors | {DIGEST: _digest(tensors)})
    try:
        if newest.exists():
            newest.replace(previous)
        beside.replace(newest)
    except OSError as error:
        raise OutputError(f"cannot write {newest}: {error.strerror}; choose another place with -o") from None


def load_state(run: Path) -> tuple[dict[str, Tensor] | None, str]:
    """Return the newest whole state, None in a new run, and a line on what was damaged, if any.

    Raises IntegrityError where there are states and none is whole.
    """
    damaged = ""
    for path in (run / name for name in STATES):
        try:
            tensors = load_tensors(path)
        except NotFoundError:
            continue
        except IntegrityError:
            tensors = {}
        digest = tensors.pop(DIGEST, None)
        if digest is not None and digest.equal(_digest(tensors)):
            return tensors, damaged and f"{damaged} is damaged; continuing from {path.name} before it"
        damaged = str(path)
    if damaged:
        raise IntegrityError(f"{damaged} is damaged and no other state is whole; start again with --no-resume")
    return None, ""


def _digest(tensors: dict[str, Tensor]) -> Tensor:
    """Return the SHA-256 of named tensors as 32 bytes: a safetensors file does not notice a flipped bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def write_decision(run: Path, decision: Decision) -> None:
    """Write what tells a match, for the last weights of `run`."""
    write_file(run / DECISION, msgspec.json.format(msgspec.json.encode(decision), indent=2))


def read_decision(run: Path) -> Decision | None:
    """Return what tells a match; None where it was not fitted. Raises IntegrityError."""
    try:
        return msgspec.json.decode(read_regular(run / DECISION), type=Decision)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise IntegrityError(f"{run / DECISION} is damaged: {error}; restore it, or remove it to do without") from None


def load_checkpoint(run: str | os.PathLike[str], which: str = "last") -> Checkpoint:
    """Open a run's model in evaluation mode; `which` is `last` or `best` (best on validation, without a decision)."""
    run = Path(run)
    header = read_header(run)
    config: Config = header["config"]
    model = build_model(config.model, int(header["vocabulary"]))
    name = "best" if which == "best" else "model"
    tensors = load_tensors(run / f"{name}.safetensors")
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise IntegrityError(
            f"{run / name}.safetensors does not fit {run / 'config.json'}; they are of two runs"
        ) from None
    tokenizer = Tokenizer.from_file(run / "tokenizer.json", config.model.max_words)
    info = {k: v for k, v in header.items() if k != "config"}
    decision = None if which == "best" else read_decision(run)
    return Checkpoint(run, model.eval(), config, tokenizer, info, decision)


def checkpoint_info(run: Path) -> dict[str, Any]:
    """Describe a run without loading torch weights: its header, its last metrics."""
    header = read_header(run)
    lines = read_regular(run / "metrics.jsonl").decode("utf-8").splitlines() if (run / "metrics.jsonl").exists() else []
    config = msgspec.to_builtins(header.pop("config"))
    return {"kind": "checkpoint", "path": str(run), **header, "config": config} | (
        {"last_metrics": msgspec.json.decode(lines[-1])} if lines else {}
    )
