"""Filters on metadata: a small part of MongoDB's query language, as JSON → the images that fit (docs/queries.md §9)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import and_, or_
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from nsfse_runtime.errors import UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.columns import Column, read_date, read_number
from nsfse_runtime.image_names import nearest
from nsfse_runtime.types import Mask, Reals

Where = Mapping[str, object]
"""A filter: conditions by column, all of which must hold (docs/queries.md §9)."""
_COMPARISONS: dict[str, Callable[[Reals, float], Mask]] = {
    "$lt": np.less,
    "$lte": np.less_equal,
    "$gt": np.greater,
    "$gte": np.greater_equal,
}
OPERATORS = ("$eq", "$ne", *_COMPARISONS, "$in", "$nin", "$exists", "$not")
"""What may be said of a column."""
GROUPS = ("$and", "$or", "$not")
"""What joins whole filters."""
EXAMPLE = '{"price": {"$gte": 10, "$lt": 30}, "size": ["S", "M"]}'
MAX_CONDITIONS, MAX_DEPTH = 100, 16
_MAX_UNKNOWN = 3  # values that no image has, of which notes are made


class Selection(NamedTuple):
    """What a filter selects.

    Attributes:
        mask: Which rows fit, [N].
        notes: What a user should know: values that no image has, values of another type.
    """

    mask: Mask
    notes: tuple[str, ...]


def select(where: Where | None, rows: int, column: Callable[[str], Column]) -> Selection:
    """Return which of `rows` images fit the filter `where`.

    Args:
        where: The filter; None for all images.
        rows: N, how many images there are.
        column: Returns a column by its name, or raises UsageError.

    Raises:
        UsageError: `where` is no filter, or names an unknown column.
    """
    mask, notes = evaluate(where, np.ones(rows, np.bool_), column, lambda own, fits: fits[own.codes])
    return Selection(mask, notes)


def evaluate(
    where: Where | None,
    everything: Any,
    column: Callable[[str], Column],
    having: Callable[[Column, Mask], Any],
) -> tuple[Any, tuple[str, ...]]:
    """Return the images that fit the filter `where`, in any form of set, and notes.

    Args:
        where: The filter; None for all images.
        everything: The set of all images; sets are joined by `&`, `|` and `~`.
        column: Returns a column by its name, or raises UsageError.
        having: Returns the set of images that have one of the chosen values [U] of a column.

    Raises:
        UsageError: `where` is no filter, or names an unknown column.
    """
    filtering = _Filtering(everything, column, having)
    return filtering.all_of({} if where is None else where), tuple(filtering.notes)


class _Filtering:
    """One filter while it is applied: its conditions so far, and its notes."""

    def __init__(self, everything: Any, column: Callable[[str], Column], having: Callable[[Column, Mask], Any]) -> None:
        self._everything, self._column, self._having = everything, column, having
        self._conditions = self._unknown = 0
        self.notes: dict[str, None] = {}  # a set that keeps its order

    def all_of(self, where: object, depth: int = 0) -> Any:
        """Return the images that fit every condition of `where`."""
        if not isinstance(where, Mapping):
            raise _error(f"a filter is an object, not {_shown(where)}")
        if depth > MAX_DEPTH:
            raise _error(f"it is nested more than {MAX_DEPTH} deep")
        entries = [self._entry(key, condition, depth) for key, condition in where.items()]
        return reduce(and_, entries, self._everything)

    def _entry(self, key: object, condition: object, depth: int) -> Any:
        if key == "$not":
            return ~self.all_of(condition, depth + 1)
        if key in ("$and", "$or"):
            if not _is_list(condition) or not condition:
                raise _error(f"{key} takes a list of filters, not {_shown(condition)}", '{"$or": [{...}, {...}]}')
            parts = [self.all_of(part, depth + 1) for part in condition]
            return reduce(and_ if key == "$and" else or_, parts)
        if not isinstance(key, str) or key.startswith("$"):
            raise _error(f"{_shown(key)} joins no filters; {' '.join(GROUPS)} do, other keys are columns")
        column = self._column(key)
        return self._having(column, self._fits(column, condition, depth))

    def _fits(self, column: Column, condition: object, depth: int) -> Mask:
        """Return which of the column's values fit, [U]."""
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS or depth > MAX_DEPTH:
            raise _error(f"it has more than {MAX_CONDITIONS} conditions, or is nested more than {MAX_DEPTH} deep")
        if isinstance(condition, str):
            whole = bool(column.positions(condition))
            return self._one_of(column, [condition] if whole else condition.split(","))
        if _is_list(condition):
            return self._one_of(column, condition)
        if not isinstance(condition, Mapping):
            return self._one_of(column, [condition])
        if not condition:
            raise _error(f"{column.name} has no condition")
        fits = np.ones(len(column.values), np.bool_)
        for operator, operand in condition.items():
            fits &= self._operator(column, operator, operand, depth)
        return fits

    def _operator(self, column: Column, operator: object, operand: object, depth: int) -> Mask:
        if operator in ("$eq", "$ne"):
            found = self._one_of(column, [operand])
            return found if operator == "$eq" else ~found
        if operator in ("$in", "$nin"):
            if not _is_list(operand):
                raise _error(f"{column.name}: {operator} takes a list, not {_shown(operand)}")
            found = self._one_of(column, operand)
            return found if operator == "$in" else ~found
        if operator == "$exists":
            if not isinstance(operand, bool):
                raise _error(f"{column.name}: $exists takes true or false, not {_shown(operand)}")
            return column.present if operand else ~column.present
        if operator == "$not":
            if not isinstance(operand, Mapping):
                raise _error(f"{column.name}: $not takes operators, not {_shown(operand)}", '{"$not": {"$lt": 30}}')
            return ~self._fits(column, operand, depth + 1)
        if operator not in _COMPARISONS:
            similar = nearest(operator, OPERATORS) if isinstance(operator, str) else None
            hint = f" (did you mean {similar}?)" if similar else ""
            raise _error(f"{column.name}: no operator {_shown(operator)}{hint}; there are {' '.join(OPERATORS)}")
        values, bound = self._ordered(column, str(operator), operand)
        return _COMPARISONS[str(operator)](values, bound)  # of NaN nothing holds

    def _ordered(self, column: Column, operator: str, operand: object) -> tuple[Reals, float]:
        """Return the column's values [U] in the type of `operand`, and `operand`."""
        if isinstance(operand, int | float) and not isinstance(operand, bool):
            return self._numbers(column), _finite(column, operand)
        if isinstance(operand, str) and not math.isnan(date := read_date(operand)):
            self._note_others(column, column.dates, "a date")
            return column.dates, date
        quoted = isinstance(operand, str) and not math.isnan(read_number(operand))
        hint = "; write the number without quotes" if quoted else ""
        raise _error(f"{column.name}: {operator} compares numbers and dates (2026-11-30), not {_shown(operand)}{hint}")

    def _one_of(self, column: Column, values: Sequence[object]) -> Mask:
        """Return which of the column's values equal one of `values`, each by its own type, [U]."""
        found = np.zeros(len(column.values), np.bool_)
        numbers = []
        for value in values:
            if isinstance(value, str):
                found[self._positions(column, value)] = True
            elif isinstance(value, bool):
                found |= column.booleans == value
            elif isinstance(value, int | float):
                numbers.append(_finite(column, value))
            else:
                hint = '; {"$exists": false} selects images without one' if value is None else ""
                raise _error(f"{column.name} is compared with a text, number or boolean, not {_shown(value)}{hint}")
        if any(isinstance(value, bool) for value in values):
            self._note_others(column, column.booleans, "true or false")
        return found | np.isin(self._numbers(column), numbers) if numbers else found

    def _positions(self, column: Column, value: str) -> list[int]:
        positions = column.positions(value)
        if not positions and self._unknown < _MAX_UNKNOWN:
            self._unknown += 1
            similar = column.nearest(value)
            hint = f"; did you mean {similar}?" if similar else ""
            self._note(f"no image has {column.name}={value.strip()[:200]}{hint}")
        return positions

    def _numbers(self, column: Column) -> Reals:
        self._note_others(column, column.numbers, "a number")
        return column.numbers

    def _note_others(self, column: Column, values: Reals, kind: str) -> None:
        """Note how many images have a value that is no `kind`, once a column."""
        others = np.isnan(values) & column.present
        if others.any():
            count, example = column.count(others), str(column.values[int(np.argmax(others))])[:50]
            images = "1 image" if count == 1 else f"{count} images"
            self._note(f"{column.name} of {images} is not {kind}, such as {example}; no comparison holds there")

    def _note(self, note: str) -> None:
        self.notes[printable(note)] = None


def _finite(column: Column, number: float) -> float:
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise _error(f"{column.name} is compared with finite numbers, not {_shown(number)}")
    return value


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _shown(value: object) -> str:
    """Return a part of a filter for a message, in JSON's words for what JSON has."""
    names = {True: "true", False: "false", None: "null"}
    return names[value] if value is None or isinstance(value, bool) else repr(value)[:60]


def _error(what: str, example: str = EXAMPLE) -> UsageError:
    return UsageError(printable(f"where: {what}; for example {example}"))
