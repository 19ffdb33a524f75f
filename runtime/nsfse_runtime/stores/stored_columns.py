"""Columns of metadata in an engine: a filter reads their values, and the engine looks for images by terms.

A term stands for a column, or for one value of it. An engine that keeps the terms of each image in a list of words
answers every filter by these words alone, exactly, and with one index for all columns.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nsfse_runtime.errors import UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.columns import Column
from nsfse_runtime.types import Mask

MOST_VALUES = 100_000
"""So many values of one column may a filter choose in an engine that looks for terms."""


class StoredColumn(Column):
    """A column by its different values alone; who has them is counted by the engine."""

    def __init__(self, name: str, values: Sequence[str], count: Callable[[Column, Mask], int]) -> None:
        super().__init__(name, [None, *values])
        self._count = count

    def count(self, chosen: Mask) -> int:
        """Return how many images have one of the `chosen` values [U]."""
        return self._count(self, chosen)


def term(column: str, value: str | None = None) -> str:
    """Return the term of a column, or of one value of it: 128 bits of a SHA-256 in hexadecimal."""
    text = column if value is None else f"{column}\0{value}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def terms(metadata: Mapping[str, str]) -> list[str]:
    """Return the terms of an image: of its columns, and of its values."""
    return [*map(term, metadata), *(term(name, value) for name, value in metadata.items())]


def dictionary(metadata: Iterable[Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    """Return what terms mean: the term of the column ("" where it is one itself) and the text, by term."""
    pairs = {pair for values in metadata for pair in values.items()}
    columns = {term(name): ("", name) for name, _ in pairs}
    return columns | {term(name, value): (term(name), value) for name, value in pairs}


def having(column: Column, chosen: Mask, any_of: Callable[[Sequence[str]], Any]) -> Any:
    """Return the set of images that have one of the `chosen` values [U], where None is to have none.

    Args:
        column: The column.
        chosen: Which of its values.
        any_of: Returns the set of images that have one of these terms. `~` of it is the set of all others.

    Raises:
        UsageError: Too many values are chosen.
    """
    if chosen[column.values.index(None)]:
        return ~having(column, ~chosen, any_of)
    values = [value for value, fits in zip(column.values, chosen, strict=True) if fits and value is not None]
    if len(values) == len(column.values) - 1:
        return any_of([term(column.name)])
    if len(values) > MOST_VALUES:
        raise UsageError(
            printable(f"where: {len(values)} values of {column.name} fit, more than {MOST_VALUES}; round its values")
        )
    return any_of([term(column.name, value) for value in values])
