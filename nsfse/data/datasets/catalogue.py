"""A shop's catalogue as a data set: a table of products with attributes, and images, become triplets.

Two products that are equal but for one attribute (or two) make two edits, one in each direction. Where the table says
which images show variants of one product (`group`), its variants make edits that keep the very product.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from zlib import crc32

from nsfse.data import CheckReport, EvalQuery, EvaluationProtocol, Pixels, TrainingTriplet, load_item
from nsfse.data.datasets.catalogue_options import CatalogueOptions
from nsfse.data.datasets.catalogue_triplets import NEGATED, CalibrationView, Rows, Schema, TripletSampler
from nsfse.data.datasets.file_index import broken_images, scan
from nsfse.data.datasets.free_texts import FreeTexts, interleaved, read_free_texts
from nsfse.data.datasets.items import MISSING_VALUES, RESERVED, ItemTable, read_items
from nsfse.data.datasets.noun_phrases import NounPhrases
from nsfse.data.datasets.query_set import QuerySetOptions, QuerySetSource
from nsfse.data.text.category_edits import category_edits
from nsfse.data.text.template_file import load_templates
from nsfse.data.text.templates import DOUBLE
from nsfse.data.text.voices import training_voices
from nsfse_runtime.errors import DataError, UsageError

_MAX_VALUES = 200
_DETERMINED = 0.98


class CatalogueSource:
    """Triplets from a folder with items.csv and images (as a query set has them; its queries.jsonl are the protocols).

    Raises:
        NotFoundError: The folder or the table is not there.
        DataError: A row cannot be used, or no two items make an edit.
        UsageError: An option names an unknown column, or holds out too few products.
    """

    name = "catalogue"

    def __init__(self, folder: Path, options: CatalogueOptions | None = None) -> None:
        options = options or CatalogueOptions()
        self._folder, self._options = folder, options
        negations = NEGATED.values() if options.negation_ratio else ()
        self._templates = load_templates(options.templates, ("value", DOUBLE, *negations))
        self._table = read_items(folder, options.table, options.images)
        self.images: Mapping[str, Path] = self._table.images
        self.missing = self._table.missing
        self.columns = _attribute_columns(self._table, options)
        items = (item for item in self._training_ids(options.split) if item in self.images)
        rows: Rows = {item: self._table.rows[item] for item in items}
        if not rows:
            images = options.images or folder / "images"
            raise DataError(f"no image that {self._table.file} has for training is there; put them into {images}")
        values = {column: frozenset(row[column] for row in rows.values()) for column in self.columns}
        group = options.group if options.group in self._table.columns else None
        voices = training_voices(options.voices, options.without_voices, self._templates)
        schema = Schema(self._table.file, self.columns, values, group, self._templates, voices)
        calibration_rows = _held_out_rows(rows, group, options.calibration_ratio)
        self._rows: Rows = {item: row for item, row in rows.items() if item not in calibration_rows}
        self.titles = _titles(self._rows, options.title)
        self._texts = self._free_texts(options)
        kinds = {column: self._templates.columns.get(column.lower(), "") for column in self.columns}
        self._phrases = NounPhrases(self._rows, kinds, options.unnamed_values, options.seed)
        self._sampler = TripletSampler(self._rows, schema, options)
        self._calibration = (
            CalibrationView(calibration_rows, self._rows, schema, options) if options.calibration_ratio else None
        )

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    def attributes(self, item: str) -> dict[str, str]:
        """Return the known attributes of an item, those that no edit names included."""
        row, columns = self._table.rows[item], (*self.columns, *self._options.described)
        return {column: row[column] for column in columns if row[column] not in MISSING_VALUES}

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split whose images are there."""
        return tuple(item for item in self._table.of_split(split) if item in self.images)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the epoch's triplets: fresh pairs and texts, both directions of a pair side by side.

        A share of `text_ratio` has a free text; these have no `word_labels`. Of the others one of `phrase_ratio`
        describes its target.
        """
        options = self._options
        free = round(options.text_ratio * options.triplets)
        phrases = round(options.phrase_ratio * (options.triplets - free))
        made = self._sampler.triplets(epoch, options.triplets - free - phrases)
        others = [*self._texts.triplets(epoch, free), *self._phrases.triplets(epoch, phrases)]
        return interleaved(made, others, f"{options.seed}/{epoch}") if others else made

    def noun_phrase(self, item: str, draw: float) -> str:
        """Return the title of an image, or by `draw` in [0, 1) a phrase of its attributes."""
        share, title = self._options.title_phrase_ratio, self.titles.get(item, "")
        phrases = self._phrases.texts(item) if draw < share else ()
        return phrases[int(draw / share * len(phrases))] if phrases else title

    @property
    def training_texts(self) -> tuple[str, ...]:
        """Every free text that training may use."""
        return self._texts.all

    @property
    def left_out(self) -> tuple[str, ...]:
        """What training leaves out, a line each."""
        return self._texts.left_out

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the protocols of the folder's queries.jsonl; empty where there is none."""
        return self._query_set.protocols(split) if self._query_set else []

    @cached_property
    def _query_set(self) -> QuerySetSource | None:
        if not (self._folder / "queries.jsonl").is_file():
            return None
        options = QuerySetOptions(images=self._options.images, group=self._options.group or "group")
        return QuerySetSource(self._folder, options)

    def calibration_split(self) -> EvaluationProtocol | None:
        """Return edits of products that no triplet shows; None where `calibration_ratio` is 0.

        Their answers are such products, too; the rest of the gallery are others, as many as a shop has.
        """
        return self._calibration.protocol() if self._calibration else None

    def category_edits(self, gallery: Sequence[str], count: int) -> tuple[EvalQuery, ...]:
        """Return queries that exclude or replace the category (see nsfse.data.text.category_edits).

        None where no attribute is a category.
        """
        kinds = self._templates.columns
        column = next((name for name in self.columns if kinds.get(name.lower()) == "category"), None)
        if column is None:
            return ()
        known = {item: {name: self._table.rows[item][name] for name in self.columns} for item in gallery}
        known = {item: values for item, values in known.items() if MISSING_VALUES.isdisjoint(values.values())}
        known = {item: values for item, values in known.items() if values[column] not in self._options.unnamed_values}
        return category_edits(known, column, (), self._templates, count)

    def check(self) -> CheckReport:
        """Count items and decode every image."""
        splits = dict.fromkeys(self._table.splits.values())
        counts = {f"{split or 'all'}.found": len(self.items(split)) for split in splits}
        expected = {f"{split or 'all'}.found": len(self._table.of_split(split)) for split in splits}
        index = scan(self._options.images or self._folder)
        broken = broken_images(list(self.images.values()), index, self._table.dead)
        note = f"attributes: {', '.join(self.columns)}"
        return CheckReport(self.name, counts, expected, self.missing, broken, (note,), (), index.skipped)

    def _free_texts(self, options: CatalogueOptions) -> FreeTexts:
        """Return the free texts of training images; none where no triplet has one."""
        if not options.text_ratio:
            return FreeTexts((), options.seed)
        texts = read_free_texts(self._folder / options.texts, self._table, options.split, options.held_out_voices)
        return FreeTexts(texts, options.seed, self._rows)

    def _training_ids(self, split: str) -> tuple[str, ...]:
        """Return the ids of the training split; all where the table names no splits."""
        if not any(self._table.splits.values()):
            return self._table.of_split("")
        ids = self._table.of_split(split)
        if not ids:
            raise DataError(f"{self._table.file} has no items of split {split!r}; name one that it has")
        return ids


def _held_out_rows(rows: Rows, group: str | None, share: float) -> Rows:
    """Return the products that training does not show, each with all its images, by a hash of its name."""
    names = {item: (row[group] if group else "") or item for item, row in rows.items()}
    return {item: row for item, row in rows.items() if crc32(names[item].encode()) / 2**32 < share}


def _titles(rows: Rows, column: str | None) -> dict[str, str]:
    titles = {item: row.get(column or "", "") for item, row in rows.items()}
    return {item: title for item, title in titles.items() if title not in MISSING_VALUES}


def _attribute_columns(table: ItemTable, options: CatalogueOptions) -> tuple[str, ...]:
    """Return the attribute columns: those named, or every one of few values that no other column determines."""
    group, title, named = options.group, options.title, options.attributes
    chosen = [column for column, usual in ((group, "group"), (title, "title")) if column and column != usual]
    for column in (*(named or ()), *options.described, *chosen):
        if column not in table.columns:
            raise UsageError(f"{table.file} has no column {column!r}; it has: {', '.join(table.columns)}")
    if named:
        return tuple(dict.fromkeys(named))
    rows = list(table.rows.values())
    few = []
    for column in table.columns:
        values = {row[column] for row in rows}
        if column not in (*RESERVED, group, title, *options.described) and 1 < len(values) <= min(
            _MAX_VALUES, max(2, len(rows) // 3)
        ):
            few.append((len(values), column))
    finest = [column for _, column in sorted(few, reverse=True)]
    columns = [c for i, c in enumerate(finest) if not any(_determines(rows, other, c) for other in finest[:i])]
    if not columns:
        raise DataError(f"{table.file} has no column of few values to make edits from; name some (attributes)")
    return tuple(column for column in table.columns if column in columns)


def _determines(rows: Sequence[Mapping[str, str]], finer: str, coarser: str) -> bool:
    """Whether a value of `finer` nearly always has one value of `coarser`, as an article has its department."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counts[row[finer]][row[coarser]] += 1
    most = max(sum(count.get(value, 0) for count in counts.values()) for value in {row[coarser] for row in rows})
    agreeing = sum(max(count.values()) for count in counts.values())
    return agreeing >= _DETERMINED * len(rows) and most < _DETERMINED * len(rows)
