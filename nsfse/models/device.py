"""Which device torch uses, and whether it computes in bfloat16."""

import os
import platform
from collections.abc import Callable
from typing import Any

import torch

from nsfse_runtime.errors import UsageError


def pick_device(setting: str) -> torch.device:
    """Return the device to compute on.

    Args:
        setting: auto, cpu or cuda, as `train.device`.

    Returns:
        The device; under torchrun this process's own GPU.

    Raises:
        UsageError: `setting` is cuda, and torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise UsageError(
            "train.device is cuda, but torch sees no GPU; use auto or cpu, or install a CUDA build of torch"
        )
    if setting == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def bfloat16_support(device: torch.device) -> tuple[bool, str]:
    """Return whether `device` computes in bfloat16 itself, and a line that says why."""
    if device.type == "cuda":
        return _cuda_support(device)
    return _cpu_support() if device.type == "cpu" else (False, f"it is not used on {device.type}")


def _cuda_support(device: torch.device) -> tuple[bool, str]:
    """GPUs compute in bfloat16 from Ampere on; on older ones torch emulates it."""
    with torch.cuda.device(device):
        native = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    name = torch.cuda.get_device_name(device)
    return native, f"{name} {'computes' if native else 'does not compute'} in bfloat16"


def _cpu_support() -> tuple[bool, str]:
    """Read the processor's flags: they say what it can do, not that it is faster so.

    benchmarks/number_types.py measures that. No clock decides here: a run must not change its number types between two
    starts.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        flags = ["bf16"] if _arm_bfloat16() else []
        lacks = "this ARM CPU has no bf16"
    else:
        # torch has no public names for these; a version without them counts as a CPU without bfloat16.
        checks = {"AVX512-BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
        flags = [name for name, check in checks.items() if getattr(torch.cpu, check, lambda: False)()]
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
