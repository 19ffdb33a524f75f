"""What training needs of torch, oneDNN and glibc beside their defaults, each with its cause and its end.

Nothing here acts on import. All but the allocator's setting ends with its context.
"""

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_MAX = -1, -4  # of malloc.h
ONEDNN_BLOCK = 16  # channels


def keep_freed_memory() -> None:
    """Let glibc keep, for the rest of the process, the memory that large tensors free: every step takes it anew.

    Given back each time, a step of the pair head took a quarter longer on a CPU of two cores. torch has no allocator of
    its own on CPUs (https://github.com/pytorch/pytorch/pull/55675, closed); this goes with a torch that has one. Other
    C libraries are left alone.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MALLOC_MMAP_MAX, 0)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def safe_convolutions(channels: int) -> Iterator[None]:
    """Do without oneDNN for convolutions of `channels` that are no multiple of 16.

    The gradient of a strided 1×1 convolution on channels_last tensors writes past its workspace
    (https://github.com/uxlfoundation/oneDNN/issues/6035). Open at torch 2.14; this goes with the first torch whose
    oneDNN has the fix.
    """
    with ExitStack() as stack:
        if channels % ONEDNN_BLOCK:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # of Intel's GPUs
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


@contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """Ask torch for deterministic algorithms on a CPU: its parallel scatter adds in whatever order threads come.

    Not on a GPU, where some steps have no such form without a setting of cuBLAS made before torch starts. New tensors
    are not filled, as torch then does by default (https://github.com/pytorch/pytorch/pull/119920): that took one
    twentieth of a step, and nothing reads them unset.
    """
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(device.type == "cpu")
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw dropout from `seed` in the context; torch's own generators go on as before it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
