"""One batch over several processes, or in several chunks, with the loss and gradient of the whole (docs/training.md).

Encoders see only some rows of a batch at a time. Every process then holds the features of all rows and computes the
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
from nsfse.models.device import pick_device
from nsfse_runtime.errors import UsageError

BARRIER_TIMEOUT = timedelta(hours=2)  # the others wait for the first process while it validates


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among `world_size` processes, which encode a batch in `chunks` one after another."""

    rank: int = 0
    world_size: int = 1
    chunks: int = 1

    def rows(self, count: int) -> list[Tensor]:
        """Return this process's rows of a batch of `count`, chunk by chunk; chunks do not depend on `world_size`."""
        chunks = torch.arange(count).tensor_split(max(1, min(self.chunks, count // self.world_size)))
        return [chunk.tensor_split(self.world_size)[self.rank] for chunk in chunks]

    def encode(
        self, module: nn.Module, encoder: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], count: int
    ) -> tuple[Tensor, ...]:
        """Encode a batch of which this process has some rows.

        In chunks, activations are not kept: the backward pass encodes each chunk once more, so that memory is that of
        one chunk.

        Args:
            module: What holds the batch normalisations, whose running statistics must not move the second time.
            encoder: Turns inputs [b, ...] into features [b, ...].
            inputs: Tensors of this process's rows.
            count: Rows of the whole batch.

        Returns:
            The features of all rows [count, ...], in order.
        """
        rows = self.rows(count)
        if len(rows) == 1:
            encoded = [encoder(*inputs)]
        else:
            slices = zip(*(torch.split(x, [len(chunk) for chunk in rows]) for x in inputs), strict=True)
            encoded = [
                checkpoint(
                    encoder,
                    *chunk,
                    use_reentrant=False,
                    context_fn=lambda: (nullcontext(), frozen_bn_statistics(module)),
                )
                for chunk in slices
            ]
        features = tuple(torch.cat(parts) for parts in zip(*encoded, strict=True))
        if self.world_size == 1:
            return features
        return tuple(_gather(x, torch.cat(rows).to(x.device), count) for x in features)

    def all_reduce_gradients(self, model: nn.Module) -> None:
        """Sum all gradients over the processes; take the first process's boundaries, where a GPU's may differ."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))
        for name, buffer in model.named_buffers():
            if "boundary" in name:
                dist.broadcast(buffer, 0)

    def any(self, here: bool, device: torch.device) -> bool:
        """Return whether `here` is true in any process: all must stop at the same step."""
        if self.world_size == 1:
            return here
        flag = torch.tensor(float(here), device=device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


class _AllReduce(torch.autograd.Function):
    """The sum over all processes, forward and backward.

    torch.distributed.nn.functional.all_reduce is the same; torch 2.13 deprecates it in favour of a private module, so
    this one stands on the public torch.distributed.all_reduce.
    """

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


_all_reduce: Callable[[Tensor], Tensor] = _AllReduce.apply


def _gather(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return the whole batch [count, ...] in every process, of which this one has the `rows` as `x` [len(rows), ...].

    Processes may have different numbers of rows, which an all_gather does not take.
    """
    return _all_reduce(x.new_zeros(count, *x.shape[1:]).index_copy(0, rows, x))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of all processes' rows, on any device.

    torch.nn.SyncBatchNorm does the same on GPUs alone (https://github.com/pytorch/pytorch/pull/78081, closed).
    """

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm2d in `module`; names, parameters and buffers stay the same objects."""
        if type(module) is nn.BatchNorm2d:
            return cls._from(module)
        for name, child in module.named_children():
            setattr(module, name, cls.convert(child))
        return module

    @classmethod
    def _from(cls, norm: nn.BatchNorm2d) -> "SyncBatchNorm2d":
        synced = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        synced.weight, synced.bias = norm.weight, norm.bias
        synced.running_mean, synced.running_var = norm.running_mean, norm.running_var
        synced.num_batches_tracked, synced.training = norm.num_batches_tracked, norm.training
        return synced

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [B, C, H, W], B of any size in each process."""
        if not self.training:
            return super().forward(x)
        wide = widened(x)
        size = wide.new_tensor([x.numel() / x.shape[1]])
        sums = _all_reduce(torch.cat([wide.sum((0, 2, 3)), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = _all_reduce(centred.square().sum((0, 2, 3))) / count
        self._update_statistics(mean.detach(), variance.detach() * count / (count - 1.0))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


@contextmanager
def frozen_bn_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch normalisation as they are."""
    before = [(m, m.momentum, m.num_batches_tracked) for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for m, _, counted in before:
        m.momentum = 0.0
        m.num_batches_tracked = counted.clone() if counted is not None else None
    try:
        yield
    finally:
        for m, momentum, counted in before:
            m.momentum, m.num_batches_tracked = momentum, counted


@contextmanager
def distributed_session(config: TrainConfig) -> Iterator[DistributedContext]:
    """Join the processes that torchrun started, if it did. Raises UsageError for a batch smaller than their number."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield DistributedContext(chunks=config.grad_cache_chunks)
        return
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=BARRIER_TIMEOUT)
    try:
        context = DistributedContext(dist.get_rank(), dist.get_world_size(), config.grad_cache_chunks)
        if config.batch < context.world_size:
            raise UsageError(
                f"train.batch is {config.batch} for {context.world_size} processes; raise it or start fewer"
            )
        yield context
    finally:
        dist.destroy_process_group()
