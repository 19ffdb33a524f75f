"""Pairs of products that differ in what a text can say, drawn so that rare values are seen too."""

import math
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

Value = tuple[str, ...]
"""Values of the one or two attributes that change."""
Place = Mapping[Value, tuple[str, ...]]
"""Items that are equal in all that must be kept, by their value of what changes."""
_TRIES = 16


@dataclass(frozen=True, slots=True)
class Change:
    """Two items that differ in `columns`: for either side its values, all items as right, which of them was drawn."""

    columns: tuple[str, ...]
    values: tuple[Value, Value]
    equals: tuple[tuple[str, ...], tuple[str, ...]]
    drawn: tuple[int, int]
    place: Place

    def item(self, side: int) -> str:
        """Return the item drawn for a side."""
        return self.equals[side][self.drawn[side]]

    def answers(self, side: int, most: int) -> tuple[str, ...]:
        """Return the items as right as the one drawn for a side, that one first; at most so many."""
        items, first = self.equals[side], self.drawn[side]
        return (items[first:] + items[:first])[:most]

    def all_but(self, other: int, most: int) -> tuple[str, ...]:
        """Return the items as right as any that lacks the values of side `other`, the other side's first."""
        found = list(self.answers(1 - other, most))
        for value, items in self.place.items():
            if value != self.values[1 - other] and _differ(value, self.values[other]):
                found += items
        return tuple(found[:most])


class Changes:
    """Every pair that differs in all of `columns` and lies in one of `places`.

    A pair is drawn by its new value first, values in proportion to a power of their count (1 as they come, 0 all
    alike), so that a rare colour is asked for more often than it is sold. Then comes an item of that value, all alike:
    a kind of which a shop has thousands is asked for more often than one of which it has three.
    """

    def __init__(self, columns: tuple[str, ...], places: Iterable[Place], balance: float) -> None:
        self.columns = columns
        self._by_value: dict[Value, list[tuple[Place, tuple[Value, ...]]]] = {}
        counts: dict[Value, int] = {}
        for place in places:
            values = tuple(place)
            for value in values:
                if any(_differ(value, other) for other in values):
                    self._by_value.setdefault(value, []).append((place, values))
                    counts[value] = counts.get(value, 0) + len(place[value])
        self.total = sum(counts.values())
        """How many items can be the answer."""
        self._ends = {
            value: list(accumulate(len(place[value]) for place, _ in options))
            for value, options in self._by_value.items()
        }
        self._values = tuple(counts)
        weights = np.array([math.pow(count, balance) for count in counts.values()])
        self._weights = weights / weights.sum() if len(weights) else weights

    def draw(self, count: int, rng: np.random.Generator) -> list[Change]:
        """Return `count` changes."""
        if not count:
            return []
        values = rng.choice(len(self._values), size=count, p=self._weights).tolist()
        return [
            self._one(self._values[value], chances)
            for value, chances in zip(values, rng.random((count, 4)).tolist(), strict=True)
        ]

    def _one(self, new: Value, chances: Sequence[float]) -> Change:
        ends = self._ends[new]
        place, values = self._by_value[new][bisect(ends, int(chances[0] * ends[-1]))]
        old = _other(values, new, chances[1])
        equals = (place[old], place[new])
        drawn = (int(chances[2] * len(equals[0])), int(chances[3] * len(equals[1])))
        return Change(self.columns, (old, new), equals, drawn, place)


def _other(values: tuple[Value, ...], new: Value, chance: float) -> Value:
    """Return a value that differs from `new` in every column."""
    start = int(chance * len(values))
    for step in range(_TRIES):  # a stride spreads the tries; two columns seldom need more than a few
        old = values[(start + step * 7919) % len(values)]
        if _differ(old, new):
            return old
    return next(old for old in (*values[start:], *values[:start]) if _differ(old, new))


def _differ(old: Value, new: Value) -> bool:
    return all(a != b for a, b in zip(old, new, strict=True))
