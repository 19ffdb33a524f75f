"""A budget of bytes shared by threads, so that many large images at once cannot exhaust the memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """At most `capacity` bytes are reserved at a time; first come, first served: a large request cannot starve."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self._free = capacity, capacity
        self._queue, self._change = threading.Lock(), threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Wait until `amount` bytes are free and hold them; more than the capacity counts as all of it."""
        amount = min(amount, self.capacity)
        with self._queue, self._change:
            self._change.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._change:
                self._free += amount
                self._change.notify_all()
