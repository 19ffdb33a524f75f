"""What this process may use of the machine, and that another system reports less without an error."""

import os
from pathlib import Path

import pytest

from nsfse_runtime import hardware


def test_processors_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= hardware.usable_cpus() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert hardware.usable_cpus() == 1


@pytest.mark.parametrize(("limit", "threads"), [("", 4), ("2", 2), ("9", 4), ("0", 4), ("two", 4)])
def test_threads_are_limited_by_omp_num_threads(monkeypatch: pytest.MonkeyPatch, limit: str, threads: int) -> None:
    monkeypatch.setattr(hardware, "usable_cpus", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert hardware.cpu_threads() == threads


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"meminfo": "MemFree: 1 kB\nMemAvailable:  2000 kB\n"}, 2_048_000),
        ({"meminfo": "MemAvailable: 2000 kB\n", "memory.max": "max\n", "memory.current": "5\n"}, 2_048_000),
        ({"meminfo": "MemAvailable: 2000 kB\n", "memory.max": "9000\n", "memory.current": "5000\n"}, 4000),
        ({"meminfo": "MemAvailable: 2000 kB\n", "memory.max": "9000\n", "memory.current": "9500\n"}, 0),
        ({}, None),
    ],
)
def test_memory_is_what_the_system_and_the_container_leave(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int | None
) -> None:
    def read_text(path: Path, *_: object) -> str:
        if path.name not in files:
            raise FileNotFoundError(path)
        return files[path.name]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert hardware.available_memory() == expected
