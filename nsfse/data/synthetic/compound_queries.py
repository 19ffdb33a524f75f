"""Questions of several images, texts and exclusions about the drawn catalogue, with all their right answers.

`two-references`: two images that differ in two attributes, and an edit of a third. Right is what has one of the two
from either image ("the shape of this, the colour of that", or the other way round) and what the text asks for.
`several-edits`: two or three edits of one image, each a text of its own.
`minus`: an edit, and what must not be there: a word for what the reference has (kind `has`) or for one of the
answers that the text leaves open (`open`), or an image that answers the text and is not wanted, nor its like (`image`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nsfse.data.synthetic.edits import DETAILS, PATTERN_NOUNS, Option, options, plain_edit
from nsfse.data.synthetic.items import ATTRIBUTES, FREE_WITH_CATEGORY, Allowed, Cluster, Codes, Stock
from nsfse.data.text.templates import Edit

PARTS = {"two-references": ("mixed",), "several-edits": ("three", "two"), "minus": ("has", "open", "image")}
"""Parts, each with its kinds of question."""
_CATEGORY = ATTRIBUTES.index("category")
_FREE = tuple(ATTRIBUTES.index(name) for name in FREE_WITH_CATEGORY)
_NAMED = tuple(ATTRIBUTES.index(name) for name in ("colour", "pattern", "detail"))


@dataclass(frozen=True, slots=True)
class Question:
    """One question about items of a stock: `references` and `negative_images` hold, for each image, the codes it has.

    `edits` are asked in a text each; `right` are all items that answer, `hard` some that nearly do.
    """

    kind: str
    references: tuple[Codes, ...]
    edits: tuple[Edit, ...]
    right: tuple[int, ...]
    hard: tuple[int, ...]
    negative_texts: tuple[str, ...] = ()
    negative_images: tuple[Codes, ...] = ()


def questions(stock: Stock, part: str, wanted: int, rng: np.random.Generator) -> Iterator[Question]:
    """Yield questions of a part in a random order, of each kind more than `wanted` where the stock has them."""
    ask = {"two-references": _two_references, "several-edits": _several_edits, "minus": _minus}[part]
    most = -(-2 * wanted // len(stock.clusters))
    for at in rng.permutation(len(stock.clusters)).tolist():
        cluster, left = stock.clusters[at], dict.fromkeys(PARTS[part], most)
        corners = list(cluster.corners)
        ways = [(corners[i], corners[j]) for i in range(len(corners)) for j in range(len(corners)) if i != j]
        for way in rng.permutation(len(ways)).tolist():
            for question in ask(stock, cluster, *ways[way]):
                if left[question.kind]:
                    left[question.kind] -= 1
                    yield question
            if not any(left.values()):
                break


def _two_references(stock: Stock, cluster: Cluster, one: Codes, other: Codes) -> Iterator[Question]:
    apart = _differing(one, other)
    for goal in cluster.corners if len(apart) == 2 else ():
        changed = _differing(one, goal)
        if len(changed) == 1 and changed[0] not in apart and not _belongs((*apart, *changed)):
            (i, j), option = apart, options(stock.level, one, goal)[0]
            mixed = [_set(_set(option.allowed, i, a[i]), j, b[j]) for a, b in ((one, other), (other, one))]
            yield _question(stock, "mixed", (one, other), option.edits, mixed)


def _several_edits(stock: Stock, _: Cluster, start: Codes, goal: Codes) -> Iterator[Question]:
    changed = _differing(start, goal)
    if len(changed) > 1 and not _belongs(changed):
        edits = tuple(plain_edit(stock.level, ATTRIBUTES[at], start, goal) for at in changed)
        free = _FREE if _CATEGORY in changed else ()
        allowed = tuple(_all(stock, at) if at in free else (code,) for at, code in enumerate(goal))
        yield _question(stock, ("two", "three")[len(changed) - 2], (start,), edits, [allowed])


def _minus(stock: Stock, _: Cluster, start: Codes, goal: Codes) -> Iterator[Question]:
    for option in options(stock.level, start, goal) if len(_differing(start, goal)) == 1 else ():
        if option.kind in stock.level.kinds:
            yield from _minus_words(stock, start, goal, option)
            yield from _minus_image(stock, start, option)


def _minus_words(stock: Stock, start: Codes, goal: Codes, option: Option) -> Iterator[Question]:
    """Yield questions with a word for what the reference has, or for what the text leaves open."""
    for at in _NAMED:
        changed, still = goal[at] != start[at], len(option.allowed[at]) == 1
        if changed and still:
            continue
        code = start[at] if still else option.allowed[at][-1]
        word = _word(stock, at, goal, code)
        values = _all(stock, at) if still else option.allowed[at]
        rest = tuple(value for value in values if value != code)
        if word:
            kind = "has" if still else "open"
            wanted, unwanted = ((*option.allowed[:at], v, *option.allowed[at + 1 :]) for v in (rest, (code,)))
            yield _question(stock, kind, (start,), option.edits, [wanted], stock.matching(unwanted), (word,))


def _minus_image(stock: Stock, start: Codes, option: Option) -> Iterator[Question]:
    """Yield questions with an image that answers the text; right are the answers that are not as it is."""
    answers = stock.matching(option.allowed)
    looks = list(dict.fromkeys(stock.codes[item] for item in answers))
    if len(looks) > 1:
        like = tuple(item for item in answers if stock.codes[item] == looks[-1])
        rest = tuple(item for item in answers if item not in like)
        hard = (*like, *stock.one_off(option.allowed))
        yield Question("image", (start,), option.edits, rest, hard, negative_images=(looks[-1],))


def _question(
    stock: Stock,
    kind: str,
    references: tuple[Codes, ...],
    edits: tuple[Edit, ...],
    wanted: Sequence[Allowed],
    hard: Sequence[int] = (),
    negative_texts: tuple[str, ...] = (),
) -> Question:
    right = tuple(item for allowed in wanted for item in stock.matching(allowed))
    near = dict.fromkeys([*hard, *(item for allowed in wanted for item in stock.one_off(allowed))])
    return Question(
        kind, references, edits, right, tuple(item for item in near if item not in set(right)), negative_texts
    )


def _word(stock: Stock, at: int, goal: Codes, code: int) -> str:
    """Return the word for a value of an attribute, where there is one for its being there."""
    name, value = ATTRIBUTES[at], stock.level.values[at][code]
    if name == "pattern":
        return "" if value == "plain" else PATTERN_NOUNS.get(value, value)
    if name == "detail":
        return DETAILS[stock.level.describe(goal)["category"]] if value == "with" else ""
    return value


def _differing(one: Codes, other: Codes) -> tuple[int, ...]:
    return tuple(at for at in range(len(one)) if one[at] != other[at])


def _belongs(changed: Sequence[int]) -> bool:
    """Whether a category changes together with what belongs to it."""
    return _CATEGORY in changed and any(at in _FREE for at in changed)


def _all(stock: Stock, at: int) -> tuple[int, ...]:
    return tuple(range(len(stock.level.values[at])))


def _set(allowed: Allowed, at: int, code: int) -> Allowed:
    return (*allowed[:at], (code,), *allowed[at + 1 :])
