"""One batch over several processes, or in several parts, with the loss and gradient of the whole (docs/training.md).

Encoders see only some rows of a batch at a time; every process then holds the features of all rows and computes the
whole loss, so that each query meets all of the batch's negatives. Gradients flow back to the rows' own process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nsfse.config import TrainConfig
from nsfse.models.autocast import widened
from nsfse_runtime.errors import UsageError

PATIENCE = timedelta(hours=2)  # the others wait for the first process while it validates


@dataclass(frozen=True)
class Share:
    """What this process does of each batch: `parts` one after another, each split over `world` processes."""

    rank: int = 0
    world: int = 1
    parts: int = 1

    def rows(self, count: int) -> list[Tensor]:
        """Return this process's rows of a batch of `count`, part by part; the parts do not depend on `world`."""
        parts = torch.arange(count).tensor_split(max(1, min(self.parts, count // self.world)))
        return [part.tensor_split(self.world)[self.rank] for part in parts]

    def encode(
        self, module: nn.Module, encoder: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], count: int
    ) -> tuple[Tensor, ...]:
        """Call `encoder` on this process's rows `inputs` of `count`; return features of all rows, in order.

        In parts, activations are not kept: going backward, each part is encoded once more, so that memory is that of
        one part. `module` holds the batch normalisations, whose running statistics must not move the second time.
        """
        rows = self.rows(count)
        if len(rows) == 1:
            found = [encoder(*inputs)]
        else:
            slices = zip(*(torch.split(x, [len(part) for part in rows]) for x in inputs), strict=True)
            found = [
                checkpoint(encoder, *part, use_reentrant=False, context_fn=lambda: (nullcontext(), _still(module)))
                for part in slices
            ]
        whole = tuple(torch.cat(same) for same in zip(*found, strict=True))
        if self.world == 1:
            return whole
        return tuple(_gather(x, torch.cat(rows).to(x.device), count) for x in whole)

    def agree(self, model: nn.Module) -> None:
        """Sum all gradients over the processes; take the first process's boundaries, where a GPU's may differ."""
        if self.world == 1:
            return
        found = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in found])
        dist.all_reduce(flat)
        for grad, total in zip(found, torch.split(flat, [grad.numel() for grad in found]), strict=True):
            grad.copy_(total.view_as(grad))
        for name, buffer in model.named_buffers():
            if "boundary" in name:
                dist.broadcast(buffer, 0)

    def any(self, here: bool, device: torch.device) -> bool:
        """Return whether `here` is true in any process: all must stop at the same step."""
        if self.world == 1:
            return here
        flag = torch.tensor(float(here), device=device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()


class _Gather(torch.autograd.Function):
    """Rows of each process → the whole batch in all of them; going backward, the sum of all for each row."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, rows: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(rows)
        whole = mine.new_zeros(count, *mine.shape[1:])
        whole[rows] = mine
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.saved_tensors[0]], None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


_gather: Callable[[Tensor, Tensor, int], Tensor] = _Gather.apply
_sum: Callable[[Tensor], Tensor] = _Sum.apply


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of all processes' rows; torch's own SyncBatchNorm needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [B, C, H, W], B of any size in each process."""
        if not self.training:
            return super().forward(x)
        wide = widened(x)
        size = wide.new_tensor([x.numel() / x.shape[1]])
        sums = _sum(torch.cat([wide.sum((0, 2, 3)), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = _sum(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1.0))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def join_normalisation(model: nn.Module) -> None:
    """Let every BatchNorm2d of `model` take its statistics from all processes; names and weights stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = JointBatchNorm2d


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Keep running statistics of batch normalisation as they are."""
    before = [(m, m.momentum, m.num_batches_tracked) for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for m, _, counted in before:
        m.momentum = 0.0
        m.num_batches_tracked = counted.clone() if counted is not None else None
    try:
        yield
    finally:
        for m, momentum, counted in before:
            m.momentum, m.num_batches_tracked = momentum, counted


def pick_device(wanted: str) -> torch.device:
    """Return the device of `train.device`, under torchrun this process's own GPU. Raises UsageError without one."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UsageError(
            "train.device is cuda, but torch sees no GPU; use auto or cpu, or install a CUDA build of torch"
        )
    if wanted == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(config: TrainConfig) -> Iterator[Share]:
    """Join the processes that torchrun started, if it did, for the block. Raises UsageError for a batch too small."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Share(parts=config.grad_cache_chunks)
        return
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        share = Share(dist.get_rank(), dist.get_world_size(), config.grad_cache_chunks)
        if config.batch < share.world:
            raise UsageError(f"train.batch is {config.batch} for {share.world} processes; raise it or start fewer")
        yield share
    finally:
        dist.destroy_process_group()
