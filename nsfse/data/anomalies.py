"""Odd entries of annotations, gathered by kind: `nsfse data check` names each of them.

Published code stops at most of them with an assertion. A score that counts each as a miss would look sound.
"""

from collections import defaultdict
from dataclasses import dataclass

from nsfse_runtime.escaping import printable

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of oddity, as a text for one entry and one for several, and every entry that has it."""

    singular: str
    plural: str
    entries: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line that agrees in number and names the first entries."""
        number = len(self.entries)
        shown = ", ".join(printable(entry) for entry in self.entries[:_SHOWN])
        more = f" and {number - _SHOWN} more" if number > _SHOWN else ""
        return f"{number} {self.singular if number == 1 else self.plural}: {shown}{more}"


class Anything:
    """A list that is not there: nothing is known to be outside it."""

    def __contains__(self, item: object) -> bool:
        """Return True."""
        return True


class Findings:
    """Gathers entries by kind, in the order in which the kinds are first met."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, singular: str, plural: str, entry: str) -> None:
        """Note an entry of one kind, whose text is `singular` for one entry and `plural` for several."""
        self._entries[singular, plural].append(entry)

    def all(self) -> tuple[Finding, ...]:
        """Return what was gathered."""
        return tuple(Finding(singular, plural, tuple(entries)) for (singular, plural), entries in self._entries.items())
