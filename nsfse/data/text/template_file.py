"""A language's TOML file becomes a TemplateSet; a fault is one line with file, key and what is wrong."""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

import msgspec

from nsfse.data.text.templates import DOUBLE, EditTemplates, TemplateSet
from nsfse.suggest import did_you_mean
from nsfse_runtime.errors import DataError, NotFoundError
from nsfse_runtime.regular_files import read_regular

FOLDER = Path(__file__).parent / "templates"
LANGUAGES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
MIN_TEMPLATES = 6
"""Templates of each kind at least, or a model learns one sentence by heart."""

FIELDS: dict[str, tuple[str, ...]] = {
    "colour": ("v",),
    "not colour": ("v",),
    "darker": (),
    "lighter": (),
    "pattern": ("v", "adj"),
    "plain": (),
    "no pattern": ("v", "adj"),
    "part": ("a", "v part"),
    "whole": ("v",),
    "part more": ("amore", "more part"),
    "whole more": ("more",),
    "add": ("a",),
    "remove": ("v", "a"),
    "background": ("v",),
    "category": ("a", "v"),
    "not category": ("a", "v", "many"),
    "category over": ("a old", "v old"),
    "gender": ("v",),
    "value": ("v",),
    "not value": ("v",),
    DOUBLE: ("a b",),
}
"""Kind of edit → the sets of fields of which a template holds one; () for kinds without fields."""


def _names_a_value(kind: str) -> bool:
    fields = {field for group in FIELDS[kind] for field in group.split()}
    return bool(fields) and fields <= {"v", "a"} and not kind.startswith("not ")


COLUMN_KINDS = tuple(kind for kind in FIELDS if _names_a_value(kind))
"""Kinds that a column of a table can have: all they need is the value."""


def load_templates(named: str, needed: Sequence[str] = ()) -> TemplateSet:
    """Read the templates of a language.

    Args:
        named: A shipped language (`en`) or the path of a TOML file.
        needed: Kinds of edit that must be in it.

    Returns:
        The templates.

    Raises:
        NotFoundError: There is no such language and no such file.
        DataError: The file is not in its form; the message names file, key and fault.
    """
    path = FOLDER / f"{named}.toml" if named in LANGUAGES else Path(named)
    try:
        content = read_regular(path)
        tree = tomllib.loads(content.decode("utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except RecursionError:
        raise DataError(f"{path} is not TOML: it is nested too deeply") from None
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    except (OSError, ValueError):  # no such file, a folder, a name that no file can have
        raise NotFoundError(f"no templates {named!r}; name a TOML file, or one of: {', '.join(LANGUAGES)}") from None
    try:
        own = path.stem if named in LANGUAGES else f"{path.stem}-{hashlib.sha256(content).hexdigest()[:8]}"
        templates = _read(tree, own, needed)
    except (ValueError, msgspec.ValidationError) as error:
        raise DataError(f"{path}: {error}") from None
    return templates


class HeldOutTemplates:
    """Finds the held-out templates of a language in other texts, whatever small words stand between."""

    def __init__(self, templates: TemplateSet, also_small: Sequence[str] = ()) -> None:
        self._small = {*templates.small_words, *also_small}
        held = (text for group in templates.kinds.values() for text in group.held_out)
        self._held = {_bare(text, self._small): text for text in held}

    def find_in(self, text: str) -> str | None:
        """Return the held-out template that `text`, its fields open, contains; None where it contains none."""
        words = _bare(text, self._small)
        return next((text for bare, text in self._held.items() if bare in words), None)


def _read(tree: dict[str, Any], name: str, needed: Sequence[str]) -> TemplateSet:
    """Return the templates of a parsed file. Raises ValueError (msgspec's is one) with key and fault."""
    if "name" in tree:
        raise ValueError("name is the file's own; take the key out")
    kinds = tree.get("kinds", {})
    if not isinstance(kinds, dict) or not kinds:
        raise ValueError("no kinds; write a table [kinds.colour] with base and phrases")
    for kind in kinds:
        if kind not in FIELDS:
            nearest = did_you_mean(kind, FIELDS, 0.4) or ";"
            raise ValueError(f"no kind {kind!r}{nearest} there are: {', '.join(FIELDS)}")
    read = {kind: _convert(table, kind) for kind, table in kinds.items()}
    templates = msgspec.convert({**tree, "name": name, "kinds": {}}, TemplateSet)
    values = {
        column.lower(): {value.lower(): said for value, said in names.items()}
        for column, names in templates.values.items()
    }
    templates = msgspec.structs.replace(templates, kinds=read, values=values)
    for kind in needed:
        if kind not in templates.kinds:
            raise ValueError(f"lacks the table [kinds.{kind}], which this data set needs; copy it from another file")
    for column, kind in templates.columns.items():
        if kind not in templates.kinds:
            raise ValueError(f"columns.{column} is {kind!r}, of which the file has no templates")
        if kind not in COLUMN_KINDS:
            raise ValueError(f"columns.{column} is {kind!r}; a column is one of: {', '.join(COLUMN_KINDS)}")
    for frame in templates.frames:
        if _fields_of(frame, "frames") != {"f"}:
            raise ValueError(f"frames: {frame!r} must hold the field {{f}} and no other")
    for kind in templates.kinds:
        _check_kind(kind, templates)
    held_out = HeldOutTemplates(templates)
    for key, text in _training(templates):
        if held := held_out.find_in(text):
            raise ValueError(f"{key}: {text!r} has what is held out: {held!r}; change one of them")
    return templates


def _convert(table: Any, kind: str) -> EditTemplates:
    try:
        return msgspec.convert(table, EditTemplates)
    except msgspec.ValidationError as error:
        raise ValueError(f"kinds.{kind}: {error}") from None


def _check_kind(kind: str, templates: TemplateSet) -> None:
    group = templates.kinds[kind]
    if len(group.base) < MIN_TEMPLATES:
        raise ValueError(f"kinds.{kind}.base has {len(group.base)} templates; write at least {MIN_TEMPLATES}")
    if len(group.held_out) not in (0, 2):
        raise ValueError(f"kinds.{kind}.held_out has {len(group.held_out)} templates; write two or none")
    if not group.phrases:
        raise ValueError(f"kinds.{kind}.phrases is empty; write one at least")
    every = (*group.base, *group.extra)
    for key in ("base", "extra", "held_out", "phrases"):
        for text in getattr(group, key):
            where = f"kinds.{kind}.{key}"
            if not text.strip():
                raise ValueError(f"{where} holds an empty text")
            if key != "phrases" and every.count(text) > 1:
                raise ValueError(f"{where}: {text!r} is there twice")
            _check_fields(text, FIELDS[kind], where)


def _check_fields(text: str, wanted: tuple[str, ...], where: str) -> None:
    fields = _fields_of(text, where)
    known = {field for group in wanted for field in group.split()}
    for field in fields:
        if field not in known:
            known_fields = ", ".join(f"{{{name}}}" for name in sorted(known)) or "none"
            raise ValueError(f"{where}: {text!r} has the field {{{field}}}, and this kind has: {known_fields}")
    if wanted and not any(fields.issuperset(group.split()) for group in wanted):
        lacking = " or ".join(" with ".join(f"{{{field}}}" for field in group.split()) for group in wanted)
        raise ValueError(f"{where}: {text!r} lacks {lacking}")


def _fields_of(text: str, where: str) -> set[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{where}: {text!r} is no template: {error}") from None
    if any(style or conversion for _, _, style, conversion in parts):
        raise ValueError(f"{where}: {text!r} has a field that is more than a name, such as {{v}}")
    return {field for _, field, _, _ in parts if field is not None}


def _training(templates: TemplateSet) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of everything that training may use."""
    for kind, group in templates.kinds.items():
        yield from ((f"kinds.{kind}.base", text) for text in group.base)
        yield from ((f"kinds.{kind}.extra", text) for text in group.extra)
        for phrase in group.phrases:
            yield from (("frames", frame.replace("{f}", phrase)) for frame in templates.frames)


def _bare(text: str, small: set[str]) -> str:
    """Return the words of `text` between spaces, small ones left out, every field as the same one."""
    words = re.findall(r"\{\w*\}|[^\W_]+(?:['’-][^\W_]+)*", text.lower())
    return f" {' '.join('{}' if word[0] == '{' else word for word in words if word not in small)} "
