"""Which edits lead from one drawn item to another, what they allow, and the words for them."""

import functools
from dataclasses import dataclass

from nsfse.data import WordLabel
from nsfse.data.synthetic.items import (
    ATTRIBUTES,
    FREE_WITH_CATEGORY,
    LEVELS,
    ORDERED_SHADES,
    Allowed,
    AttributeCodes,
    Level,
)
from nsfse.data.text.templates import Edit

PATTERN_ADJECTIVES = {
    "stripes": "striped",
    "dots": "dotted",
    "checks": "checked",
    "zigzag": "zigzag",
    "diamonds": "diamond",
}
PATTERN_NOUNS = {"zigzag": "zigzags"}
DETAILS = {
    "shirt": "collar",
    "dress": "belt",
    "trousers": "belt",
    "skirt": "bow",
    "jacket": "hood",
    "bag": "pocket",
    "shoe": "heel",
    "hat": "ribbon",
    "mug": "handle",
    "chair": "armrests",
    "lamp": "cord",
    "sofa": "cushions",
}
LENGTH_WORDS: dict[str, tuple[str, tuple[str, str, str], tuple[str, str]]] = {
    "shirt": ("sleeves", ("short", "medium", "long"), ("shorter", "longer")),
    "dress": ("", ("short", "knee-length", "long"), ("shorter", "longer")),
    "trousers": ("legs", ("short", "medium", "long"), ("shorter", "longer")),
    "skirt": ("", ("short", "knee-length", "long"), ("shorter", "longer")),
    "jacket": ("", ("short", "hip-length", "long"), ("shorter", "longer")),
    "bag": ("handle", ("short", "medium", "long"), ("shorter", "longer")),
    "shoe": ("shaft", ("low", "medium", "high"), ("lower", "higher")),
    "hat": ("brim", ("narrow", "medium", "wide"), ("narrower", "wider")),
    "mug": ("", ("low", "medium", "tall"), ("lower", "taller")),
    "chair": ("back", ("low", "medium", "high"), ("lower", "higher")),
    "lamp": ("", ("low", "medium", "tall"), ("lower", "taller")),
    "sofa": ("", ("narrow", "medium", "wide"), ("narrower", "wider")),
}
"""Category → (part, words for short, medium and long, words for less and more)."""
_LENGTH_ORDER = ("short", "medium", "long")


@dataclass(frozen=True, slots=True)
class EditOption:
    """One way to request a change: its kind, its edits, and the values each attribute may then have."""

    kind: str
    edits: tuple[Edit, ...]
    allowed: Allowed
    old: Edit | None = None
    """The edit that would request the reference's value, of one edit that requests another."""

    def word_labels(self, level: Level, answer: AttributeCodes) -> tuple[WordLabel, ...]:
        """Return the labels of each edit's words, for a right answer with the codes `answer`."""
        category, labels = level.describe(answer)["category"], []
        for edit in self.edits:
            index = ATTRIBUTES.index(edit.attribute)
            values = tuple(level.values[index][code] for code in self.allowed[index])
            key = attribute_key(edit.attribute, category)
            labels.append(WordLabel(edit.attribute, edit.words, key, values, edit.absent))
        return tuple(labels)

    def old_label(self, level: Level, reference: AttributeCodes) -> WordLabel:
        """Return the label of the words that refuse the value of a reference with the codes `reference`."""
        assert self.old is not None
        name, known = self.old.attribute, level.describe(reference)
        others = tuple(value for value in level.values[ATTRIBUTES.index(name)] if value != known[name])
        return WordLabel(name, self.old.words, attribute_key(name, known["category"]), others, absent=True)


def attribute_key(attribute: str, category: str) -> str:
    """Return the key of a category's attribute: the length of sleeves is not that of a handle."""
    return f"{category} {attribute}" if attribute in FREE_WITH_CATEGORY else attribute


@functools.cache
def level_edit_options(level: str, a: AttributeCodes, b: AttributeCodes) -> tuple[EditOption, ...]:
    """Return the edits of a level from the reference `a` to `b`."""
    return tuple(option for option in edit_options(LEVELS[level], a, b) if option.kind in LEVELS[level].kinds)


def edit_options(level: Level, a: AttributeCodes, b: AttributeCodes) -> list[EditOption]:
    """Return every edit from the reference `a` to `b`, which differ in one or two attributes."""
    changed = [i for i in range(len(ATTRIBUTES)) if a[i] != b[i]]
    names = [ATTRIBUTES[i] for i in changed]
    unchanged: Allowed = tuple((code,) for code in b)
    if "category" in names:
        if any(name in FREE_WITH_CATEGORY for name in names):
            return []
        unchanged = tuple(
            tuple(range(len(level.values[i]))) if name in FREE_WITH_CATEGORY else unchanged[i]
            for i, name in enumerate(ATTRIBUTES)
        )
    if len(changed) == 2:
        edits = tuple(plain_edit(level, name, a, b) for name in names)
        return [EditOption("double", edits, unchanged)]
    return _single_edits(level, changed[0], a, b, unchanged)


def _single_edits(level: Level, i: int, a: AttributeCodes, b: AttributeCodes, unchanged: Allowed) -> list[EditOption]:
    name = ATTRIBUTES[i]
    old, new = level.values[i][a[i]], level.values[i][b[i]]
    kind = {"size": "comparison", "category": "category"}.get(name, "single")
    if name == "detail" and new == "without":
        kind = "removal"
    options = [EditOption(kind, (plain_edit(level, name, a, b),), unchanged, plain_edit(level, name, b, a))]
    if name == "colour":
        others = _allow(unchanged, i, _others(level, i, a, b))
        options.append(EditOption("negation", (_edit(name, "not colour", old),), others))
    if name == "pattern" and new == "plain":
        options.append(EditOption("negation", (_pattern_edit("no pattern", old),), unchanged))
    order = _order(name, old)
    if new in order and abs(order.index(new) - order.index(old)) == 1:
        more = order.index(new) > order.index(old)
        beyond = order[order.index(new) :] if more else order[order.index(new) :: -1]
        codes = tuple(level.values[i].index(value) for value in beyond if value in level.values[i])
        options.append(EditOption("comparison", (_more_edit(level, name, a, more),), _allow(unchanged, i, codes)))
    return options


def plain_edit(level: Level, name: str, a: AttributeCodes, b: AttributeCodes) -> Edit:
    """Return the edit that names the new value of one attribute."""
    new = level.describe(b)[name]
    category = level.describe(b)["category"]
    if name == "category":
        return Edit(name, "category", {"v": new, "a": new}, (new,))
    if name == "pattern":
        return Edit(name, "plain", {}, ("plain",)) if new == "plain" else _pattern_edit("pattern", new)
    if name == "length":
        part, words, _ = LENGTH_WORDS[category]
        word = words[_LENGTH_ORDER.index(new)]
        fields = {"v": word, "part": part, "a": f"{word} {part}"}
        return Edit(name, "part" if part else "whole", fields, (word,))
    if name == "detail":
        noun = DETAILS[category]
        return Edit(name, "add" if new == "with" else "remove", {"v": noun, "a": noun}, (noun,))
    if name == "size":
        more = "larger" if new == "large" else "smaller"
        return Edit(name, "whole more", {"v": new, "more": more}, (more,))
    return _edit(name, name, new)


def _more_edit(level: Level, name: str, a: AttributeCodes, up: bool) -> Edit:
    """Return the edit that compares: darker or lighter, longer or shorter in the word of the category."""
    if name == "colour":
        word = "lighter" if up else "darker"
        return Edit(name, word, {}, (word,))
    part, _, words = LENGTH_WORDS[level.describe(a)["category"]]
    fields = {"more": words[up], "part": part, "amore": f"{words[up]} {part}"}
    return Edit(name, "part more" if part else "whole more", fields, (words[up],))


def _edit(name: str, kind: str, value: str) -> Edit:
    return Edit(name, kind, {"v": value, "a": value}, tuple(value.split()))


def _pattern_edit(kind: str, pattern: str) -> Edit:
    noun, adjective = PATTERN_NOUNS.get(pattern, pattern), PATTERN_ADJECTIVES[pattern]
    return Edit("pattern", kind, {"v": noun, "adj": adjective}, (noun, adjective))


def _order(name: str, old: str) -> tuple[str, ...]:
    """Return the values that an old one compares with, from less to more; empty where there is no order."""
    if name == "length":
        return _LENGTH_ORDER
    if name == "colour":
        return next((shades for shades in ORDERED_SHADES if old in shades), ())
    return ()


def _others(level: Level, i: int, a: AttributeCodes, b: AttributeCodes) -> tuple[int, ...]:
    """Return every value but the old one, the preferred first."""
    return (b[i], *(code for code in range(len(level.values[i])) if code not in (a[i], b[i])))


def _allow(unchanged: Allowed, i: int, codes: tuple[int, ...]) -> Allowed:
    return (*unchanged[:i], codes, *unchanged[i + 1 :])
