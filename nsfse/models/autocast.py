"""Mixed precision: which parts of a training step run in bfloat16 (docs/training.md).

Under autocast run the encoders of images and texts, and the products of the pair head with its candidates: nearly all
of the arithmetic. What they return is float32 again. All else is float32 or better: normalised features, attention,
boundaries, losses, the fusion weights, weights and optimizer.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from nsfse.config import AMP, AMP_VARIABLE
from nsfse.models.device import bfloat16_support
from nsfse_runtime.errors import UsageError

_aten = torch.ops.aten
PRODUCTS = {
    *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default),
    *(_aten.mv.default, _aten.addmv.default, _aten.convolution.default, _aten.convolution_backward.default),
}


@dataclass(frozen=True)
class NumberTypes:
    """Whether `device` trains in bfloat16 and why; `native` tells whether it computes in bfloat16 itself."""

    device: torch.device
    bfloat16: bool
    native: bool
    reason: str

    def __str__(self) -> str:
        """Return one line on what is used and why."""
        return f"{'on' if self.bfloat16 else 'off'}; {self.reason}"

    def lowered(self, function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        """Return `function` as it runs in bfloat16 where that is on; the tensors it returns are float32 or float64."""

        @functools.wraps(function)
        def run(*inputs: Any) -> tuple[Tensor, ...]:
            # No cache of lowered weights: under a caller's autocast it would outlive an optimizer step.
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
                outputs = function(*inputs)
            return tuple(widened(x) for x in outputs)

        return run

    def full(self) -> AbstractContextManager[Any]:
        """Return a context without autocast; functions made by `lowered` switch it on again inside."""
        return torch.autocast(self.device.type, enabled=False)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run one step, forward and backward: `full`, and with products of bfloat16 that are fast on any CPU.

        The backward pass is inside as well: under a caller's autocast it would lower the products of float32.
        """
        with self.full(), nullcontext() if self.native or not self.bfloat16 else _Rounded():  # type: ignore[no-untyped-call]
            yield


class _Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute products of bfloat16 in float32 and round them, as a processor with bfloat16 does.

    torch's own kernels for CPUs without bfloat16 took forty times as long as those of float32
    (https://github.com/pytorch/pytorch/issues/118499, open at torch 2.13). TorchDispatchMode has no public name yet;
    `torch>=2.9` has it here.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if func not in PRODUCTS or not isinstance(first, Tensor) or first.dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        wide = tree_map_only(Tensor, lambda x: x.float(), (args, kwargs or {}))
        return tree_map_only(Tensor, lambda x: x.bfloat16(), func(*wide[0], **wide[1]))


def widened(x: Tensor) -> Tensor:
    """Return `x`, of any shape, as float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def in_full(device: torch.device) -> Iterator[None]:
    """Leave autocast for the block, within an encoder. Nothing happens where there is none, as in an export."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def choose(setting: str, device: torch.device) -> NumberTypes:
    """Return the number types for `train.bf16_autocast` = `setting`: auto, on or off.

    The environment's NSFSE_BF16_AUTOCAST stands in for auto alone. Raises UsageError where that is none of the three.
    """
    wanted, who = setting, "train.bf16_autocast"
    if setting == "auto" and (value := os.environ.get(AMP_VARIABLE, "").strip().lower()):
        if value not in AMP:
            raise UsageError(f"{AMP_VARIABLE} is {value!r}; set it to {', '.join(AMP[:-1])} or {AMP[-1]}")
        wanted, who = value, AMP_VARIABLE
    native, what = bfloat16_support(device)
    if wanted == "auto":
        return NumberTypes(device, native and device.type == "cuda", native, what)
    emulated = "" if native or wanted == "off" else f" ({what}, so products are computed in float32 and rounded)"
    return NumberTypes(device, wanted == "on", native, f"{who} is {wanted}{emulated}")
