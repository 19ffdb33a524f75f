"""A shop's catalogue as a data set: a table of products with attributes, and images, become triplets.

Two products that are equal but for one attribute (or two) make two edits, one in each direction. Where the table says
which images show variants of one product (`group`), its variants make edits that keep the very product.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from nsfse.data import CheckReport, EvalQuery, EvaluationProtocol, Pixels, TrainingTriplet, WordLabel, load_item
from nsfse.data.datasets.catalogue_pairs import Change, Changes, Place, Value
from nsfse.data.datasets.file_index import broken_images, scan
from nsfse.data.datasets.items import MISSING_VALUES, RESERVED, ItemTable, read_items
from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.text.augmentation import VARIETY, Retelling
from nsfse.data.text.category_edits import category_edits
from nsfse.data.text.template_file import load_phrasings
from nsfse.data.text.templates import DOUBLE, Edit
from nsfse_runtime.errors import DataError, UsageError

NEGATED = {"colour": "not colour", "value": "not value"}
"""Kinds of edit that can also be told by what is not wanted any more."""
_MOST_VALUES = 200
_MOST_TARGETS = 1000
"""Of a shop's thousands of equal products a triplet names this many, so that an epoch fits in memory."""
_DETERMINED = 0.98
_HELD_OUT_EDITS = 6000  # most begin with a product that training shows, and are left out
_HELD_OUT_GALLERY = 6000
"""Among the held-out products alone the head has an easy time, and what is fitted there trusts it too much."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How triplets of two items are mixed.

    `changes` weighs the attributes; by default each by the root of how often it can change.

    `instance` is the share of edits within a group, `double` that of edits of two attributes. `balance` is the power
    of a value's count in how often it is asked for.
    """

    instance: float = 0.5
    double: float = 0.1
    balance: float = 0.5
    changes: Mapping[str, float] | None = None


class CatalogueSource:
    """Triplets from a folder with items.csv and images (as a query set has them; its queries.jsonl are the protocols).

    `attributes` are the columns that an edit keeps when it does not name them; `group` names products, `variant`
    the attribute that varies within one, `title` what a product is called, `recoloured` the share of triplets whose
    reference is the answer in other colours (docs/data.md). `phrasings` is a shipped language or a TOML file,
    `variety` the share of texts told anew, `negation` that of edits which name what is not wanted ("not red"),
    `held_out` that of products which no triplet shows. Raises NotFoundError, DataError and UsageError (unknown
    column, wrong share).
    """

    name = "catalogue"

    def __init__(
        self,
        folder: Path,
        *,
        table: str = "items.csv",
        images: Path | None = None,
        attributes: Sequence[str] | None = None,
        group: str | None = "group",
        title: str | None = "title",
        variant: str | None = None,
        split: str = "train",
        seed: int = 0,
        triplets: int = 60_000,
        instance: float = 0.5,
        double: float = 0.1,
        balance: float = 0.5,
        recoloured: float = 0.0,
        changes: Mapping[str, float] | None = None,
        phrasings: str = "en",
        variety: float = VARIETY,
        negation: float = 0.0,
        held_out: float = 0.0,
    ) -> None:
        if not (0 <= instance <= 1 and 0 <= double <= 1 and instance + double <= 1 and triplets > 0):
            raise UsageError("instance and double are shares of at most 1 together, and triplets is positive")
        if not 0 <= recoloured < 1:
            raise UsageError("recoloured is a share of all triplets: from 0 to less than 1")
        if not (0 <= variety <= 1 and 0 <= negation <= 1 and 0 <= held_out < 1):
            raise UsageError("variety, negation and held_out are shares, from 0 to 1")
        self._phrasings = load_phrasings(phrasings, ("value", DOUBLE, *(NEGATED.values() if negation else ())))
        self._variety, self._negation = variety, negation
        self._folder, self._images_folder, self._group = folder, images, group or "group"
        self._table = read_items(folder, table, images)
        self.images: Mapping[str, Path] = self._table.images
        self.missing = self._table.missing
        self.columns = _attributes(self._table, attributes, group, title)
        self._seed, self._count = seed, triplets
        training = (item for item in self._training_ids(split) if item in self.images)
        every = {item: self._table.rows[item] for item in training}
        self._values = {column: {row[column] for row in every.values()} for column in self.columns}
        mix, group = Mix(instance, double, balance, changes), group if group in self._table.columns else None
        aside = {item: row for item, row in every.items() if _chance((row[group] if group else "") or item) < held_out}
        self._rows: Mapping[str, Mapping[str, str]] = {item: row for item, row in every.items() if item not in aside}
        self.titles = {
            item: called
            for item, row in self._rows.items()
            if (called := row.get(title or "", "")) not in MISSING_VALUES
        }
        self._changes = self._mixed(mix, group, variant)
        self._recoloured = recoloured
        self._aside = self._beside_others(aside, mix, group, variant) if held_out else None
        self._coloured = self._items_of_colour() if recoloured else []

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    def attributes(self, item: str) -> dict[str, str]:
        """Return the attributes of a training item that are known."""
        row = self._rows[item]
        return {column: row[column] for column in self.columns if row[column] not in MISSING_VALUES}

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split whose images are there."""
        return tuple(item for item in self._table.of_split(split) if item in self.images)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the epoch's triplets: fresh pairs and texts, both directions of a pair adjacent."""
        rng = np.random.default_rng([4, self._seed, epoch])
        pairs = -(-self._count // 2)
        own = round(self._recoloured * pairs)
        shares = np.array([share for share, _, _ in self._changes])
        counts = rng.multinomial(pairs - own, shares / shares.sum()).tolist()
        drawn = [
            (kind, change)
            for (_, kind, changes), count in zip(self._changes, counts, strict=True)
            for change in changes.draw(count, rng)
        ]
        retelling = Retelling(self._phrasings, self._variety, self._seed, epoch)
        made: list[TrainingTriplet] = []
        for at, chances in zip(rng.permutation(pairs).tolist(), rng.random((pairs, 6)).tolist(), strict=True):
            if at >= len(drawn):
                made += [self._own_colour(part, retelling) for part in (chances[:3], chances[3:])]
                continue
            kind, change = drawn[at]
            made.append(self._triplet(kind, change, 0, 1, chances[:2], retelling))
            made.append(self._triplet(kind, change, 1, 0, chances[2:], retelling))
        return made[: self._count]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the protocols of the folder's queries.jsonl; empty where there is none."""
        if not (self._folder / "queries.jsonl").is_file():
            return []
        return QuerySetSource(self._folder, images=self._images_folder, group=self._group).protocols(split)

    def calibration_split(self) -> EvaluationProtocol | None:
        """Return edits of products of the training split that no triplet shows; None without `held_out`.

        Their answers are such products, too; the rest of the gallery are others, up to a shop's shelf of them.
        """
        if self._aside is None:
            return None
        queries = []
        for triplet in self._aside.triplets(0):
            right = sorted(triplet.targets, key=self._rows.__contains__)  # those that no triplet shows come first
            if triplet.reference not in self._rows and right[0] not in self._rows:
                queries.append(replace(triplet.as_query(), targets=tuple(right)))
        return EvaluationProtocol("held out", "1", tuple(self._aside._rows), tuple(queries))

    def category_edits(self, gallery: Sequence[str], count: int) -> tuple[EvalQuery, ...]:
        """Return queries that exclude or replace the category (see nsfse.data.text.category_edits).

        None where no attribute is said as a category.
        """
        kinds = self._phrasings.columns
        column = next((name for name in self.columns if kinds.get(name.lower()) == "category"), None)
        if column is None:
            return ()
        known = {item: {name: self._table.rows[item][name] for name in self.columns} for item in gallery}
        known = {item: about for item, about in known.items() if MISSING_VALUES.isdisjoint(about.values())}
        return category_edits(known, column, (), self._phrasings, count)

    def check(self) -> CheckReport:
        """Count items and decode every image."""
        splits = dict.fromkeys(self._table.splits.values())
        counts = {f"{split or 'all'}.found": len(self.items(split)) for split in splits}
        expected = {f"{split or 'all'}.found": len(self._table.of_split(split)) for split in splits}
        layout = scan(self._images_folder or self._folder)
        broken = broken_images(list(self.images.values()), layout, self._table.dead)
        note = f"attributes: {', '.join(self.columns)}"
        return CheckReport(self.name, counts, expected, self.missing, broken, (note,), (), layout.skipped)

    def _training_ids(self, split: str) -> tuple[str, ...]:
        """Return the ids of the training split; all where the table names no splits."""
        if not any(self._table.splits.values()):
            return self._table.of_split("")
        ids = self._table.of_split(split)
        if not ids:
            raise DataError(f"{self._table.file} has no items of split {split!r}; name one that it has")
        return ids

    def _beside_others(
        self, aside: Mapping[str, Mapping[str, str]], mix: Mix, group: str | None, variant: str | None
    ) -> "CatalogueSource":
        """Return this source with the items `aside` and an even choice of its own; `aside` must make edits alone."""
        self._of_items(aside, mix, group, variant)
        others = list(self._rows)[:: -(-len(self._rows) // max(1, _HELD_OUT_GALLERY - len(aside)))]
        return self._of_items({**aside, **{item: self._rows[item] for item in others}}, mix, group, variant)

    def _of_items(
        self, rows: Mapping[str, Mapping[str, str]], mix: Mix, group: str | None, variant: str | None
    ) -> "CatalogueSource":
        """Return this source with the items `rows` in place of its own, without recoloured references."""
        found = copy(self)
        found._rows, found._recoloured, found._count = rows, 0.0, min(self._count, _HELD_OUT_EDITS)
        try:
            found._changes = found._mixed(mix, group, variant)
        except DataError:
            told = (
                f"held_out keeps {len(rows)} items of {self._table.file} apart: too few to make edits; give more, or 0"
            )
            raise UsageError(told) from None
        return found

    def _items_of_colour(self) -> list[tuple[str, str, str]]:
        """Return (item, colour column, colour) of every training item whose colour is known."""
        kinds = self._phrasings.columns
        column = next((c for c in self.columns if kinds.get(c.lower()) == "colour"), None)
        if column is None:
            raise UsageError(f"recoloured needs a colour among the attributes; there are: {', '.join(self.columns)}")
        return [(item, column, row[column]) for item, row in self._rows.items() if row[column] not in MISSING_VALUES]

    def _own_colour(self, chances: Sequence[float], retelling: Retelling) -> TrainingTriplet:
        """Ask for an item by its colour, the reference being the item itself in other colours."""
        item, column, colour = self._coloured[int(chances[0] * len(self._coloured))]
        edit = self._edit(column, colour)
        seen = int(chances[1] * len(self._phrasings.phrases_of([edit]).seen))
        text, typos = retelling.tell([edit], seen, chances[2])
        recolour_seed = 1 + int(retelling.random.random() * 2**31)
        word_labels = (WordLabel(column, edit.words, column, (colour,)),)
        return TrainingTriplet(item, text, (item,), "recoloured", word_labels, typos, recolour_seed)

    def _triplet(
        self, kind: str, change: Change, start: int, end: int, chances: Sequence[float], retelling: Retelling
    ) -> TrainingTriplet:
        edits = [self._edit(column, value) for column, value in zip(change.columns, change.values[end], strict=True)]
        targets = change.answers(end, _MOST_TARGETS)
        values: list[tuple[str, ...]] = [(value,) for value in change.values[end]]
        if self._negation and self._negates(edits) and retelling.random.random() < self._negation:
            kind, edits = "negation", [self._edit(change.columns[0], change.values[start][0], negated=True)]
            targets = change.all_but(start, _MOST_TARGETS)
            values = [tuple(self._values[change.columns[0]] - {change.values[start][0]})]
        seen = int(chances[0] * len(self._phrasings.phrases_of(edits).seen))
        text, typos = retelling.tell(edits, seen, chances[1])
        word_labels = tuple(
            WordLabel(edit.attribute, edit.words, edit.attribute, asked, edit.absent)
            for edit, asked in zip(edits, values, strict=True)
        )
        return TrainingTriplet(change.item(start), text, targets, kind, word_labels, typos)

    def _edit(self, column: str, value: str, negated: bool = False) -> Edit:
        edit = self._phrasings.edit_to(column, value)
        return replace(edit, phrases=NEGATED[edit.phrases]) if negated else edit

    def _negates(self, edits: Sequence[Edit]) -> bool:
        return len(edits) == 1 and edits[0].phrases in NEGATED

    def _mixed(self, mix: Mix, group: str | None, variant: str | None) -> list[tuple[float, str, Changes]]:
        """Return (share, kind, changes) of everything that can be drawn; shares are relative."""
        weights = mix.changes or dict.fromkeys(self.columns, 0.0)
        for column in (*weights, *([variant] if variant else [])):
            if column not in self.columns:
                raise UsageError(f"no attribute {column!r}; there are: {', '.join(self.columns)}")
        singles = self._shared(1 - mix.instance - mix.double, "attribute", list(weights), 1, mix)
        doubles = self._shared(mix.double, "double", list(weights), 2, mix)
        instances = []
        if group and mix.instance:
            column = variant or self._variant(group)
            changes = Changes((column,), self._places((column,), lambda row: row[group]), mix.balance)
            instances = [(mix.instance, "instance", changes)] if changes.total else []
        found = [entry for entry in (*instances, *singles, *doubles) if entry[0] > 0]
        if not found:
            raise DataError(f"{self._table.file} has no two items that differ in one attribute alone; see its columns")
        return found

    def _shared(
        self, share: float, kind: str, columns: list[str], size: int, mix: Mix
    ) -> list[tuple[float, str, Changes]]:
        """Return the changes of every `size` columns, `share` divided among those that can happen."""
        if share <= 0:
            return []
        found = []
        for chosen in combinations(columns, size):
            kept = [column for column in self.columns if column not in chosen]
            places = self._places(chosen, lambda row, kept=kept: tuple(row[column] for column in kept))  # type: ignore[misc]
            changes = Changes(chosen, places, mix.balance)
            weight = np.prod([mix.changes[column] for column in chosen]) if mix.changes else changes.total**0.5
            if changes.total:
                found.append((float(weight), changes))
        whole = sum(weight for weight, _ in found)
        return [(share * weight / whole, kind, changes) for weight, changes in found if weight > 0]

    def _places(self, columns: tuple[str, ...], key: Callable[[Mapping[str, str]], Any]) -> list[Place]:
        """Return the items of each key by their values of `columns`; those with a missing value left out."""
        places: dict[Any, dict[Value, list[str]]] = defaultdict(lambda: defaultdict(list))
        for item, row in self._rows.items():
            value = tuple(row[column] for column in columns)
            where = key(row)
            if where not in MISSING_VALUES and not MISSING_VALUES.intersection(value):
                places[where][value].append(item)
        return [{value: tuple(items) for value, items in place.items()} for place in places.values() if len(place) > 1]

    def _variant(self, group: str) -> str:
        """Return the attribute that varies within most groups."""
        return max(self.columns, key=lambda column: len(self._places((column,), lambda row: row[group])))


def _chance(name: str) -> float:
    """Return a number in 0...1 of a name, always the same."""
    return crc32(name.encode()) / 2**32


def _attributes(table: ItemTable, named: Sequence[str] | None, group: str | None, title: str | None) -> tuple[str, ...]:
    """Return the attribute columns: those named, or every one of few values that no other column determines."""
    told = [column for column, usual in ((group, "group"), (title, "title")) if column and column != usual]
    for column in (*(named or ()), *told):
        if column not in table.columns:
            raise UsageError(f"{table.file} has no column {column!r}; it has: {', '.join(table.columns)}")
    if named:
        return tuple(dict.fromkeys(named))
    rows = list(table.rows.values())
    few = []
    for column in table.columns:
        values = {row[column] for row in rows}
        if column not in (*RESERVED, group, title) and 1 < len(values) <= min(_MOST_VALUES, max(2, len(rows) // 3)):
            few.append((len(values), column))
    finest = [column for _, column in sorted(few, reverse=True)]
    kept = [c for i, c in enumerate(finest) if not any(_determines(rows, other, c) for other in finest[:i])]
    if not kept:
        raise DataError(f"{table.file} has no column of few values to make edits from; name some (attributes)")
    return tuple(column for column in table.columns if column in kept)


def _determines(rows: Sequence[Mapping[str, str]], finer: str, coarser: str) -> bool:
    """Whether a value of `finer` nearly always has one value of `coarser`, as an article has its department."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counts[row[finer]][row[coarser]] += 1
    most = max(sum(found.get(value, 0) for found in counts.values()) for value in {row[coarser] for row in rows})
    agreeing = sum(max(found.values()) for found in counts.values())
    return agreeing >= _DETERMINED * len(rows) and most < _DETERMINED * len(rows)
