"""A filter on metadata as a condition in SQL: which values fit is decided as for a file (gallery.filters)."""

import json
from dataclasses import dataclass
from typing import Any

from nsfse_runtime.gallery.columns import Column
from nsfse_runtime.types import Mask

_MOST_BY_INDEX = 20  # values that are looked up one by one in the index of metadata


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on `images`, true or false and never null: `sql` with a %s for each of `parameters`."""

    sql: str = "true"
    parameters: tuple[Any, ...] = ()

    def __and__(self, other: "Condition") -> "Condition":
        return self._joined("AND", other)

    def __or__(self, other: "Condition") -> "Condition":
        return self._joined("OR", other)

    def __invert__(self) -> "Condition":
        return Condition(f"NOT {self.sql}", self.parameters)

    def _joined(self, word: str, other: "Condition") -> "Condition":
        return Condition(f"({self.sql} {word} {other.sql})", (*self.parameters, *other.parameters))


EVERYTHING = Condition()


def having(column: Column, chosen: Mask) -> Condition:
    """Return the condition that an image has one of the `chosen` values [U], where None is to have none."""
    if chosen[column.values.index(None)]:
        return ~having(column, ~chosen)
    values = [value for value, fits in zip(column.values, chosen, strict=True) if fits]
    if len(values) > _MOST_BY_INDEX:
        return Condition("coalesce(metadata->>%s = ANY(%s), false)", (column.name, values))
    pairs = tuple(json.dumps({column.name: value}) for value in values)
    return Condition(f"({' OR '.join(['metadata @> %s::jsonb'] * len(pairs)) or 'false'})", pairs)
