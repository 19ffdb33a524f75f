"""What people type who describe an image instead of a change: "striped red dress", of attributes alone."""

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol, runtime_checkable

from nsfse.data import TrainingTriplet, WordLabel
from nsfse.data.datasets.catalogue_triplets import Rows
from nsfse.data.datasets.items import MISSING_VALUES

KINDS = ("whole", "colour", "category")
"""Kinds of attributes (nsfse.data.text.templates) in the order in which a phrase names them."""
Phrase = tuple[str, ...]
"""The columns that a phrase names, in the order of its words."""


@runtime_checkable
class HasNounPhrases(Protocol):
    """A source that can say what an image shows as people search for it: "red dress"."""

    def noun_phrase(self, item: str, draw: float) -> str:
        """Return the title that training reads for an image, or an empty string; `draw` in [0, 1) chooses."""


class NounPhrases:
    """Noun phrases of items that have a category: it alone, and with the colour, the pattern or both.

    Args:
        rows: Columns of the items by id.
        kinds: Attribute columns → their kind.
        unnamed: Values that nobody says.
        seed: Seed of triplets.
    """

    def __init__(self, rows: Rows, kinds: Mapping[str, str], unnamed: Sequence[str], seed: int) -> None:
        self._rows, self._items, self._none, self._seed = rows, tuple(rows), MISSING_VALUES.union(unnamed), seed
        self._columns = {kind: column for column, kind in kinds.items() if kind in KINDS}

    def texts(self, item: str) -> tuple[str, ...]:
        """Return the phrases of one item; none where its category has no name."""
        return tuple(self._text(item, phrase) for phrase in self._phrases(item))

    def triplets(self, epoch: int, count: int) -> list[TrainingTriplet]:
        """Return `count` queries in which a phrase is all that counts, whatever image stands beside it."""
        rng = random.Random(f"phrases/{self._seed}/{epoch}")
        return [self._triplet(rng) for _ in range(count if self._named else 0)]

    def _triplet(self, rng: random.Random) -> TrainingTriplet:
        target = rng.choice(self._named)
        phrase = rng.choice(self._phrases(target))
        values = self._values(target, phrase)
        answers = self._answers[*phrase, *values]
        others = [item for item in rng.choices(self._items, k=8) if item not in answers] or [target]
        named = zip(phrase, values, strict=True)
        labels = tuple(WordLabel(column, tuple(_words(value)), column, (value,)) for column, value in named)
        targets = (target, *(item for item in answers if item != target))
        article = rng.choice(("", "a "))
        return TrainingTriplet(others[0], article + self._text(target, phrase), targets, "phrase", labels)

    @cached_property
    def _named(self) -> tuple[str, ...]:
        return tuple(item for item in self._rows if self._phrases(item))

    @cached_property
    def _answers(self) -> Mapping[Phrase, tuple[str, ...]]:
        """The items that have what a phrase names, by its columns and their values."""
        items: dict[Phrase, list[str]] = {}
        for item in self._named:
            for phrase in self._phrases(item):
                items.setdefault((*phrase, *self._values(item, phrase)), []).append(item)
        return {key: tuple(found) for key, found in items.items()}

    def _values(self, item: str, phrase: Phrase) -> tuple[str, ...]:
        return tuple(self._rows[item][column] for column in phrase)

    def _phrases(self, item: str) -> list[Phrase]:
        row = self._rows[item]
        known = {kind: column for kind, column in self._columns.items() if row[column] not in self._none}
        if "category" not in known:
            return []
        looks = tuple(known[kind] for kind in KINDS[:-1] if kind in known)
        before = dict.fromkeys(((), *((look,) for look in looks), looks))
        return [(*columns, known["category"]) for columns in before]

    def _text(self, item: str, phrase: Phrase) -> str:
        return " ".join(word for column in phrase for word in _words(self._rows[item][column]))


def _words(value: str) -> list[str]:
    return value.replace("-", " ").split()
