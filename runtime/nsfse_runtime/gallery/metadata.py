"""Metadata of images: what changes them, and a table (CSV) → the changes of each image.

One rule for all who set metadata: a column that is named is set, an empty one is removed, and all others stay.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from nsfse_runtime.errors import DataError, NotFoundError
from nsfse_runtime.escaping import printable
from nsfse_runtime.image_names import Match, Names, stem
from nsfse_runtime.regular_files import read_regular

_KEYS = ("file", "id")
_SEPARATORS = (",", ";", "\t", "|")
_SPREADSHEETS = {
    b"PK\x03\x04": "an Excel workbook or another ZIP file",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"\xff\xfe": "a text in UTF-16",
    b"\xfe\xff": "a text in UTF-16",
    b"{": "JSON",
    b"[": "JSON",
    b"PAR1": "Parquet",
    b"SQLite format 3": "an SQLite file",
    b"<": "HTML or XML",
}


def merge(metadata: str, changes: Mapping[str, str]) -> str:
    """Return an image's `metadata` (JSON) with `changes`: the value of each column, "" to remove it."""
    values = {**json.loads(metadata), **changes}
    return json.dumps({column: value for column, value in values.items() if value}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line: `keys` are what may name the image, best first; `values` the table's columns, "" for an empty cell."""

    keys: tuple[str, ...]
    values: dict[str, str]


@dataclass(slots=True)
class Matched:
    """The values of each image by its id; `unmatched` are keys of rows that name no image, or several.

    `loose` has (key, id) for each row whose key is not the id itself.
    """

    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    loose: list[tuple[str, str]] = field(default_factory=list)


def read_table(path: Path) -> list[TableRow]:
    """Read a CSV with a column `id` or `file`, or both; the separator is a comma, semicolon, tab or |.

    Names of columns and cells are taken without blanks around them. Raises NotFoundError, or DataError, which names
    the line.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise NotFoundError(f"no table at {path}; check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error.strerror}; save it again") from error
    for magic, kind in _SPREADSHEETS.items():
        if data.removeprefix(b"\xef\xbb\xbf").startswith(magic):
            raise DataError(f"{path} is {kind}, not CSV; save it as CSV in UTF-8")
    try:
        return list(_rows(path, data.decode("utf-8-sig")))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}; save it again") from error


def _rows(path: Path, text: str) -> Iterator[TableRow]:
    separator, skipped = _separator(text)
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    for _ in range(skipped):
        next(reader, None)
    header = _header(path, next(reader, []))
    for cells in reader:
        if cells:
            yield _row(path, reader.line_num, header, cells)


def _separator(text: str) -> tuple[str, int]:
    """Return the separator and how many lines stand before the header: 1 for Excel's `sep=;`.

    It is the comma, unless the header has its id or file with another one alone.
    """
    first = text.partition("\n")[0].strip().strip('"')
    if first[:4].lower() == "sep=" and len(first) <= 5:
        return first[4:] or "\t", 1
    for separator in _SEPARATORS:
        header = next(csv.reader(StringIO(text, newline=""), delimiter=separator), [])
        if {name.strip().casefold() for name in header} & set(_KEYS):
            return separator, 0
    return ",", 0


def _header(path: Path, names: Sequence[str]) -> list[str]:
    """Return the columns' names, `id` and `file` in lower case. Raises DataError."""
    header = [name.strip() for name in names]
    header = [name.casefold() if name.casefold() in _KEYS else name for name in header]
    if not set(_KEYS) & set(header):
        columns = ", ".join(filter(None, header)) or "none"
        raise DataError(
            printable(
                f"{path} has no column id or file that names each image; its columns: {columns[:300]}; rename one"
            )
        )
    folded = [name.casefold() for name in header if name]
    if repeated := [name for name in header if name and folded.count(name.casefold()) > 1]:
        raise DataError(printable(f"{path} has the column {repeated[0]} twice; rename or delete one"))
    return header


def _row(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> TableRow:
    if len(cells) > len(header):
        raise DataError(f"{path}, line {line}: more cells than columns; put quotes around a cell with a separator")
    padded = [*cells, *[""] * (len(header) - len(cells))]
    values = {column: cell.strip() for column, cell in zip(header, padded, strict=True) if column}
    keys = tuple(filter(None, (values.pop(key, "") for key in _KEYS)))
    if not keys:
        raise DataError(f"{path}, line {line}: no id and no file; name the image")
    return TableRow(keys, values)


def match_table(path: Path, rows: Iterable[TableRow], ids: Iterable[str], folder: str = "") -> Matched:
    """Give each image of `ids` its columns: by its id, or by a part of its path in `folder` that is its own alone.

    A row that fits but weakly, by another suffix or case, gives way to one that fits better.

    Args:
        path: The table's file, for messages.
        rows: The table's rows; how a key is looked up: image_names.Names.find.
        ids: The gallery's ids.
        folder: Where its images are.

    Raises:
        DataError: Two rows name the same image.
    """
    names = Names(ids, folder)
    matches: list[tuple[TableRow, Match]] = [(row, _match(row, names)) for row in rows]
    certain = {match.id for _, match in matches if match.id and not match.weak}
    matched = Matched()
    for row, match in matches:
        name = match.id
        if name is None or (match.weak and name in certain):
            matched.unmatched.append(row.keys[0])
        elif name in matched.columns:
            raise DataError(f"{path} names {printable(name)} twice; keep one line for each image")
        else:
            matched.columns[name] = row.values
            if not match.exact:
                matched.loose.append((row.keys[0], name))
    return matched


def _match(row: TableRow, names: Names) -> Match:
    """Return the image of a row: by the first key that is an id, else by the first that fits one image.

    A key that speaks of another image of the same name, in another folder, is not overruled by a key without folder.
    """
    matches = [names.find(key) for key in row.keys]
    best = next((match for match in matches if match.exact), None) or next(
        (match for match in matches if match.id), None
    )
    if best is None or best.id is None or best.exact:
        return best or Match()
    others = [
        key.replace("\\", "/").rpartition("/") for key, match in zip(row.keys, matches, strict=True) if not match.id
    ]
    name = stem(best.id.rpartition("/")[2])
    return Match() if any(folder and stem(last) == name for folder, _, last in others) else best
