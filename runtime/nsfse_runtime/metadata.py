"""A table of pictures' metadata (CSV) → the columns of each picture."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nsfse_runtime.errors import DataError, NotFoundError
from nsfse_runtime.printable import printable

_KEYS = ("file", "id")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line: `keys` are what may name the picture, best first; `values` its columns, empty ones left out."""

    keys: tuple[str, ...]
    values: dict[str, str]


def read_table(path: Path) -> list[TableRow]:
    """Read a CSV with a column `id` or `file`, or both. Raises NotFoundError or DataError, which names the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if not set(_KEYS) & set(reader.fieldnames or ()):
                raise DataError(f"{path} has no column id or file; add one that names each picture")
            return [_row(path, reader.line_num, cells) for cells in reader]
    except FileNotFoundError:
        raise NotFoundError(f"no table at {path}; check the path") from None
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}; save it again") from error


def _row(path: Path, line: int, cells: dict[str | None, str | None]) -> TableRow:
    if None in cells:
        raise DataError(f"{path}, line {line}: more cells than columns; put quotes around a cell with a comma")
    keys = tuple(cell for key in _KEYS if (cell := cells.get(key)))
    if not keys:
        raise DataError(f"{path}, line {line}: no id and no file; name the picture")
    return TableRow(keys, {column: cell for column, cell in cells.items() if column and column not in _KEYS and cell})


def match_table(
    path: Path, rows: Iterable[TableRow], ids: Iterable[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Give each picture of `ids` its columns: by its id, or by its file name without suffix where only one has it.

    Returns the columns per id, and the keys of rows that name no picture or several. Raises DataError when two rows
    name the same one.
    """
    known = set(ids)
    stems: dict[str, str | None] = {}
    for each in known:
        stem = PurePosixPath(each).stem
        stems[stem] = None if stem in stems else each
    columns: dict[str, dict[str, str]] = {}
    unmatched: list[str] = []
    for row in rows:
        exact = (key for key in row.keys if key in known)
        by_stem = (found for key in row.keys for stem in (key, PurePosixPath(key).stem) if (found := stems.get(stem)))
        name = next(exact, None) or next(by_stem, None)
        if name is None:
            unmatched.append(row.keys[0])
        elif name in columns:
            raise DataError(f"{path} names {printable(name)} twice; keep one line for each picture")
        else:
            columns[name] = row.values
    return columns, unmatched
