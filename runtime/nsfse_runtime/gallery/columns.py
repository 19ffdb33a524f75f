"""A column of the images' metadata: texts, which a filter also reads as numbers, dates or booleans."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite, nan

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.image_names import loose, nearest, nfc
from nsfse_runtime.types import Mask, Reals

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_BOOLEANS = {"true": 1.0, "yes": 1.0, "1": 1.0, "false": 0.0, "no": 0.0, "0": 0.0}


def plain(value: str) -> str:
    """Return `value` as values are compared: without blanks around it, in Unicode's composed form."""
    return nfc(value.strip())


def read_number(text: str) -> float:
    """Return the number that `text` is ("30", "9.99", "1e3"), NaN where it is none."""
    number = float(text) if _NUMBER.fullmatch(text.strip()) else nan
    return number if isfinite(number) else nan


def read_date(text: str) -> float:
    """Return the seconds since 1970 of an ISO 8601 date or time, NaN where `text` is none.

    A date is its first moment; without a zone it is in UTC.
    """
    try:
        date = datetime.fromisoformat(text.strip()) if _DATE.match(text.strip()) else None
    except ValueError:
        return nan
    if date is None:
        return nan
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def read_boolean(text: str) -> float:
    """Return 1 for true, yes and 1, 0 for false, no and 0, NaN for any other text."""
    return _BOOLEANS.get(text.strip().casefold(), nan)


def known_column(name: str, columns: Sequence[str], gallery: str) -> str:
    """Return which of the `columns` of `gallery` is called `name`, or alone is so but for case and blanks.

    Raises UsageError.
    """
    if name in columns:
        return name
    same = [column for column in columns if loose(column) == loose(name)]
    if len(same) == 1:
        return same[0]
    listed = ", ".join(columns) or "none: index with --metadata"
    similar = nearest(name, columns)
    hint = f"; did you mean {similar}?" if similar else ""
    raise UsageError(printable(f"{gallery} has no column {name}; columns: {listed}{hint}"))


class Column:
    """One column of N images.

    Attributes:
        name: Its name.
        values: The U different values, as written; None for the images without one.
        codes: Which of them each image has, [N].
    """

    def __init__(self, name: str, cells: Sequence[str | None]) -> None:
        known: dict[str | None, int] = {}
        self.name = name
        self.codes: NDArray[np.int32] = np.array([known.setdefault(cell, len(known)) for cell in cells], np.int32)
        self.values = tuple(known)

    def count(self, chosen: Mask) -> int:
        """Return how many images have one of the `chosen` values [U]."""
        return int(chosen[self.codes].sum())

    @cached_property
    def present(self) -> Mask:
        """Return which of the values are one, [U]."""
        return np.array([value is not None for value in self.values], np.bool_)

    @cached_property
    def numbers(self) -> Reals:
        """Return the values as numbers [U], NaN where one is none."""
        return self._read(read_number)

    @cached_property
    def dates(self) -> Reals:
        """Return the values as dates [U] (see read_date), NaN where one is none."""
        return self._read(read_date)

    @cached_property
    def booleans(self) -> Reals:
        """Return the values as 1 for true and 0 for false [U], NaN where one is neither."""
        return self._read(read_boolean)

    def _read(self, read: Callable[[str], float]) -> Reals:
        return np.array([nan if value is None else read(value) for value in self.values], np.float64)

    @cached_property
    def _positions(self) -> dict[str, list[int]]:
        positions: dict[str, list[int]] = {}
        for position, value in enumerate(self.values):
            if value is not None:
                positions.setdefault(plain(value), []).append(position)
        return positions

    def positions(self, value: str) -> list[int]:
        """Return which of the values are `value`, whatever the blanks around it and its Unicode form."""
        return self._positions.get(plain(value), [])

    def nearest(self, value: str) -> str | None:
        """Return the value most like `value`, None where the column has that one, or none is near."""
        return None if self.positions(value) else nearest(value, self._positions)
