"""Text and JSON files of data sets, read in one way; an error is one line that names the place.

A byte order mark is taken off. Lines end at LF alone (a CR before it is dropped), as U+2028 or a form feed may stand in
a caption. What is no such file at all (a Git LFS pointer, an HTML page, an archive) is named as what it is.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from nsfse_runtime.errors import DataError
from nsfse_runtime.escaping import printable
from nsfse_runtime.regular_files import read_regular

# Not `pattern`: in a union with other types it crashes the garbage collector now and then (msgspec 0.22.0).
Name = Annotated[str, msgspec.Meta(min_length=1)]
"""The name of an image: text that is not blank, as `convert` empties what is."""
MISSING = "missing"
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
T = TypeVar("T")

_OTHERS = {
    b"PK\x03\x04": "a ZIP archive or an .xlsx workbook; unpack it, or save it as UTF-8 text",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
}
_PAGE = ("<!doctype", "<html", "<?xml", "<head", "<body")
_PLACE = re.compile(r" - at (?:`key` in )?`\$(.*)`$")
_LACKS = re.compile(r"Object missing required field `(.+)`$")
_LONE = re.compile("[\ud800-\udfff]")


class FormError(ValueError):
    """A value that is not in its form: the `path` to it, such as `[3].captions[0]`, and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}".removeprefix(": "))
        self.path, self.reason = path, reason


def read_text(path: Path) -> str:
    """Return a text file without its byte order mark; raise DataError for what is not UTF-8 text."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the file and its permissions") from None
    kind = next((kind for start, kind in _OTHERS.items() if content.startswith(start)), "")
    if content[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(tuple(tag.encode() for tag in _PAGE)):
        kind = "an HTML page, not the file itself; fetch it again"
    if kind:
        raise DataError(f"{path} is {kind}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line} is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return (number, line) of the lines of a text file that are not blank. Raises DataError as `read_text`."""
    text = read_text(path)
    lines = text.split("\n") if "\n" in text else text.split("\r")
    return [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]


def read_json(path: Path, form: type[T], entry: str = "entry", key: str = "") -> T:
    """Return a JSON file as a type; keys that the type does not name are allowed.

    Args:
        path: The file.
        form: The type that msgspec converts to.
        entry: What an error calls an entry of a list; entries are counted from 0.
        key: The key whose value an error names beside the entry.

    Raises:
        DataError: The file is not in its form; the message names file, entry and field.
    """
    text, value = read_text(path), None
    try:
        value = parse_json(text)
        return convert(value, form)
    except FormError as error:
        raise DataError(f"{path}: {_placed(value, error, entry, key)}; fix or fetch it again") from None
    except ValueError as error:
        raise DataError(f"{path} is not a JSON file ({error}); fetch it again") from None


def read_json_line(line: str, form: type[T], where: str, needs: str) -> T:
    """Return a line of a JSONL file as a type.

    Args:
        line: The line's text.
        form: The type that msgspec converts to.
        where: The line's file and number, for errors.
        needs: What a row has to have, for errors.

    Raises:
        DataError: The line is not in its form; the message names line and field.
    """
    try:
        value = parse_json(line)
        if not isinstance(value, dict):
            raise DataError(f"{where} is not a JSON object; write one a line, with {needs}")
        return convert(value, form)
    except FormError as error:
        how = "" if error.reason == MISSING else f" in its form: {error.reason}"
        raise DataError(f"{where} has no {error.path}{how}; it needs {needs}") from None
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); write one object a line") from None


def read_csv(
    path: Path, needed: Sequence[str], known: Sequence[str] = (), mark: str = ":", short: bool = False
) -> tuple[tuple[str, ...], list[tuple[str, dict[str, str]]]]:
    """Read a CSV file, whose separator is the comma, semicolon or tab with which the header has the needed columns.

    Args:
        path: The file.
        needed: Columns that must be there, in small letters or capitals.
        known: Further columns that may be in capitals.
        mark: What stands between file and line number in `where`.
        short: Whether a row may end early.

    Returns:
        The columns, and (where, row) of each row; cells have no blanks around them.

    Raises:
        DataError: The file is not in its form; the message names the line.
    """
    text = read_text(path)
    named = re.match(r"sep=(.)\r?\n", text)  # a spreadsheet's own line
    text, above = (text[named.end() :], 1) if named else (text, 0)
    columns, separator = _header(path, text, needed, known, named[1] if named else "", f"{path}{mark}{above + 1}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[str, dict[str, str]]] = []
    try:
        next(reader)
        for cells in reader:
            where = f"{path}{mark}{reader.line_num + above}"
            if cells and (len(cells) > len(columns) or (len(cells) < len(columns) and not short)):
                raise DataError(
                    f"{where} does not have {len(columns)} columns like the header, but {len(cells)}; "
                    f"put a text that holds a {SEPARATORS.get(separator, separator)} in double quotes"
                )
            if any(cell.strip() for cell in cells):
                padded = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
                rows.append((where, dict(zip(columns, padded, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}{mark}{reader.line_num + above} is not a CSV row: {error}") from None
    return columns, rows


def _header(
    path: Path, text: str, needed: Sequence[str], known: Sequence[str], separator: str, where: str
) -> tuple[tuple[str, ...], str]:
    """Return the column names of a CSV text, `needed` and `known` ones in small letters, and its separator."""
    usual = {name.casefold(): name for name in (*needed, *known)}
    read: dict[str, tuple[str, ...]] = {}
    for sign in (separator,) if separator else SEPARATORS:
        try:
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True), [])
        except (csv.Error, TypeError, ValueError) as error:  # a separator that cannot be one
            raise DataError(f"{where} is not a CSV row: {error}") from None
        names = [cell.strip() for cell in cells]
        exact = {name for name in names if name in usual.values()}
        folded = {name: usual.get(name.casefold(), name) for name in names}
        read[sign] = tuple(name if folded[name] in exact else folded[name] for name in names)
    sign = next((sign for sign, columns in read.items() if set(needed) <= set(columns)), next(iter(read)))
    lacking = [name for name in needed if name not in read[sign]]
    if lacking:
        there = ", ".join(map(printable, read[sign])) or "none"
        raise DataError(f"{where} has no column {lacking[0]}; its columns are: {there}")
    if len(set(read[sign])) < len(read[sign]):
        raise DataError(f"{where} names a column twice; give each its own name")
    return read[sign], sign


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.

    Returns:
        The value, of dicts, lists and scalars.

    Raises:
        ValueError: It is not strict JSON.
        FormError: A text in it is not valid Unicode.
    """
    if not text.strip():
        raise ValueError("it is empty")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}: line {error.lineno} column {error.colno}") from None
    except ValueError as error:
        if "digits" not in str(error):
            raise
        raise ValueError("it has a number of thousands of digits") from None
    if "\\ud" in text or "\\uD" in text:  # escapes of one half of a pair are the only way to text that has no UTF-8
        _refuse_lone_surrogates(value)
    return value


def convert(value: Any, form: type[T]) -> T:
    """Return a parsed JSON value as `form`, blank text as empty text. Raises FormError."""
    try:
        return msgspec.convert(_emptied(value), form)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        message = str(error)
    place = _PLACE.search(message)
    reason, path = (message[: place.start()], place[1]) if place else (message, "")
    if lacks := _LACKS.match(reason):
        raise FormError(f"{path}.{lacks[1]}".lstrip("."), MISSING)
    reason = reason.replace("`", "").replace("str of length >= 1", "str that is not blank")
    raise FormError(path.replace("[...]", "").lstrip("."), f"{reason[:1].lower()}{reason[1:]}")


def _emptied(value: Any) -> Any:
    """Return a parsed JSON value with "" in place of each blank text. Raises RecursionError."""
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, list):
        return [_emptied(part) for part in value]
    return {_emptied(key): _emptied(part) for key, part in value.items()} if isinstance(value, dict) else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        begins = printable(json.dumps(value)[:60])
        raise ValueError(f"the key {printable(twice)!r} stands twice in the object that begins {begins}")
    return value


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


def _refuse_lone_surrogates(value: Any) -> None:
    pending = [("", value)]
    while pending:
        path, part = pending.pop()
        if isinstance(part, str) and _LONE.search(part):
            raise FormError(path.lstrip("."), f"{ascii(part)[:60]} is not valid Unicode")
        if isinstance(part, dict):
            if any(_LONE.search(key) for key in part):
                raise FormError(path.lstrip("."), "a key is not valid Unicode")
            pending += [(f"{path}.{key}", inner) for key, inner in part.items()]
        elif isinstance(part, list):
            pending += [(f"{path}[{index}]", inner) for index, inner in enumerate(part)]


def _placed(value: Any, error: FormError, entry: str, key: str) -> str:
    """Return the place of an error and its reason: `pair 3 (pairid 12): target: expected str, got null`."""
    match = re.match(r"\[(\d+)\]\.?(.*)", error.path, re.DOTALL)
    if match is None:
        return str(error)
    number, field = int(match[1]), match[2]
    listed = value[number] if isinstance(value, list) and number < len(value) else None
    named = listed.get(key) if isinstance(listed, dict) else None
    place = f"{entry} {number}" + (f" ({key} {named})" if isinstance(named, int | str) else "")
    return f"{place}: {field}: {error.reason}" if field else f"{place}: {error.reason}"
