"""Queries that exclude or replace the category ("not a bag", "a shoe instead of the bag").

No training text has these, and no benchmark. Confidence is fitted to some of them, so that a model which does not
follow them is not sure of what it finds (docs/method.md §10).
"""

from collections.abc import Collection, Mapping
from itertools import cycle

from nsfse.data import EvalQuery
from nsfse.data.text.templates import Edit, TemplateSet

EXCLUDED, REPLACED = "not category", "category over"
"""Kinds of edit that training has none of."""


def category_edits(
    items: Mapping[str, Mapping[str, str]], column: str, free: Collection[str], templates: TemplateSet, count: int
) -> tuple[EvalQuery, ...]:
    """Return queries about a gallery, both kinds alike, spread evenly over its images.

    Right are the images of another category, or of the one requested, with the other attributes unchanged.

    Args:
        items: The gallery's images by id, each with its attributes.
        column: The attribute that is the category.
        free: Attributes that may have any value in another category.
        templates: The language.
        count: How many queries at most.

    Returns:
        The queries; some may have no target. Empty where the language has no such templates, or all images are of one
        category.
    """
    categories = list(dict.fromkeys(values[column] for values in items.values() if values.get(column)))
    kinds = [kind for kind in (EXCLUDED, REPLACED) if kind in templates.kinds]
    if len(categories) < 2 or not kinds or not count:
        return ()
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for item, values in items.items():
        alike.setdefault(_others(values, column, free), []).append(item)
    texts = {kind: cycle((*templates.kinds[kind].base, *templates.kinds[kind].extra)) for kind in kinds}
    known = [item for item, values in items.items() if values.get(column)]
    queries = []
    for number, reference in enumerate(known[:: -(-len(known) // count)]):
        kind, old = kinds[number % len(kinds)], items[reference][column]
        others = [category for category in categories if category != old]
        new = others[number // len(kinds) % len(others)]
        wanted = {new} if kind == REPLACED else set(others)
        same = alike[_others(items[reference], column, free)]
        targets = tuple(item for item in same if items[item].get(column) in wanted)
        said = (templates.said(column, value) for value in (old, new))
        text = templates.fill(next(texts[kind]), (_edit(column, kind, *said),))
        queries.append(EvalQuery(reference, (text,), targets, kind=kind))
    return tuple(queries)


def _others(values: Mapping[str, str], column: str, free: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Return the attributes that must stay."""
    return tuple((name, value) for name, value in values.items() if name != column and name not in free)


def _edit(column: str, kind: str, old: str, new: str) -> Edit:
    named = new if kind == REPLACED else old
    return Edit(column, kind, {"v": named, "a": named, "many": plural(named), "old": old}, tuple(named.split()))


def plural(noun: str) -> str:
    """Return an English noun's plural; one in -s counts as one (shoes, trousers), but for those in -ss."""
    if noun.endswith(("ss", "x", "ch", "sh")):
        return f"{noun}es"
    return noun if noun.endswith("s") else f"{noun}s"
