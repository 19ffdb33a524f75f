"""Queries of several images, texts and exclusions about the drawn catalogue, with all their right answers.

`two-references`: two images that differ in two attributes, and an edit of a third. Right answers have
one of the two from either image and the value of the edit: "the shape of this, the colour of that",
or the reverse.
`several-edits`: two or three edits of one image, each a text of its own.
`minus`: an edit, and what must not be there. It is a word for what the reference has (kind `has`), or
for one of the answers that the text leaves open (`open`). Or it is an image that answers the text and
is excluded with all that look like it (`image`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nsfse.data.synthetic.edits import DETAILS, PATTERN_NOUNS, EditOption, edit_options, plain_edit
from nsfse.data.synthetic.items import ATTRIBUTES, FREE_WITH_CATEGORY, Allowed, AttributeCodes, Cluster, SyntheticItems
from nsfse.data.text.templates import Edit

PARTS = {"two-references": ("mixed",), "several-edits": ("three", "two"), "minus": ("has", "open", "image")}
"""Parts, each with its kinds of query."""
_CATEGORY = ATTRIBUTES.index("category")
_FREE = tuple(ATTRIBUTES.index(name) for name in FREE_WITH_CATEGORY)
_NAMED = tuple(ATTRIBUTES.index(name) for name in ("colour", "pattern", "detail"))


@dataclass(frozen=True, slots=True)
class CompoundQuery:
    """One query before its images are chosen: `references` and `negative_images` are the codes of one image each."""

    kind: str
    references: tuple[AttributeCodes, ...]
    edits: tuple[Edit, ...]
    """Edits, each with a text of its own."""
    targets: tuple[int, ...]
    """All items that answer."""
    hard: tuple[int, ...]
    """Items that nearly answer."""
    negative_texts: tuple[str, ...] = ()
    negative_images: tuple[AttributeCodes, ...] = ()


def compound_queries(
    catalogue: SyntheticItems, part: str, wanted: int, rng: np.random.Generator
) -> Iterator[CompoundQuery]:
    """Yield queries of a part in a random order, of each kind more than `wanted` where the catalogue has them."""
    make = {"two-references": _two_references, "several-edits": _several_edits, "minus": _exclusions}[part]
    limit = -(-2 * wanted // len(catalogue.clusters))
    for index in rng.permutation(len(catalogue.clusters)).tolist():
        cluster, left = catalogue.clusters[index], dict.fromkeys(PARTS[part], limit)
        corners = list(cluster.corners)
        pairs = [(corners[i], corners[j]) for i in range(len(corners)) for j in range(len(corners)) if i != j]
        for pair in rng.permutation(len(pairs)).tolist():
            for query in make(catalogue, cluster, *pairs[pair]):
                if left[query.kind]:
                    left[query.kind] -= 1
                    yield query
            if not any(left.values()):
                break


def _two_references(
    catalogue: SyntheticItems, cluster: Cluster, first: AttributeCodes, second: AttributeCodes
) -> Iterator[CompoundQuery]:
    differing = _differing(first, second)
    for goal in cluster.corners if len(differing) == 2 else ():
        changed = _differing(first, goal)
        if len(changed) == 1 and changed[0] not in differing and not _category_with_its_own((*differing, *changed)):
            (i, j), option = differing, edit_options(catalogue.level, first, goal)[0]
            mixed = [_fix(_fix(option.allowed, i, a[i]), j, b[j]) for a, b in ((first, second), (second, first))]
            yield _query(catalogue, "mixed", (first, second), option.edits, mixed)


def _several_edits(
    catalogue: SyntheticItems, _: Cluster, start: AttributeCodes, goal: AttributeCodes
) -> Iterator[CompoundQuery]:
    changed = _differing(start, goal)
    if len(changed) > 1 and not _category_with_its_own(changed):
        edits = tuple(plain_edit(catalogue.level, ATTRIBUTES[index], start, goal) for index in changed)
        free = _FREE if _CATEGORY in changed else ()
        allowed = tuple(_all(catalogue, index) if index in free else (code,) for index, code in enumerate(goal))
        yield _query(catalogue, ("two", "three")[len(changed) - 2], (start,), edits, [allowed])


def _exclusions(
    catalogue: SyntheticItems, _: Cluster, start: AttributeCodes, goal: AttributeCodes
) -> Iterator[CompoundQuery]:
    for option in edit_options(catalogue.level, start, goal) if len(_differing(start, goal)) == 1 else ():
        if option.kind in catalogue.level.kinds:
            yield from _excluded_words(catalogue, start, goal, option)
            yield from _excluded_image(catalogue, start, option)


def _excluded_words(
    catalogue: SyntheticItems, start: AttributeCodes, goal: AttributeCodes, option: EditOption
) -> Iterator[CompoundQuery]:
    """Yield queries with a word for what the reference has, or for what the text leaves open."""
    for index in _NAMED:
        changed, fixed = goal[index] != start[index], len(option.allowed[index]) == 1
        if changed and fixed:
            continue
        code = start[index] if fixed else option.allowed[index][-1]
        word = _word(catalogue, index, goal, code)
        values = _all(catalogue, index) if fixed else option.allowed[index]
        rest = tuple(value for value in values if value != code)
        if word:
            wanted, unwanted = (
                (*option.allowed[:index], codes, *option.allowed[index + 1 :]) for codes in (rest, (code,))
            )
            kind, hard = "has" if fixed else "open", catalogue.matching(unwanted)
            yield _query(catalogue, kind, (start,), option.edits, [wanted], hard, (word,))


def _excluded_image(catalogue: SyntheticItems, start: AttributeCodes, option: EditOption) -> Iterator[CompoundQuery]:
    """Yield queries with an image that answers the text; right are the answers that do not look like it."""
    answers = catalogue.matching(option.allowed)
    looks = list(dict.fromkeys(catalogue.codes[item] for item in answers))
    if len(looks) > 1:
        alike = tuple(item for item in answers if catalogue.codes[item] == looks[-1])
        rest = tuple(item for item in answers if item not in alike)
        hard = (*alike, *catalogue.near_misses(option.allowed))
        yield CompoundQuery("image", (start,), option.edits, rest, hard, negative_images=(looks[-1],))


def _query(
    catalogue: SyntheticItems,
    kind: str,
    references: tuple[AttributeCodes, ...],
    edits: tuple[Edit, ...],
    wanted: Sequence[Allowed],
    hard: Sequence[int] = (),
    negative_texts: tuple[str, ...] = (),
) -> CompoundQuery:
    targets = tuple(item for allowed in wanted for item in catalogue.matching(allowed))
    near = dict.fromkeys([*hard, *(item for allowed in wanted for item in catalogue.near_misses(allowed))])
    right = set(targets)
    rest = tuple(item for item in near if item not in right)
    return CompoundQuery(kind, references, edits, targets, rest, negative_texts)


def _word(catalogue: SyntheticItems, index: int, goal: AttributeCodes, code: int) -> str:
    """Return the word for a value of an attribute; empty where there is none."""
    name, value = ATTRIBUTES[index], catalogue.level.values[index][code]
    if name == "pattern":
        return "" if value == "plain" else PATTERN_NOUNS.get(value, value)
    if name == "detail":
        return DETAILS[catalogue.level.describe(goal)["category"]] if value == "with" else ""
    return value


def _differing(first: AttributeCodes, second: AttributeCodes) -> tuple[int, ...]:
    return tuple(index for index in range(len(first)) if first[index] != second[index])


def _category_with_its_own(changed: Sequence[int]) -> bool:
    """Whether a category changes together with what belongs to it."""
    return _CATEGORY in changed and any(index in _FREE for index in changed)


def _all(catalogue: SyntheticItems, index: int) -> tuple[int, ...]:
    return tuple(range(len(catalogue.level.values[index])))


def _fix(allowed: Allowed, index: int, code: int) -> Allowed:
    return (*allowed[:index], (code,), *allowed[index + 1 :])
