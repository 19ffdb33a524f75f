"""Ctrl-C and SIGTERM while a run is trained: steps end in order, fits and validation at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """A signal has come within `Signals.interruptible`. No `except Exception` catches it."""


class Signals:
    """Whether Ctrl-C or SIGTERM has come, and whether it ends what is being done."""

    def __init__(self) -> None:
        self.seen = self._interrupts = False

    def note(self) -> None:
        """Note a signal. Raises Interrupted within `interruptible`."""
        self.seen = True
        if self._interrupts:
            raise Interrupted

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Interrupted inside as soon as a signal comes, or at once where one has come."""
        self._interrupts = True
        try:
            if self.seen:
                raise Interrupted
            yield
        finally:
            self._interrupts = False


@contextmanager
def catch_signals(repeat: bool) -> Iterator[Signals]:
    """Yield what notes Ctrl-C and SIGTERM; a second one acts as usual.

    With `repeat` it does not: torchrun passes on a Ctrl-C that its processes have already had.
    """
    signals = Signals()
    before: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        if not repeat:
            signal.signal(number, before[number])
        signals.note()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[int(number)] = signal.signal(number, note)
    except ValueError:  # not in the main thread: the caller's program handles signals
        before.clear()
    try:
        yield signals
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
