"""How customers say an edit: phrasings as data, and how an edit becomes texts.

Each kind of edit has at least six phrasings that training sees and two that are held out of it, and one `fragment`
that goes into edits of two things ("in red and with long sleeves"). Fields in braces come from the edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Phrases:
    """Phrasings of one kind of edit."""

    seen: tuple[str, ...]
    held_out: tuple[str, str]
    fragment: str = ""


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one attribute: which phrasings say it, the fields they take, the words that carry it."""

    attribute: str
    phrases: str
    fields: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()


PHRASES: dict[str, Phrases] = {
    "colour": Phrases(
        (
            "make it {v}",
            "in {v} instead",
            "the same one but {v}",
            "change the color to {v}",
            "{v} please",
            "i'd like it in {v}",
            "the {v} version",
            "show me this in {v}",
        ),
        ("do you have that one in {v}", "swap the colour for {v}"),
        "in {v}",
    ),
    "not colour": Phrases(
        (
            "not {v}",
            "anything but {v}",
            "any color but {v}",
            "the same one but not {v}",
            "not in {v} please",
            "i don't want it in {v}",
        ),
        ("a different colour than {v}", "it should not be {v}"),
    ),
    "darker": Phrases(
        (
            "darker",
            "make it darker",
            "a darker one",
            "the same one but darker",
            "in a darker shade",
            "a bit darker please",
        ),
        ("the darker version of this", "could it be a little darker"),
    ),
    "lighter": Phrases(
        (
            "lighter",
            "make it lighter",
            "a lighter one",
            "the same one but lighter",
            "in a lighter shade",
            "a bit lighter please",
        ),
        ("the lighter version of this", "could it be a little lighter"),
    ),
    "pattern": Phrases(
        (
            "with {v}",
            "make it {adj}",
            "the same one but {adj}",
            "the {adj} version",
            "i'd like it with {v}",
            "{adj} please",
            "with {v} on it",
        ),
        ("give it {v}", "do you have a {adj} one"),
        "with {v}",
    ),
    "plain": Phrases(
        (
            "make it plain",
            "a plain one",
            "the same one but plain",
            "plain please",
            "the plain version",
            "i'd like it plain",
            "with no pattern",
        ),
        ("do you have it plain", "show me one that is plain"),
        "without a pattern",
    ),
    "no pattern": Phrases(
        (
            "no {v}",
            "no {v} please",
            "without {v}",
            "the same one but no {v}",
            "remove the {v}",
            "i don't want {v}",
            "not {adj}",
        ),
        ("get rid of the {v}", "it should not have {v}"),
    ),
    "part": Phrases(
        (
            "with {a}",
            "make the {part} {v}",
            "{v} {part}",
            "{v} {part} please",
            "the same one but with {a}",
            "i'd like {a}",
        ),
        ("the {part} should be {v}", "do you have one with {a}"),
        "with {a}",
    ),
    "whole": Phrases(
        ("make it {v}", "a {v} one", "the {v} version", "the same one but {v}", "{v} please", "i'd like it {v}"),
        ("do you have a {v} one", "it should be {v}"),
        "in a {v} version",
    ),
    "part more": Phrases(
        (
            "{more} {part}",
            "with {amore}",
            "make the {part} {more}",
            "the same one but with {amore}",
            "{more} {part} please",
            "i'd like {amore}",
        ),
        ("the {part} should be {more}", "do you have one with {amore}"),
    ),
    "whole more": Phrases(
        ("{more}", "make it {more}", "a {more} one", "the same one but {more}", "{more} please", "i'd like it {more}"),
        ("do you have a {more} one", "it should be {more}"),
        "in a {more} version",
    ),
    "add": Phrases(
        (
            "with {a}",
            "add {a}",
            "the same one but with {a}",
            "i'd like it with {a}",
            "put {a} on it",
            "with {a} please",
        ),
        ("give it {a}", "do you have one with {a}"),
        "with {a}",
    ),
    "remove": Phrases(
        (
            "without the {v}",
            "no {v}",
            "remove the {v}",
            "the same one without {a}",
            "without {a} please",
            "i don't want the {v}",
        ),
        ("get rid of the {v}", "leave out the {v}"),
        "without {a}",
    ),
    "background": Phrases(
        (
            "on a {v} background",
            "with a {v} background",
            "change the background to {v}",
            "make the background {v}",
            "the same one on a {v} background",
            "{v} background please",
        ),
        ("the background should be {v}", "put it in front of a {v} background"),
        "on a {v} background",
    ),
    "category": Phrases(
        (
            "{a} instead",
            "turn it into {a}",
            "show me {a} like this",
            "the same but as {a}",
            "{a} like this one",
            "i'd like {a} in this style",
        ),
        ("do you have {a} that looks like this", "make {a} out of it"),
        "as {a}",
    ),
    "gender": Phrases(
        (
            "for {v}",
            "the {v} version",
            "the same one for {v}",
            "this for {v}",
            "for {v} please",
            "i need it for {v}",
            "made for {v}",
        ),
        ("do you have that one for {v}", "it should be for {v}"),
        "for {v}",
    ),
    "value": Phrases(
        (
            "{v} instead",
            "make it {v}",
            "the same one but {v}",
            "the {v} version",
            "{v} please",
            "i'd like it {v}",
            "change it to {v}",
        ),
        ("do you have a {v} one", "it should be {v}"),
        "in {v}",
    ),
}

DOUBLES = Phrases(
    (
        "{a} and {b}",
        "the same one {a} and {b}",
        "{a}, {b}",
        "i'd like it {a} and {b}",
        "this {a} and {b} please",
        "the same but {a} and also {b}",
    ),
    ("do you have that one {a} and {b}", "it should be {a}, also {b}"),
)

_SMALL_WORDS = frozenset({"the", "a", "an", "it", "one", "please"})


def with_article(noun: str) -> str:
    """Return `noun` with a or an; plurals (as a shop writes them: in -s, or sleeves-like) as they are.

    >>> with_article("collar"), with_article("orange mug"), with_article("shoes")
    ('a collar', 'an orange mug', 'shoes')
    """
    if noun.endswith("s") and not noun.endswith("ss"):
        return noun
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def phrases_of(edits: Sequence[Edit]) -> Phrases:
    """Return the phrasings of one or two edits, their fields still open."""
    return PHRASES[edits[0].phrases] if len(edits) == 1 else DOUBLES


def fill(template: str, edits: Sequence[Edit]) -> str:
    """Return a phrasing with the fields of its one or two edits."""
    if len(edits) == 1:
        return template.format_map(edits[0].fields)
    first, second = (PHRASES[edit.phrases].fragment.format_map(edit.fields) for edit in edits)
    return template.format(a=first, b=second)


def vary(text: str, chance: float) -> str:
    """Return the text as a hurried customer may type it; `chance` in [0, 1) decides: three in four stay as they are.

    One in eight loses its small words, one in eight gets a capital letter.
    """
    if chance >= 0.25:
        return text
    if chance >= 0.125:
        return text[:1].upper() + text[1:]
    kept = [word for word in text.split() if word not in _SMALL_WORDS]
    return " ".join(kept) or text
