"""Pairs of products that differ in what a text can say, drawn so that rare values are seen too."""

import math
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

Value = tuple[str, ...]
"""Values of the one or two attributes that change."""
AttributeGroup = Mapping[Value, tuple[str, ...]]
"""Items that are equal in all that must stay, by their value of what changes."""
_TRIES = 16


@dataclass(frozen=True, slots=True)
class ItemPair:
    """Two items that differ in `columns`. Each field of two has one entry for either side."""

    columns: tuple[str, ...]
    values: tuple[Value, Value]
    equals: tuple[tuple[str, ...], tuple[str, ...]]
    """All items that are as right as the one drawn."""
    drawn: tuple[int, int]
    """Which of `equals` was drawn."""
    group: AttributeGroup

    def item(self, side: int) -> str:
        """Return the item drawn for a side."""
        return self.equals[side][self.drawn[side]]

    def answers(self, side: int, limit: int) -> tuple[str, ...]:
        """Return up to `limit` items that are as right as the one drawn for a side, that one first."""
        items, first = self.equals[side], self.drawn[side]
        return (items[first:] + items[:first])[:limit]

    def all_but(self, side: int, limit: int) -> tuple[str, ...]:
        """Return up to `limit` items that lack the values of a side, those of the other side first."""
        other = 1 - side
        answers = list(self.answers(other, limit))
        for value, items in self.group.items():
            if value != self.values[other] and _differ(value, self.values[side]):
                answers += items
        return tuple(answers[:limit])


class PairSampler:
    """Draws pairs that differ in all of `columns`, both items of one of `groups`.

    A pair is drawn by its new value first, in proportion to a power of the value's count: 1 as it
    occurs, 0 all alike. So a rare colour is requested more often than it is sold. Then an item of that
    value is drawn, all with equal probability. So a kind of thousands of items is requested more often
    than one of three.
    """

    def __init__(self, columns: tuple[str, ...], groups: Iterable[AttributeGroup], balance: float) -> None:
        self.columns = columns
        self._by_value: dict[Value, list[tuple[AttributeGroup, tuple[Value, ...]]]] = {}
        counts: dict[Value, int] = {}
        for group in groups:
            values = tuple(group)
            for value in values:
                if any(_differ(value, other) for other in values):
                    self._by_value.setdefault(value, []).append((group, values))
                    counts[value] = counts.get(value, 0) + len(group[value])
        self.total = sum(counts.values())
        """How many items can be the answer."""
        self._ends = {
            value: list(accumulate(len(group[value]) for group, _ in groups_of_value))
            for value, groups_of_value in self._by_value.items()
        }
        self._values = tuple(counts)
        weights = np.array([math.pow(count, balance) for count in counts.values()])
        self._weights = weights / weights.sum() if len(weights) else weights

    def draw(self, count: int, rng: np.random.Generator) -> list[ItemPair]:
        """Return `count` pairs."""
        if not count:
            return []
        values = rng.choice(len(self._values), size=count, p=self._weights).tolist()
        return [
            self._pair(self._values[value], chances)
            for value, chances in zip(values, rng.random((count, 4)).tolist(), strict=True)
        ]

    def _pair(self, new: Value, chances: Sequence[float]) -> ItemPair:
        ends = self._ends[new]
        group, values = self._by_value[new][bisect(ends, int(chances[0] * ends[-1]))]
        old = _other_value(values, new, chances[1])
        equals = (group[old], group[new])
        drawn = (int(chances[2] * len(equals[0])), int(chances[3] * len(equals[1])))
        return ItemPair(self.columns, (old, new), equals, drawn, group)


def _other_value(values: tuple[Value, ...], new: Value, chance: float) -> Value:
    """Return a value that differs from `new` in every column."""
    start = int(chance * len(values))
    for step in range(_TRIES):  # a stride spreads the tries; two columns seldom need more than a few
        old = values[(start + step * 7919) % len(values)]
        if _differ(old, new):
            return old
    return next(old for old in (*values[start:], *values[:start]) if _differ(old, new))


def _differ(old: Value, new: Value) -> bool:
    return all(a != b for a, b in zip(old, new, strict=True))
