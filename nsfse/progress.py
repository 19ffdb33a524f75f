"""Progress on stderr: one bar on a terminal, a line now and then elsewhere, so that stdout stays the result."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsfse_runtime.gallery.report import SyncProgress

Advance = Callable[[int, int, str], None]
"""Called with (done, total, note); cheap, so that it can be called for each step."""

_SECONDS_BETWEEN_LINES = 15.0


def first_process() -> bool:
    """Return whether this is the only process or torchrun's first: the others say nothing."""
    return os.environ.get("RANK", "0") == "0"


def print_status(line: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def bar(title: str) -> Iterator[Advance]:
    """Show how far a piece of work is while the block runs."""
    with _rich_bar(title) if sys.stderr.isatty() and first_process() else _plain_lines(title) as advance:
        yield advance


@contextmanager
def _rich_bar(title: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parts = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*parts, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)


@contextmanager
def _plain_lines(title: str) -> Iterator[Advance]:
    last = time.monotonic()

    def advance(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print_status(f"{title}: {done}/{total} {note}".rstrip())

    yield advance


@contextmanager
def training_bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show training: a bar of steps with the loss, and a line for each epoch with its validation scores."""
    with bar("training") as advance:

        def follow(entry: dict[str, Any]) -> None:
            if "note" in entry:
                print_status(entry["note"])
            elif "epoch" in entry:
                score = f", mean R@1 {entry['mean_R@1']:.1f}" if "mean_R@1" in entry else ""
                print_status(f"epoch {entry['epoch']}: {entry['seconds']:.0f} s{score}")
            else:
                advance(entry["step"], entry["of"], f"loss {entry['loss']:.3f}" if "loss" in entry else "")

        yield follow


@contextmanager
def stages_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show work in stages: called with (stage, done, total)."""
    with bar("working") as advance:
        yield lambda stage, done, total: advance(done, total, stage)


@contextmanager
def indexing_bar() -> Iterator[Callable[["SyncProgress"], None]]:
    """Show indexing: images committed of all, and how many could not be read."""
    failed = 0
    with bar("indexing") as advance:

        def follow(step: "SyncProgress") -> None:
            nonlocal failed
            failed += len(step.failed)
            advance(step.done, step.total, f"{failed} skipped" if failed else "")

        yield follow
