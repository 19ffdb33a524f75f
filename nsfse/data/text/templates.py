"""Templates of the texts of edits: one language's, and how an edit becomes texts (docs/data.md).

Templates are data, one TOML file a language (`templates/`), which `template_file` reads. Each kind of edit has at least
six that training uses and some that are held out of it. Fields in braces come from the edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from nsfse.data.text_files import Name

DOUBLE = "double"
"""The kind of two edits at once; its fields are the phrases of the two."""
WITH_ARTICLE = ("a", "amore")
"""Fields that hold a noun and are filled with its article, where the language's file has articles."""
ABSENT = ("not colour", "not value", "no pattern", "remove")
"""Kinds of edit that name what must not be there."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one attribute: the kind of its templates, their fields, the words that carry it."""

    attribute: str
    kind: str
    fields: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def absent(self) -> bool:
        """Whether the words name what must not be there."""
        return self.kind in ABSENT


class EditTemplates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Templates of one kind of edit: training uses `base` and `extra`, the drawn benchmark `base` and `held_out`."""

    base: tuple[str, ...]
    phrases: tuple[str, ...]
    """What goes into a frame ("show me this" + "in red"); the first also goes into edits of two things."""
    extra: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


class Articles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The articles of a language in which they follow from the noun's letters."""

    usual: str
    vowels: str = ""
    before_vowels: str = ""
    none_after: tuple[str, ...] = ()
    """Endings of nouns that take none; `but_after` are exceptions from that."""
    but_after: tuple[str, ...] = ()


class TemplateSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One language: templates by kind of edit, what stands around them, and which columns of a table are which kind."""

    kinds: dict[str, EditTemplates]
    small_words: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    columns: dict[str, str] = {}
    values: dict[str, dict[str, Name]] = {}
    """By column, what a customer calls a value of a table: "no sleeves" for the sleeve `none`. In small letters."""
    articles: Articles | None = None
    name: str = ""
    """`en`, or the file's name and the start of its digest: benchmarks in other words are other benchmarks."""

    def edit_to(self, column: str, value: str) -> Edit:
        """Return the edit that requests `value` in a table's `column`."""
        words = self.said(column, value)
        return Edit(
            column,
            self.columns.get(column.lower(), "value"),
            {"v": words, "a": words},
            tuple(words.replace("-", " ").split()),
        )

    def said(self, column: str, value: str) -> str:
        """Return what a customer calls `value` of a table's `column`."""
        value = value.lower()
        return self.values.get(column.lower(), {}).get(value, value.replace("_", " "))

    def templates_for(self, edits: Sequence[Edit]) -> EditTemplates:
        """Return the templates of one or two edits."""
        return self.kinds[edits[0].kind if len(edits) == 1 else DOUBLE]

    def fill(self, template: str, edits: Sequence[Edit]) -> str:
        """Return a template with the fields of its one or two edits."""
        if len(edits) == 1:
            return template.format_map(self._fields(template, edits[0]))
        first, second = (self._phrase(edit) for edit in edits)
        return template.format(a=first, b=second)

    def with_article(self, noun: str) -> str:
        """Return `noun` with its article: in English a or an, plurals (in -s, as a shop writes them) as they are."""
        articles = self.articles
        if articles is None or (noun.endswith(articles.none_after) and not noun.endswith(articles.but_after)):
            return noun
        return f"{articles.before_vowels if noun[:1].lower() in (*articles.vowels,) else articles.usual} {noun}"

    def vary(self, text: str, chance: float) -> str:
        """Return the text as a hurried customer may type it.

        Args:
            text: A filled template.
            chance: Decides, in [0, 1): one in eight loses its small words, one in eight gets a capital letter.
        """
        if chance >= 0.25:
            return text
        if chance >= 0.125:
            return text[:1].upper() + text[1:]
        words = [word for word in text.split() if word not in self.small_words]
        return " ".join(words) or text

    def _phrase(self, edit: Edit) -> str:
        template = self.kinds[edit.kind].phrases[0]
        return template.format_map(self._fields(template, edit))

    def _fields(self, template: str, edit: Edit) -> Mapping[str, str]:
        nouns = [name for name in WITH_ARTICLE if f"{{{name}}}" in template]
        return {**edit.fields, **{name: self.with_article(edit.fields[name]) for name in nouns}}
