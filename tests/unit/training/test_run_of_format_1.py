"""A run of checkpoint format 1, stopped after the first of its two epochs, opens and is trained to its end."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from nsfse.config import load_config
from nsfse.models.checkpoint import load_checkpoint, read_header
from nsfse.training.loop import train

V0 = Path(__file__).parents[2] / "golden" / "v0"
RENAMED = {
    "model": {
        "cell": "stride",
        "cells": "pool_grid",
        "clip": "clip_config",
        "head_reach": "head_grad_scale",
        "views": "global_tokens",
    },
    "train": {
        "accumulate": "grad_cache_chunks",
        "augment": "augment_strength",
        "average": "ema_decay",
        "backbone_lr": "backbone_lr_scale",
        "clip": "max_grad_norm",
        "evidence_weight": "word_grounding_weight",
        "naming_weight": "word_role_weight",
        "warmup": "warmup_ratio",
    },
}


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(V0 / "run", tmp_path / "run"))


def test_its_settings_have_their_present_names(run):
    written = json.loads((run / "config.json").read_text("utf-8"))["config"]
    assert written["train"].pop("amp") is True
    config = read_header(run)["config"]
    for section, names in RENAMED.items():
        for former, name in names.items():
            value = getattr(getattr(config, section), name)
            assert value == written[section][former], f"{section}.{former}"
    assert config.train.bf16_autocast == "auto"
    assert (config.model.dim, config.train.epochs, config.data.source) == (4, 2, "drawn")


def test_it_opens_and_trains_to_its_end(run):
    before = load_checkpoint(run).model.state_dict()
    first = (run / "metrics.jsonl").read_text("utf-8")
    seen = []
    result = train(load_config(file=V0 / "run.toml"), run, progress=seen.append)
    assert not result.interrupted
    assert [entry["step"] for entry in seen if "loss" in entry] == [5, 6, 7, 8]  # it goes on where it stopped
    after = load_checkpoint(run).model.state_dict()
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    metrics = (run / "metrics.jsonl").read_text("utf-8")
    assert metrics.startswith(first) and len(metrics.splitlines()) > len(first.splitlines())
