"""Results as JSON, tables and trees. Names from outside go through `printable`; JSON is ASCII for the same reason."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import typer

from nsfse_runtime.escaping import printable
from nsfse_runtime.json_schema import SCHEMA_VERSION

T = TypeVar("T")


def print_result(value: T, as_text: Callable[[T], str], as_json: bool) -> None:
    """Print a result as text, or as JSON with the version of its form."""
    typer.echo(to_json(value) if as_json else as_text(value))


def to_json(value: Any) -> str:
    """Return `value` (structs, dataclasses, paths, dicts) as JSON with the version of its form; nan becomes null."""
    plain = _plain(value)
    versioned = {"schema_version": SCHEMA_VERSION, **plain} if isinstance(plain, dict) else plain
    return json.dumps(versioned, indent=2)


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def columns(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of text, numbers to the right, everything else to the left."""
    cells = [list(header), *([_cell(item) for item in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(_is_number(row[column]) for row in cells[1:]) for column in range(len(header))]
    lines = []
    for row in cells:
        parts = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _cell(item: Any) -> str:
    if item is None:
        return "-"
    return f"{item:.2f}" if isinstance(item, float) else printable(str(item))


def _is_number(cell: str) -> bool:
    return cell in ("-", "nan") or cell.replace(".", "", 1).replace("-", "", 1).isdigit()


def format_tree(value: Mapping[str, Any], indent: str = "") -> str:
    """Return nested facts as indented `name: value` lines."""
    lines = []
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{indent}{printable(name)}:", format_tree(item, indent + "  ")]
        elif isinstance(item, list | tuple) and item:
            inner = ", ".join(printable(str(part)) for part in item)
            lines.append(f"{indent}{printable(name)}: {inner}")
        elif item not in (None, "", {}, [], ()):
            lines.append(f"{indent}{printable(name)}: {printable(str(item))}")
    return "\n".join(lines)


def printable_lines(lines: Iterable[str]) -> str:
    """Return `lines`, each made safe to print."""
    return "\n".join(map(printable, lines))
