"""Interleaved timing, and what figures depend on: processor, threads, load and versions."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nsfse_runtime.extras import installed_version
from nsfse_runtime.hardware import cpu_threads

PAUSE = 0.02
"""Seconds before each call: threads of the call before may spin for some milliseconds, and would slow the next."""
PACKAGES = ("numpy", "onnxruntime", "torch", "pillow", "faiss-cpu")

Act = Callable[[], object]


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, threads, load, versions, and the ceilings as measured by numpy."""
    random = np.random.default_rng(0)
    matrix, large = random.random((1536, 1536), np.float32), np.ones(1 << 26, np.float32)
    product = min(seconds(lambda: matrix @ matrix) for _ in range(5))
    read = min(seconds(large.sum) for _ in range(5))
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": cpu_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
        "gflops": round(2 * len(matrix) ** 3 / product / 1e9, 1),
        "gb_per_second_one_thread": round(large.nbytes / read / 1e9, 1),
    }


def seconds(act: Act) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def interleaved(variants: Mapping[str, Act], rounds: int = 7, pause: float = PAUSE) -> dict[str, list[float]]:
    """Call every variant once in each round, and return the milliseconds of each round.

    A first call of each is not counted. Another program on the machine then slows all variants alike.
    """
    for act in variants.values():
        act()
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:  # no variant is always the first
            time.sleep(pause)
            times[name].append(1000 * seconds(variants[name]))
    return times


def ratios(times: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, float]]:
    """Return, for each variant, its median milliseconds and how many times faster than `base` it is."""
    return {
        name: {
            "ms": round(statistics.median(measured), 2),
            "times_faster": round(statistics.median(a / b for a, b in zip(times[base], measured, strict=True)), 2),
        }
        for name, measured in times.items()
    }


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """Return the median, the 95th and the 99th percentile."""
    return {f"p{share}": round(float(np.percentile(times, share)), 2) for share in (50, 95, 99)}
