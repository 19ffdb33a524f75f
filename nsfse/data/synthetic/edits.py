"""Which edits lead from one drawn item to another, what they allow, and the words for them."""

from dataclasses import dataclass

from nsfse.data import WordLabel
from nsfse.data.synthetic.items import ATTRIBUTES, FREE_WITH_CATEGORY, LADDERS, Allowed, Codes, Level
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
class Option:
    """One way to ask for a change: its kind, its edits, and the values each attribute may then have."""

    kind: str
    edits: tuple[Edit, ...]
    allowed: Allowed

    def word_labels(self, level: Level, category: str) -> tuple[WordLabel, ...]:
        """Return what each edit asks for of an image of `category`."""
        found = []
        for edit in self.edits:
            at = ATTRIBUTES.index(edit.attribute)
            values = tuple(level.values[at][code] for code in self.allowed[at])
            found.append(
                WordLabel(edit.attribute, edit.words, attribute_key(edit.attribute, category), values, edit.absent)
            )
        return tuple(found)


def attribute_key(attribute: str, category: str) -> str:
    """Return the key of a category's attribute: the length of sleeves is not that of a handle."""
    return f"{category} {attribute}" if attribute in FREE_WITH_CATEGORY else attribute


def options(level: Level, a: Codes, b: Codes) -> list[Option]:
    """Return every way to ask for `b` with `a` as the reference; they differ in one or two attributes."""
    changed = [i for i in range(len(ATTRIBUTES)) if a[i] != b[i]]
    names = [ATTRIBUTES[i] for i in changed]
    kept: Allowed = tuple((code,) for code in b)
    if "category" in names:
        if any(name in FREE_WITH_CATEGORY for name in names):
            return []
        kept = tuple(
            tuple(range(len(level.values[i]))) if name in FREE_WITH_CATEGORY else kept[i]
            for i, name in enumerate(ATTRIBUTES)
        )
    if len(changed) == 2:
        edits = tuple(plain_edit(level, name, a, b) for name in names)
        return [Option("double", edits, kept)]
    return _single_options(level, changed[0], a, b, kept)


def _single_options(level: Level, i: int, a: Codes, b: Codes, kept: Allowed) -> list[Option]:
    name = ATTRIBUTES[i]
    old, new = level.values[i][a[i]], level.values[i][b[i]]
    plain = plain_edit(level, name, a, b)
    kind = {"size": "comparison", "category": "category"}.get(name, "single")
    if name == "detail" and new == "without":
        kind = "removal"
    found = [Option(kind, (plain,), kept)]
    if name == "colour":
        found.append(Option("negation", (_edit(name, "not colour", old),), _allow(kept, i, _others(level, i, a, b))))
    if name == "pattern" and new == "plain":
        found.append(Option("negation", (_pattern_edit("no pattern", old),), kept))
    ladder = _ladder(name, old)
    if new in ladder:
        up = ladder.index(new) > ladder.index(old)
        beyond = ladder[ladder.index(new) :] if up else ladder[ladder.index(new) :: -1]
        if abs(ladder.index(new) - ladder.index(old)) == 1:
            codes = tuple(level.values[i].index(value) for value in beyond if value in level.values[i])
            found.append(Option("comparison", (_more_edit(level, name, a, up),), _allow(kept, i, codes)))
    return found


def plain_edit(level: Level, name: str, a: Codes, b: Codes) -> Edit:
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


def _more_edit(level: Level, name: str, a: Codes, up: bool) -> Edit:
    """Return the edit that compares: darker or lighter, longer or shorter as the category says it."""
    if name == "colour":
        word = "lighter" if up else "darker"
        return Edit(name, word, {}, (word,))
    part, _, words = LENGTH_WORDS[level.describe(a)["category"]]
    fields = {"more": words[up], "part": part, "amore": f"{words[up]} {part}"}
    return Edit(name, "part more" if part else "whole more", fields, (words[up],))


def _edit(name: str, phrases: str, value: str) -> Edit:
    return Edit(name, phrases, {"v": value}, tuple(value.split()))


def _pattern_edit(phrases: str, pattern: str) -> Edit:
    noun, adjective = PATTERN_NOUNS.get(pattern, pattern), PATTERN_ADJECTIVES[pattern]
    return Edit("pattern", phrases, {"v": noun, "adj": adjective}, (noun, adjective))


def _ladder(name: str, old: str) -> tuple[str, ...]:
    if name == "length":
        return _LENGTH_ORDER
    if name == "colour":
        return next((ladder for ladder in LADDERS if old in ladder), ())
    return ()


def _others(level: Level, i: int, a: Codes, b: Codes) -> tuple[int, ...]:
    """Return every value but the old one, the preferred first."""
    return (b[i], *(code for code in range(len(level.values[i])) if code not in (a[i], b[i])))


def _allow(kept: Allowed, i: int, codes: tuple[int, ...]) -> Allowed:
    return (*kept[:i], codes, *kept[i + 1 :])
