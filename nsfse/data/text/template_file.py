"""A language's TOML file → Phrasings, strictly: file, key and what is wrong, in one line."""

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

import msgspec

from nsfse.data.text.templates import DOUBLE, Phrases, Phrasings
from nsfse_runtime.errors import DataError, NotFoundError

FOLDER = Path(__file__).parent / "templates"
LANGUAGES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
LEAST = 6
"""So many phrasings of each kind at least, or a model learns one sentence by heart."""

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
"""Kind of edit → the sets of fields of which a phrasing holds one; () for kinds that are said without any."""


def _names_a_value(kind: str) -> bool:
    fields = {field for group in FIELDS[kind] for field in group.split()}
    return bool(fields) and fields <= {"v", "a"} and not kind.startswith("not ")


OF_COLUMNS = tuple(kind for kind in FIELDS if _names_a_value(kind))
"""Kinds that a column of a table can be said as: all they need is the value."""


def load_phrasings(named: str, needed: Sequence[str] = ()) -> Phrasings:
    """Read a shipped language (`en`) or a TOML file; every kind of `needed` must be in it.

    Raises NotFoundError for what is neither, DataError naming file, key and fault.
    """
    path = FOLDER / f"{named}.toml" if named in LANGUAGES else Path(named)
    try:
        content = path.read_bytes()
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
        raise NotFoundError(f"no phrasings {named!r}; name a TOML file, or one of: {', '.join(LANGUAGES)}") from None
    try:
        own = path.stem if named in LANGUAGES else f"{path.stem}-{hashlib.sha256(content).hexdigest()[:8]}"
        found = _read(tree, own, needed)
    except (ValueError, msgspec.ValidationError) as error:
        raise DataError(f"{path}: {error}") from None
    return found


class HeldOut:
    """What a language never says in training, to be found in other texts whatever small words stand between."""

    def __init__(self, phrasings: Phrasings, also_small: Sequence[str] = ()) -> None:
        self._small = {*phrasings.small_words, *also_small}
        held = (text for phrases in phrasings.kinds.values() for text in phrases.held_out)
        self._held = {_bare(text, self._small): text for text in held}

    def within(self, text: str) -> str | None:
        """Return the held-out phrasing that `text`, its fields open, says; None where it says none."""
        said = _bare(text, self._small)
        return next((text for bare, text in self._held.items() if bare in said), None)


def _read(tree: dict[str, Any], name: str, needed: Sequence[str]) -> Phrasings:
    """Return the phrasings of a parsed file. Raises ValueError (msgspec's is one) with key and fault."""
    if "name" in tree:
        raise ValueError("name is the file's own; take the key out")
    kinds = tree.get("kinds", {})
    if not isinstance(kinds, dict) or not kinds:
        raise ValueError("no kinds; write a table [kinds.colour] with seen and fragments")
    for kind in kinds:
        if kind not in FIELDS:
            raise ValueError(f"no kind {kind!r}{_nearest(kind, FIELDS)}; there are: {', '.join(FIELDS)}")
    read = {kind: _convert(phrases, kind) for kind, phrases in kinds.items()}
    found = msgspec.convert({**tree, "name": name, "kinds": {}}, Phrasings)
    found = msgspec.structs.replace(found, kinds=read)
    for kind in needed:
        if kind not in found.kinds:
            raise ValueError(f"lacks the table [kinds.{kind}], which this data set says; copy it from another file")
    for column, kind in found.columns.items():
        if kind not in found.kinds:
            raise ValueError(f"columns.{column} is {kind!r}, of which the file has no phrasings")
        if kind not in OF_COLUMNS:
            raise ValueError(f"columns.{column} is {kind!r}; a column is said as one of: {', '.join(OF_COLUMNS)}")
    for carrier in found.carriers:
        if _fields_of(carrier, "carriers") != {"f"}:
            raise ValueError(f"carriers: {carrier!r} must hold the field {{f}} and no other")
    for kind in found.kinds:
        _check_kind(kind, found)
    held_out = HeldOut(found)
    for key, text in _training(found):
        if held := held_out.within(text):
            raise ValueError(f"{key}: {text!r} says what is held out: {held!r}; change one of them")
    return found


def _convert(phrases: Any, kind: str) -> Phrases:
    try:
        return msgspec.convert(phrases, Phrases)
    except msgspec.ValidationError as error:
        raise ValueError(f"kinds.{kind}: {error}") from None


def _check_kind(kind: str, phrasings: Phrasings) -> None:
    phrases = phrasings.kinds[kind]
    if len(phrases.seen) < LEAST:
        raise ValueError(f"kinds.{kind}.seen has {len(phrases.seen)} phrasings; write at least {LEAST}")
    if len(phrases.held_out) not in (0, 2):
        raise ValueError(f"kinds.{kind}.held_out has {len(phrases.held_out)} phrasings; write two or none")
    if not phrases.fragments:
        raise ValueError(f"kinds.{kind}.fragments is empty; write one at least")
    every = (*phrases.seen, *phrases.more)
    for key in ("seen", "more", "held_out", "fragments"):
        for text in getattr(phrases, key):
            where = f"kinds.{kind}.{key}"
            if not text.strip():
                raise ValueError(f"{where} holds an empty text")
            if key != "fragments" and every.count(text) > 1:
                raise ValueError(f"{where}: {text!r} is there twice")
            _check_fields(text, FIELDS[kind], where)


def _check_fields(text: str, wanted: tuple[str, ...], where: str) -> None:
    fields = _fields_of(text, where)
    known = {field for group in wanted for field in group.split()}
    for field in fields:
        if field not in known:
            there = ", ".join(f"{{{name}}}" for name in sorted(known)) or "none"
            raise ValueError(f"{where}: {text!r} has the field {{{field}}}, and this kind has: {there}")
    if wanted and not any(fields.issuperset(group.split()) for group in wanted):
        lacking = " or ".join(" with ".join(f"{{{field}}}" for field in group.split()) for group in wanted)
        raise ValueError(f"{where}: {text!r} lacks {lacking}")


def _fields_of(text: str, where: str) -> set[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{where}: {text!r} is no phrasing: {error}") from None
    if any(style or conversion for _, _, style, conversion in parts):
        raise ValueError(f"{where}: {text!r} has a field that is more than a name, such as {{v}}")
    return {field for _, field, _, _ in parts if field is not None}


def _training(phrasings: Phrasings) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of everything that training may say."""
    for kind, phrases in phrasings.kinds.items():
        yield from ((f"kinds.{kind}.seen", text) for text in phrases.seen)
        yield from ((f"kinds.{kind}.more", text) for text in phrases.more)
        for fragment in phrases.fragments:
            yield from (("carriers", carrier.replace("{f}", fragment)) for carrier in phrasings.carriers)


def _bare(text: str, small: set[str]) -> str:
    """Return the words of `text` between spaces, small ones left out, every field as the same one."""
    words = re.findall(r"\{\w*\}|[^\W_]+(?:['’-][^\W_]+)*", text.lower())
    return f" {' '.join('{}' if word[0] == '{' else word for word in words if word not in small)} "


def _nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.4)
    return f"; did you mean {close[0]!r}?" if close else ""
