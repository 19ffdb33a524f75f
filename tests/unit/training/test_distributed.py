"""Processes and parts change who computes what, not what is learned."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch import nn

from nsfse.config import load_config
from nsfse.models.backbones.text import MaskedGru
from nsfse.models.boundary import AdaptiveBoundary
from nsfse.models.device import pick_device
from nsfse.models.nsfse import NSFSE
from nsfse.training import trainer as trainer_module
from nsfse.training.dataloader import Batch, augment
from nsfse.training.distributed import DistributedContext, SyncBatchNorm2d
from nsfse.training.objectives import NSFSEObjective
from nsfse.training.trainer import Trainer
from nsfse_runtime.errors import UsageError

ROOT = Path(__file__).parents[3]
TOY = [
    'data.source="drawn"',
    'data.options.level="easy"',
    "data.options.gallery=96",
    "data.options.items=64",
    "data.options.triplets=90",
    "data.validation_queries=0",
    "data.fitting_queries=20",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=16",
    "train.batch=15",
    "train.candidates=6",
    "train.head_share=1.0",
    "train.epochs=1",
    "train.seed=3",  # its boundary wakes within the six steps
]


def losses(run, launcher, *settings):
    """Train in `run`; return the six steps that one process told of, and what it left there."""
    paths = os.pathsep.join(str(ROOT / room) for room in (".", "export", "runtime"))
    told = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.train_child", "double", str(run), *TOY, *settings],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    steps = [entry for entry in map(json.loads, told.stdout.splitlines()) if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    names = ("stage1", "text", "titles", "naming", "evidence", "views", "boundary", "head", "distill", "loss")
    return torch.tensor([[entry[name] for name in names] for entry in steps]), {path.name for path in run.iterdir()}


@pytest.mark.slow
def test_processes_train_as_one_does(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    alone, files = losses(tmp_path / "alone", [], "train.grad_cache_chunks=2")
    together, same_files = losses(tmp_path / "together", torchrun, "train.grad_cache_chunks=2")
    assert alone[-1, 6] > 0, "no boundary: its statistics would not be compared"
    assert (alone - together).abs().max() < 1e-9
    assert files == same_files


@pytest.mark.parametrize(("count", "parts"), [(16, 1), (17, 3), (5, 8), (2, 1)])
def test_every_row_is_encoded_once_and_parts_do_not_depend_on_processes(count, parts):
    for world in (1, 2, 3):
        contexts = [DistributedContext(rank, world, parts).rows(count) for rank in range(world)]
        whole = [torch.cat(part) for part in zip(*contexts, strict=True)]
        assert torch.cat(whole).tolist() == list(range(count))
        if count >= parts * world:
            assert [len(part) for part in whole] == [len(part) for part in DistributedContext(0, 1, parts).rows(count)]


def test_parts_have_the_gradient_of_the_whole_and_keep_activations_of_one():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Dropout(0.0), nn.Linear(32, 4)).double()
    inputs = torch.randn(17, 5, dtype=torch.float64)
    seen = []

    def encode(x):
        seen.append(len(x))
        found = nn.functional.normalize(encoder(x), dim=-1)
        return found, found.square()

    gradients = []
    for parts in (1, 3):
        encoder.zero_grad()
        vectors, squares = DistributedContext(chunks=parts).encode(encoder, encode, (inputs,), 17)
        ((10.0 * vectors @ vectors.T).logsumexp(1).sum() + squares.sum(0).prod()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    assert seen[0] == 17 and sorted(seen[1:]) == [5, 5, 6, 6, 6, 6]  # each part twice, never more at a time
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-14)


def test_encoding_a_part_again_moves_no_statistics():
    norm = nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 4, 5)
    (found,) = DistributedContext(chunks=2).encode(norm, lambda part: (norm(part),), (x,), 8)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    found.square().sum().backward()
    assert norm.weight.grad is not None and int(norm.num_batches_tracked) == 2 and norm.momentum == 0.1
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())


def test_sync_batch_norm_is_torchs_own():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain, joint = nn.BatchNorm2d(3), SyncBatchNorm2d(3)
        for norm in (plain, joint):
            torch.manual_seed(1)
            norm.weight.data.uniform_(0.5, 2.0)
            x = torch.randn(6, 3, 4, 5, requires_grad=True)
            norm.found = norm(x)
            norm.found.pow(3).sum().backward()
            norm.pulled = x.grad
        for name in ("found", "pulled", "running_mean", "running_var", "num_batches_tracked"):
            assert torch.allclose(getattr(plain, name), getattr(joint, name), rtol=1e-4, atol=1e-5), name
        assert torch.allclose(plain.eval()(x), joint.eval()(x), atol=1e-5)
    finally:
        dist.destroy_process_group()


def test_an_image_is_augmented_alike_whoever_does_it():
    pixels = torch.randint(0, 256, (7, 12, 8, 3), dtype=torch.uint8)

    def augmented(rows):
        return augment(pixels[rows], rows, 7, 1.0, torch.Generator().manual_seed(5))

    whole = augmented(torch.arange(7))
    assert not torch.equal(whole, pixels)
    assert torch.equal(torch.cat([augmented(torch.arange(3)), augmented(torch.arange(3, 7))]), whole)


def test_a_step_makes_nothing_on_another_device(monkeypatch):
    """The meta device stands in for a GPU: operations refuse to mix it with the CPU."""
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 0.5)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(MaskedGru, "forward", lambda self, x, mask: nn.GRU.forward(self, x)[0])
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: torch.zeros(()))
    for name, value in {"t": property(lambda _: 0.1), "ready": property(lambda _: True)}.items():
        monkeypatch.setattr(AdaptiveBoundary, name, value)
    monkeypatch.setattr(NSFSEObjective, "_update_boundaries", lambda *_: None)
    # Labelled words are looked up, and none is there.
    monkeypatch.setattr(NSFSEObjective, "_word_losses", lambda *_: {})
    monkeypatch.setattr(trainer_module, "_read_labels", lambda batch, _: (batch.named, batch.fulfils))
    config = load_config(overrides=TOY)
    trainer = Trainer(config, NSFSE(config.model, 20).to("meta"), 10)
    mask = torch.ones(8, 4, dtype=torch.bool)
    blank = torch.zeros(12, 32, 48, 3, dtype=torch.uint8)
    at = torch.arange(12)
    none = torch.zeros(8, 12, dtype=torch.bool)
    words, titles = (mask.long() * 0, none[:0].long()), (at[:8], mask.long(), mask)
    batch = Batch(blank, at, at[:8], at[2:10], mask.long(), mask, none, *words, *titles)
    assert "boundary" in trainer.train_step(batch)
    assert trainer.optimizer.state[trainer.model.stage1_scale]["exp_avg"].device.type == "meta"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"train\.device"):
        pick_device("cuda")
