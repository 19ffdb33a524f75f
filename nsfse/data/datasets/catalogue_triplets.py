"""Triplets of a catalogue's items: pairs that differ in one attribute or two, with texts that name the difference."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nsfse.data import EvaluationProtocol, TrainingTriplet, WordLabel
from nsfse.data.datasets.catalogue_options import CatalogueOptions
from nsfse.data.datasets.catalogue_pairs import AttributeGroup, ItemPair, PairSampler, Value
from nsfse.data.datasets.items import MISSING_VALUES
from nsfse.data.text.augmentation import TextAugmenter
from nsfse.data.text.templates import Edit, TemplateSet
from nsfse.data.text.voices import VoiceSet
from nsfse_runtime.errors import DataError, UsageError

NOT_VALUE = "not value"
NEGATED = {"colour": "not colour", "value": NOT_VALUE}
"""Kinds of edit that can also name what is not wanted any more."""
_MAX_TARGETS = 1000
"""Of a shop's thousands of equal products a triplet names this many, so that an epoch fits in memory."""
_MAX_CALIBRATION_EDITS = 6000  # most begin with a product that training shows, and are left out
_CALIBRATION_GALLERY = 6000
"""Among the held-out products alone the head has an easy time, and what is fitted there trusts it too much."""

Rows = Mapping[str, Mapping[str, str]]
"""Items by id, each with its values by column."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What edits of a catalogue can name, the same for each choice of its items."""

    file: Path
    columns: tuple[str, ...]
    """The attributes."""
    values: Mapping[str, frozenset[str]]
    """The values of each attribute."""
    group: str | None
    """The column that names products, where the table has one."""
    templates: TemplateSet
    voices: VoiceSet | None = None


class TripletSampler:
    """Draws triplets among some items of a catalogue.

    Raises:
        DataError: No two items differ in one attribute alone.
        UsageError: An option names a column that is no attribute.
    """

    def __init__(self, rows: Rows, schema: Schema, options: CatalogueOptions) -> None:
        self._rows, self._schema, self._options = rows, schema, options
        self._unnamed = MISSING_VALUES.union(options.unnamed_values)
        self._samplers = self._pair_samplers()
        self._coloured = self._items_of_colour() if options.recolour_prob else []

    def triplets(self, epoch: int, count: int) -> list[TrainingTriplet]:
        """Return `count` triplets of an epoch: fresh pairs and texts, both directions of a pair side by side."""
        options = self._options
        rng = np.random.default_rng([4, options.seed, epoch])
        pairs = -(-count // 2)
        recoloured = round(options.recolour_prob * pairs)
        shares = np.array([share for share, _, _ in self._samplers])
        counts = rng.multinomial(pairs - recoloured, shares / shares.sum()).tolist()
        drawn = [
            (kind, pair)
            for (_, kind, sampler), count in zip(self._samplers, counts, strict=True)
            for pair in sampler.draw(count, rng)
        ]
        augmenter = TextAugmenter(
            self._schema.templates, options.augment_prob, options.seed, epoch, self._schema.voices, options.voice_ratio
        )
        triplets: list[TrainingTriplet] = []
        for index, chances in zip(rng.permutation(pairs).tolist(), rng.random((pairs, 6)).tolist(), strict=True):
            if index >= len(drawn):
                triplets += [self._recoloured(part, augmenter) for part in (chances[:3], chances[3:])]
                continue
            kind, pair = drawn[index]
            triplets.append(self._triplet(kind, pair, 0, chances[:2], augmenter))
            triplets.append(self._triplet(kind, pair, 1, chances[2:], augmenter))
        return triplets[:count]

    def _triplet(
        self, kind: str, pair: ItemPair, start: int, chances: Sequence[float], augmenter: TextAugmenter
    ) -> TrainingTriplet:
        """Return the triplet from side `start` of a pair to the other."""
        end, templates = 1 - start, self._schema.templates
        edits = [templates.edit_to(column, value) for column, value in zip(pair.columns, pair.values[end], strict=True)]
        targets = pair.answers(end, _MAX_TARGETS)
        allowed: list[tuple[str, ...]] = [(value,) for value in pair.values[end]]
        past = self._edit_back(pair, start)
        share, negatable = self._options.negation_ratio, len(edits) == 1 and edits[0].kind in NEGATED
        if share and negatable and augmenter.random.random() < share:
            (column,), (old,) = pair.columns, pair.values[start]
            edit = templates.edit_to(column, old)
            kind, edits = "negation", [replace(edit, kind=NEGATED[edit.kind])]
            targets = pair.all_but(start, _MAX_TARGETS)
            allowed = [tuple(self._schema.values[column] - {old})]
        base = int(chances[0] * len(templates.templates_for(edits).base))
        sampled = augmenter.sample(edits, base, chances[1], past)
        labels = tuple(_label(edit, values) for edit, values in zip(edits, allowed, strict=True))
        if past and sampled.refuses_old:
            others = tuple(self._schema.values[past.attribute] - {pair.values[start][0]})
            labels += (_label(replace(past, kind=NOT_VALUE), others),)
        return TrainingTriplet(pair.item(start), sampled.text, targets, kind, labels, sampled.typos)

    def _edit_back(self, pair: ItemPair, start: int) -> Edit | None:
        """Return the edit to the one value that side `start` has; None for two, and for one that has no name."""
        (column, *more), (value, *_) = pair.columns, pair.values[start]
        if more or value in self._options.unnamed_values:
            return None
        return self._schema.templates.edit_to(column, value)

    def _recoloured(self, chances: Sequence[float], augmenter: TextAugmenter) -> TrainingTriplet:
        """Return a triplet whose text names an item's colour and whose reference is the item in other colours."""
        item, column, colour = self._coloured[int(chances[0] * len(self._coloured))]
        edit = self._schema.templates.edit_to(column, colour)
        base = int(chances[1] * len(self._schema.templates.templates_for([edit]).base))
        sampled = augmenter.sample([edit], base, chances[2])
        recolour_seed = 1 + int(augmenter.random.random() * 2**31)
        labels = (_label(edit, (colour,)),)
        return TrainingTriplet(item, sampled.text, (item,), "recoloured", labels, sampled.typos, recolour_seed)

    def _items_of_colour(self) -> list[tuple[str, str, str]]:
        """Return (item, colour column, colour) of every item whose colour is known."""
        kinds, columns = self._schema.templates.columns, self._schema.columns
        column = next((name for name in columns if kinds.get(name.lower()) == "colour"), None)
        if column is None:
            raise UsageError(f"recolour_prob needs a colour among the attributes; there are: {', '.join(columns)}")
        return [(item, column, row[column]) for item, row in self._rows.items() if row[column] not in self._unnamed]

    def _pair_samplers(self) -> list[tuple[float, str, PairSampler]]:
        """Return (share, kind, sampler) of everything that can be drawn; shares are relative."""
        options, columns, group = self._options, self._schema.columns, self._schema.group
        weights = options.attribute_weights or dict.fromkeys(columns, 0.0)
        for column in (*weights, *([options.variant] if options.variant else [])):
            if column not in columns:
                raise UsageError(f"no attribute {column!r}; there are: {', '.join(columns)}")
        singles = self._shared(1 - options.instance_ratio - options.double_ratio, "attribute", list(weights), 1)
        doubles = self._shared(options.double_ratio, "double", list(weights), 2)
        instances = []
        if group and options.instance_ratio:
            column = options.variant or self._variant(group)
            sampler = PairSampler((column,), self._groups((column,), lambda row: row[group]), options.balance)
            instances = [(options.instance_ratio, "instance", sampler)] if sampler.total else []
        samplers = [entry for entry in (*instances, *singles, *doubles) if entry[0] > 0]
        if not samplers:
            raise DataError(f"{self._schema.file} has no two items that differ in one attribute alone; see its columns")
        return samplers

    def _shared(self, share: float, kind: str, columns: list[str], size: int) -> list[tuple[float, str, PairSampler]]:
        """Return a sampler of every `size` columns, `share` divided among those that have pairs."""
        if share <= 0:
            return []
        attribute_weights, samplers = self._options.attribute_weights, []
        for chosen in combinations(columns, size):
            others = [column for column in self._schema.columns if column not in chosen]
            groups = self._groups(chosen, lambda row, others=others: tuple(row[column] for column in others))  # type: ignore[misc]
            sampler = PairSampler(chosen, groups, self._options.balance)
            weight = (
                np.prod([attribute_weights[column] for column in chosen]) if attribute_weights else sampler.total**0.5
            )
            if sampler.total:
                samplers.append((float(weight), sampler))
        total = sum(weight for weight, _ in samplers)
        return [(share * weight / total, kind, sampler) for weight, sampler in samplers if weight > 0]

    def _groups(self, columns: tuple[str, ...], key: Callable[[Mapping[str, str]], Any]) -> list[AttributeGroup]:
        """Return the items of each key by their values of `columns`; those with a value that has no name left out."""
        groups: dict[Any, dict[Value, list[str]]] = defaultdict(lambda: defaultdict(list))
        for item, row in self._rows.items():
            value = tuple(row[column] for column in columns)
            if (shared := key(row)) not in MISSING_VALUES and not self._unnamed.intersection(value):
                groups[shared][value].append(item)
        return [{value: tuple(items) for value, items in group.items()} for group in groups.values() if len(group) > 1]

    def _variant(self, group: str) -> str:
        """Return the attribute that varies within most groups."""
        return max(self._schema.columns, key=lambda column: len(self._groups((column,), lambda row: row[group])))


class CalibrationView:
    """The products held out of training, in a gallery among others as a shop has them.

    Raises UsageError where the held-out products make no edits by themselves.
    """

    def __init__(self, calibration_rows: Rows, training: Rows, schema: Schema, options: CatalogueOptions) -> None:
        count = min(options.triplets, _MAX_CALIBRATION_EDITS)
        options = msgspec.structs.replace(options, recolour_prob=0.0, triplets=count)
        try:
            TripletSampler(calibration_rows, schema, options)
        except DataError:
            raise UsageError(
                f"calibration_ratio keeps {len(calibration_rows)} items of {schema.file} apart: too few to make edits; "
                "give more, or 0"
            ) from None
        others = list(training)[:: -(-len(training) // max(1, _CALIBRATION_GALLERY - len(calibration_rows)))]
        self._training = training
        self._rows = {**calibration_rows, **{item: training[item] for item in others}}
        self._sampler, self._count = TripletSampler(self._rows, schema, options), count

    def protocol(self) -> EvaluationProtocol:
        """Return queries from and to products held out of training; other right answers come after these."""
        queries = []
        for triplet in self._sampler.triplets(0, self._count):
            targets = tuple(sorted(triplet.targets, key=self._training.__contains__))
            if triplet.reference not in self._training and targets[0] not in self._training:
                queries.append(replace(triplet.as_query(), targets=targets))
        return EvaluationProtocol("held out", "1", tuple(self._rows), tuple(queries))


def _label(edit: Edit, values: tuple[str, ...]) -> WordLabel:
    return WordLabel(edit.attribute, edit.words, edit.attribute, values, edit.absent)
