"""The items of the drawn catalogue: its levels, their exact attributes, and which items an edit allows.

Items come in clusters: three attributes with two values each span a cube, and each of its eight corners is drawn
twice with other nuisances. So every edit within a cluster has its right answer, and items that are
right but for one attribute. It also has a near copy of the reference that only the text rules out.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nsfse.data.synthetic.render import BACKGROUNDS, COLOURS, LENGTHS, MILD, PATTERNS, SIZES, STRONG, Nuisance
from nsfse.data.synthetic.shapes import SHAPES

ATTRIBUTES = ("category", "colour", "pattern", "length", "detail", "size", "background")
FREE_WITH_CATEGORY = ("length", "detail")
"""Attributes that belong to a category (sleeves, handle): another category may have any of them."""
SPLITS = {"train": 0, "val": 1, "test": 2}
"""Splits, with the number by which each is seeded."""
COPIES = 2
_CLUSTER_WEIGHTS = np.array([1.2, 2.5, 1.5, 1.5, 1.2, 0.8, 0.8])

AttributeCodes = tuple[int, ...]
Allowed = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Level:
    """One setting of the benchmark: the values each attribute takes, how images vary, which edits there are."""

    name: str
    values: tuple[tuple[str, ...], ...]
    nuisance: Nuisance
    kinds: tuple[str, ...]
    train_items: int
    gallery: int
    queries_per_kind: int

    def describe(self, codes: Sequence[int]) -> dict[str, str]:
        """Return the attributes that `codes` stand for."""
        return {name: values[code] for name, values, code in zip(ATTRIBUTES, self.values, codes, strict=True)}


_DETAILS = ("without", "with")
STANDARD = Level(
    "standard",
    (tuple(SHAPES), tuple(COLOURS), PATTERNS, tuple(LENGTHS), _DETAILS, tuple(SIZES), tuple(BACKGROUNDS)),
    STRONG,
    ("single", "double", "negation", "comparison", "removal", "category"),
    train_items=24_000,
    gallery=4_000,
    queries_per_kind=200,
)
EASY = Level(
    "easy",
    (
        ("shirt", "dress", "trousers", "bag", "shoe", "mug"),
        ("red", "green", "blue", "yellow", "purple", "brown", "black", "white"),
        ("plain", "stripes", "dots", "checks"),
        ("short", "long"),
        _DETAILS,
        ("large",),
        ("white",),
    ),
    MILD,
    ("single", "negation", "removal", "category"),
    train_items=8_000,
    gallery=800,
    queries_per_kind=120,
)
LEVELS = {level.name: level for level in (STANDARD, EASY)}


@functools.cache
def is_unseen_combination(category: str, colour: str, pattern: str) -> bool:
    """Return whether training never sees a combination: one in ten, by its hash, the same at every level."""
    digest = hashlib.sha256(f"{category}|{colour}|{pattern}".encode()).digest()
    return digest[0] * 256 + digest[1] < 6554


@dataclass(frozen=True, slots=True)
class Cluster:
    """The items of one cube: `corners` maps the codes of each corner to its items."""

    corners: dict[AttributeCodes, tuple[int, ...]]

    def pairs(self, differing: int) -> list[tuple[AttributeCodes, AttributeCodes]]:
        """Return the pairs of corners that differ in so many attributes."""
        pairs = itertools.combinations(self.corners, 2)
        return [(a, b) for a, b in pairs if sum(x != y for x, y in zip(a, b, strict=True)) == differing]


class SyntheticItems:
    """The items of one split: `codes` [N, 7], their clusters, and lookup by what is allowed."""

    def __init__(self, level: Level, items: int, seed: Sequence[int], *, training: bool) -> None:
        self.level = level
        self.codes: list[AttributeCodes] = []
        self.clusters: list[Cluster] = []
        rng = np.random.default_rng([1, *seed])
        while len(self.codes) < items:
            corners = _cube(level, rng)
            if training:
                corners = [codes for codes in corners if not self.is_unseen(codes)]
            self._add(corners, items)
        self.image_seeds: NDArray[np.int64] = rng.integers(0, 2**62, items)
        self._by_codes: dict[AttributeCodes, list[int]] = {}
        for item, codes in enumerate(self.codes):
            self._by_codes.setdefault(codes, []).append(item)

    def _add(self, corners: Iterable[AttributeCodes], items: int) -> None:
        cluster: dict[AttributeCodes, tuple[int, ...]] = {}
        for codes in corners:
            first = len(self.codes)
            self.codes += [codes] * min(COPIES, items - first)
            if len(self.codes) > first:
                cluster[codes] = tuple(range(first, len(self.codes)))
        self.clusters.append(Cluster(cluster))

    def is_unseen(self, codes: AttributeCodes) -> bool:
        """Return whether training never sees the item's category, colour and pattern together."""
        category, colour, pattern = (self.level.values[i][codes[i]] for i in range(3))
        return is_unseen_combination(category, colour, pattern)

    def matching(self, allowed: Allowed) -> list[int]:
        """Return the items whose every attribute is allowed, first values first."""
        groups = (self._by_codes.get(codes, ()) for codes in itertools.product(*allowed))
        return [item for group in groups for item in group]

    def near_misses(self, allowed: Allowed) -> list[int]:
        """Return the items that are allowed but for exactly one attribute."""
        items: list[int] = []
        for i, values in enumerate(allowed):
            others = tuple(code for code in range(len(self.level.values[i])) if code not in values)
            items += self.matching((*allowed[:i], others, *allowed[i + 1 :]))
        return items


def item_id(split: str, number: int) -> str:
    """Return the id of a drawn image."""
    return f"{split}-{number:06d}"


def _cube(level: Level, rng: np.random.Generator) -> list[AttributeCodes]:
    """Return the eight corners of a new cluster, in a random order of its attributes."""
    counts = [len(values) for values in level.values]
    anchor = [int(rng.integers(count)) for count in counts]
    weights = np.where(np.array(counts) > 1, _CLUSTER_WEIGHTS, 0.0)
    chosen = rng.choice(len(counts), size=3, replace=False, p=weights / weights.sum())
    choices = [(code,) for code in anchor]
    for i in chosen:
        choices[i] = (anchor[i], _other_value(level, int(i), anchor[i], rng))  # type: ignore[assignment]
    return [tuple(codes) for codes in itertools.product(*choices)]


def _other_value(level: Level, attribute: int, code: int, rng: np.random.Generator) -> int:
    """Return another value; half the time one that negation or comparison can name (plain, the next shade)."""
    count = len(level.values[attribute])
    name = ATTRIBUTES[attribute]
    if rng.random() < 0.5:
        if name == "pattern" and code != 0:
            return 0
        if name == "colour":
            near = [level.values[attribute].index(c) for c in _shades_near(level.values[attribute], code)]
            if near:
                return int(rng.choice(near))
    return int((code + rng.integers(1, count)) % count)


ORDERED_SHADES = (
    ("dark red", "red", "pink"),
    ("dark green", "green", "light green"),
    ("navy", "blue", "light blue"),
    ("black", "grey", "white"),
    ("brown", "beige"),
)
"""Shades of one hue, dark to light: what darker and lighter mean."""


def _shades_near(colours: tuple[str, ...], code: int) -> list[str]:
    for shades in ORDERED_SHADES:
        if colours[code] in shades:
            place = shades.index(colours[code])
            return [c for c in shades[max(0, place - 1) : place + 2] if c != colours[code] and c in colours]
    return []
