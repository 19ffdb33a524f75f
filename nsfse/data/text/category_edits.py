"""Queries that exclude or replace the kind of thing itself ("not a bag", "a shoe instead of the bag").

No training text says so, and no benchmark asks it; what tells a match is fitted to some of them, so that a model which
does not follow them is not sure of what it finds (docs/method.md §10).
"""

from collections.abc import Collection, Mapping
from itertools import cycle

from nsfse.data import EvalQuery
from nsfse.data.text.templates import Edit, Phrasings

EXCLUDED, REPLACED = "not category", "category over"
"""Kinds of phrasings, of which training says none."""


def category_edits(
    items: Mapping[str, Mapping[str, str]], column: str, free: Collection[str], phrasings: Phrasings, count: int
) -> tuple[EvalQuery, ...]:
    """Return up to `count` queries about a gallery, both kinds alike, spread evenly over its images.

    `items` maps each id to its attributes, of which `column` is the kind of thing, and those of `free` may be any in
    another kind. Right are the images of another kind, or of the one asked for, that keep the rest; there may be none.
    Empty where the phrasings have no such kinds, or all things are of one.
    """
    kinds = list(dict.fromkeys(about[column] for about in items.values() if about.get(column)))
    ways = [kind for kind in (EXCLUDED, REPLACED) if kind in phrasings.kinds]
    if len(kinds) < 2 or not ways or not count:
        return ()
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for item, about in items.items():
        alike.setdefault(_kept(about, column, free), []).append(item)
    texts = {way: cycle((*phrasings.kinds[way].seen, *phrasings.kinds[way].more)) for way in ways}
    known = [item for item, about in items.items() if about.get(column)]
    found = []
    for number, reference in enumerate(known[:: -(-len(known) // count)]):
        way, old = ways[number % len(ways)], items[reference][column]
        others = [kind for kind in kinds if kind != old]
        new = others[number // len(ways) % len(others)]
        edit = _edit(column, way, old, new)
        wanted = {new} if way == REPLACED else set(others)
        right = [item for item in alike[_kept(items[reference], column, free)] if items[item].get(column) in wanted]
        text = phrasings.fill(next(texts[way]), (edit,))
        found.append(EvalQuery(reference, (text,), tuple(right), kind=way))
    return tuple(found)


def _kept(about: Mapping[str, str], column: str, free: Collection[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in about.items() if name != column and name not in free)


def _edit(column: str, way: str, old: str, new: str) -> Edit:
    old, new = (value.lower().replace("_", " ") for value in (old, new))
    named = new if way == REPLACED else old
    return Edit(column, way, {"v": named, "a": named, "many": plural(named), "old": old}, tuple(named.split()))


def plural(noun: str) -> str:
    """Return an English noun's plural; one in -s is taken for one (shoes, trousers), but for those in -ss."""
    if noun.endswith(("ss", "x", "ch", "sh")):
        return f"{noun}es"
    return noun if noun.endswith("s") else f"{noun}s"
