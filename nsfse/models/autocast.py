"""The number types of training: what is computed in bfloat16, where that begins and ends, and who decides it.

One rule for every method and backbone (docs/training.md). Under autocast run the encoders of images and texts, and the
products of the pair head with its candidates: nearly all of the arithmetic. What they return is float32 again. All else
is float32 or better: normalised features, attention, boundaries, losses, the mix, weights and optimizer.
"""

import functools
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from nsfse.config import AMP, AMP_VARIABLE
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
        """Return one line for people."""
        return f"{'on' if self.bfloat16 else 'off'}; {self.reason}"

    def lowered(self, function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        """Return `function` as it runs in bfloat16 where that is on; the tensors it returns are float32 or float64."""

        @functools.wraps(function)
        def run(*inputs: Any) -> tuple[Tensor, ...]:
            # No cache of lowered weights: it would outlive an optimizer step where somebody's autocast is around it.
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
                found = function(*inputs)
            return tuple(widened(x) for x in found)

        return run

    def full(self) -> AbstractContextManager[Any]:
        """Return a block without autocast, whatever stands around it; `lowered` functions have their own inside."""
        return torch.autocast(self.device.type, enabled=False)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Take one step, forward and backward, in the block: `full`, and products of bfloat16 are fast on any CPU.

        Backward as well: under somebody's autocast it would lower the products of float32.
        """
        with self.full(), nullcontext() if self.native or not self.bfloat16 else _Rounded():  # type: ignore[no-untyped-call]
            yield


class _Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Products of bfloat16 computed in float32 and rounded, as a processor does that has them.

    torch's own kernels for CPUs without them took forty times as long as those of float32.
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
    if setting == "auto" and (found := os.environ.get(AMP_VARIABLE, "").strip().lower()):
        if found not in AMP:
            raise UsageError(f"{AMP_VARIABLE} is {found!r}; set it to {', '.join(AMP[:-1])} or {AMP[-1]}")
        wanted, who = found, AMP_VARIABLE
    native, what = _cuda(device) if device.type == "cuda" else _other(device)
    if wanted == "auto":
        return NumberTypes(device, native and device.type == "cuda", native, what)
    emulated = "" if native or wanted == "off" else f" ({what}, so products are computed in float32 and rounded)"
    return NumberTypes(device, wanted == "on", native, f"{who} is {wanted}{emulated}")


def _cuda(device: torch.device) -> tuple[bool, str]:
    """Return what `_other` does, of a GPU: they compute in bfloat16 from Ampere on; before, torch emulates it."""
    with torch.cuda.device(device):
        there = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    name = torch.cuda.get_device_name(device)
    return there, f"{name} {'computes' if there else 'does not compute'} in bfloat16"


def _other(device: torch.device) -> tuple[bool, str]:
    """Return whether a CPU computes in bfloat16 itself, and a line on that.

    Unasked, none does: flags say what a processor can do, and not that it is faster so (benchmarks/number_types.py
    measures it). No clock decides, either: a run must not change its number types between two starts.
    """
    if device.type != "cpu":
        return False, f"it is not used on {device.type}"
    if platform.machine().lower() in ("arm64", "aarch64"):
        flags = ["bf16"] if _arm_bfloat16() else []
        lacks = "this ARM CPU has no bf16"
    else:
        known = {"AVX512-BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
        flags = [name for name, check in known.items() if getattr(torch.cpu, check, lambda: False)()]
        lacks = "this CPU has neither AVX512-BF16 nor AMX"
    if not flags:
        return False, lacks
    return (
        True,
        f"this CPU has {' and '.join(flags)}, which was not measured to be faster; train.bf16_autocast=on uses it",
    )


def _arm_bfloat16() -> bool:
    capabilities: Callable[[], Any] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("bf16", False))
