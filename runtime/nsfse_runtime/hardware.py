"""What this process may use of the machine: processors and memory."""

import os
from contextlib import suppress
from pathlib import Path


def usable_cpus() -> int:
    """Return how many logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_threads() -> int:
    """Return how many threads to compute with: one a usable processor, at most OMP_NUM_THREADS."""
    usable, limit = usable_cpus(), os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(limit)) if limit.isdigit() and int(limit) else usable


def available_memory() -> int | None:
    """Return how many bytes may still be taken, here and in this container.

    Returns:
        Bytes, 0 or more; None where neither the system nor a container reports them.
    """
    limits: list[int] = []
    with suppress(OSError, KeyError, ValueError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    with suppress(OSError, ValueError):  # no container, or one without a limit: "max"
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii")) for name in ("max", "current"))
        limits.append(limit - used)
    return max(0, min(limits)) if limits else None
