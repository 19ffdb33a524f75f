"""How long the parts of a query take."""

from time import perf_counter


class Timer:
    """Times the parts of one query, in ms."""

    def __init__(self) -> None:
        self._start = self._last = perf_counter()
        self._laps = dict.fromkeys(("decode", "image", "text", "stage1", "stage2"), 0.0)

    def fork(self) -> "Timer":
        """Return the timer of one query of a batch, with the times so far."""
        fork = Timer()
        fork._start, fork._laps = self._start, dict(self._laps)
        return fork

    def start(self) -> None:
        """Begin a lap."""
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        """End a lap, which counts for `name`, and begin the next."""
        now = perf_counter()
        self._laps[name] += (now - self._last) * 1000
        self._last = now

    def end(self) -> dict[str, float]:
        """Return the laps and the total, in ms."""
        laps = {**self._laps, "total": (perf_counter() - self._start) * 1000}
        return {name: round(value, 3) for name, value in laps.items()}
