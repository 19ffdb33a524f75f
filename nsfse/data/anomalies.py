"""Odd entries of annotations, gathered by kind: `nsfse data check` names each of them.

Published code stops at most of them with an assertion. A score that counts each as a miss would look sound.
"""

from collections import defaultdict
from dataclasses import dataclass

from nsfse_runtime.escaping import printable

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of oddity, in words for one entry and for `many`, and every entry that has it."""

    one: str
    many: str
    entries: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line that agrees in number and names the first entries."""
        number = len(self.entries)
        shown = ", ".join(printable(entry) for entry in self.entries[:_SHOWN])
        more = f" and {number - _SHOWN} more" if number > _SHOWN else ""
        return f"{number} {self.one if number == 1 else self.many}: {shown}{more}"


class Anything:
    """A list that is not there: nothing is known to be outside it."""

    def __contains__(self, item: object) -> bool:
        """Return True."""
        return True


class Findings:
    """Gathers entries by kind, in the order in which the kinds are first met."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, one: str, many: str, entry: str) -> None:
        """Note that `entry` is of the kind that `one` (and of several entries `many`) says."""
        self._found[one, many].append(entry)

    def all(self) -> tuple[Finding, ...]:
        """Return what was gathered."""
        return tuple(Finding(one, many, tuple(entries)) for (one, many), entries in self._found.items())
