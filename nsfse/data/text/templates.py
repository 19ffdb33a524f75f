"""How customers say an edit: a language's phrasings, and how an edit becomes texts (docs/data.md).

The phrasings are data, one TOML file a language (`phrasings/`), which `phrasing_file` reads. Each kind of edit has at
least six that training sees and some that are held out of it. Fields in braces come from the edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

DOUBLE = "double"
"""The kind of two edits at once; its fields are the fragments of the two."""
WITH_ARTICLE = ("a", "amore")
"""Fields that hold a noun and are said with its article, where the language's file tells articles."""


ABSENT = ("not colour", "not value", "no pattern", "remove")
"""Kinds of phrasings that name what must not be there."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one attribute: which phrasings say it, the fields they take, the words that carry it."""

    attribute: str
    phrases: str
    fields: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def absent(self) -> bool:
        """Return whether the words name what must not be there."""
        return self.phrases in ABSENT


class Phrases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Phrasings of one kind of edit: `seen` and `more` by training, `seen` and `held_out` by the drawn benchmark."""

    seen: tuple[str, ...]
    fragments: tuple[str, ...]
    """What goes after a carrier ("show me this" + "in red"); the first also goes into edits of two things."""
    more: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


class Articles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A language whose article can be told from the noun's letters."""

    usual: str
    vowels: str = ""
    before_vowels: str = ""
    none_after: tuple[str, ...] = ()
    """Endings of nouns that take none; `but_after` are exceptions from that."""
    but_after: tuple[str, ...] = ()


class Phrasings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One language: phrasings by kind of edit, what stands around them, and which columns of a table are which kind."""

    kinds: dict[str, Phrases]
    small_words: tuple[str, ...] = ()
    carriers: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    columns: dict[str, str] = {}
    articles: Articles | None = None
    name: str = ""
    """`en`, or the file's name and the start of its digest: benchmarks in other words are other benchmarks."""

    def edit_to(self, column: str, value: str) -> Edit:
        """Return the edit that asks for `value` in a table's `column`, said as its kind of column is."""
        said = value.lower().replace("_", " ")
        return Edit(column, self.columns.get(column.lower(), "value"), {"v": said, "a": said}, tuple(said.split()))

    def kind_of(self, edits: Sequence[Edit]) -> str:
        """Return the kind that says one or two edits."""
        return edits[0].phrases if len(edits) == 1 else DOUBLE

    def phrases_of(self, edits: Sequence[Edit]) -> Phrases:
        """Return the phrasings of one or two edits, their fields still open."""
        return self.kinds[self.kind_of(edits)]

    def fill(self, template: str, edits: Sequence[Edit]) -> str:
        """Return a phrasing with the fields of its one or two edits."""
        if len(edits) == 1:
            return template.format_map(self._fields(template, edits[0]))
        first, second = (self._fragment(edit) for edit in edits)
        return template.format(a=first, b=second)

    def with_article(self, noun: str) -> str:
        """Return `noun` with its article: in English a or an, plurals (in -s, as a shop writes them) as they are."""
        told = self.articles
        if told is None or (noun.endswith(told.none_after) and not noun.endswith(told.but_after)):
            return noun
        return f"{told.before_vowels if noun[:1].lower() in (*told.vowels,) else told.usual} {noun}"

    def vary(self, text: str, chance: float) -> str:
        """Return the text as a hurried customer may type it; `chance` in [0, 1) decides: three in four stay.

        One in eight loses its small words, one in eight gets a capital letter.
        """
        if chance >= 0.25:
            return text
        if chance >= 0.125:
            return text[:1].upper() + text[1:]
        kept = [word for word in text.split() if word not in self.small_words]
        return " ".join(kept) or text

    def _fragment(self, edit: Edit) -> str:
        template = self.kinds[edit.phrases].fragments[0]
        return template.format_map(self._fields(template, edit))

    def _fields(self, template: str, edit: Edit) -> Mapping[str, str]:
        articled = [name for name in WITH_ARTICLE if f"{{{name}}}" in template]
        return {**edit.fields, **{name: self.with_article(edit.fields[name]) for name in articled}}
