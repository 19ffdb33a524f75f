"""Query sets: a folder that anyone can make, with images, a table of them, and queries with their right answers.

    items.csv        id[, file][, split][, attributes ...]
    images/          ID.jpg, .png, .webp where the table names no file
    queries.jsonl    {"protocol": NAME, "reference": ID, "texts": [...], "targets": [ID, ...]}, one a line
                     and where wanted "split", "hard_negatives": [ID, ...], "kind"; of queries with several images,
                     texts and exclusions (docs/queries.md) "more_references": [ID, ...], "more_texts": [[...], ...],
                     "negative_texts": [...], "negative_images": [ID, ...]; "reference": null for words alone

The gallery of a query is the items of its split, all items where it names none.

Where the table has a column that names each image's product (`group`), a split has two halves.
SPLIT-choose is for choosing settings, SPLIT-report for reporting. No product is in both, as
reference, target or other image.
"""

import csv
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from nsfse.data import (
    CheckReport,
    EvalQuery,
    EvaluationProtocol,
    FolderOptions,
    Pixels,
    TrainingTriplet,
    load_item,
    trainable,
)
from nsfse.data.anomalies import Findings
from nsfse.data.datasets.file_index import broken_images, counted, scan
from nsfse.data.datasets.items import ItemTable, read_items
from nsfse.data.datasets.query_facts import QueryFacts
from nsfse.data.text_files import Name, read_json_line, read_lines
from nsfse_runtime.errors import DataError, NotFoundError, OutputError
from nsfse_runtime.regular_files import read_regular

ANY_SPLIT = "test"
"""Where the queries that name no split are found."""
HALVES = ("choose", "report")
"""A product is in one or the other by the hash of its name."""
VERSIONS = {"2de5ee4c24a0": "wardrobe-1"}
"""Benchmarks by the start of the SHA-256 of their queries.jsonl."""


_Id = Name | int
_Texts = Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]


class _Row(msgspec.Struct, frozen=True):
    """A line of queries.jsonl; numbers are ids, too."""

    protocol: Name
    reference: _Id | None
    texts: _Texts
    targets: Annotated[tuple[_Id, ...], msgspec.Meta(min_length=1)]
    split: str = ""
    kind: str = ""
    hard_negatives: tuple[_Id, ...] | None = None
    more_references: tuple[_Id, ...] | None = None
    more_texts: tuple[_Texts, ...] | None = None
    negative_texts: tuple[Name, ...] | None = None
    negative_images: tuple[_Id, ...] | None = None
    # What query sets drawn before 0.1 call the two above: dropped unread, their exclusions would change the scores.
    minus_texts: tuple[Name, ...] | None = None
    minus: tuple[_Id, ...] | None = None


class QuerySetOptions(FolderOptions, frozen=True, kw_only=True):
    """Options of a query set."""

    group: str = "group"
    """Column of items.csv that names products, by which splits halve."""


class QuerySetSource:
    """A query set read from a folder.

    Raises NotFoundError and DataError naming file and line for what is not a query set.
    """

    name = "queryset"

    def __init__(self, folder: Path, options: QuerySetOptions | None = None) -> None:
        options = options or QuerySetOptions()
        self._folder, self._images_folder, self._group = folder, options.images, options.group
        self._table = read_items(folder, images=options.images)
        self.images: Mapping[str, Path] = self._table.images
        self.missing = self._table.missing
        self._file = folder / "queries.jsonl"
        self._seed = options.seed
        self._queries: dict[tuple[str, str], list[EvalQuery]] = {}
        galleries: dict[str, frozenset[str]] = {}
        self._faults, facts = Findings(), QueryFacts(self._table)
        for where, row in _read_rows(self._file):
            if row.split not in galleries:
                galleries[row.split] = frozenset(self._table.of_split(row.split))
            gallery = galleries[row.split]
            query = _query(row, where, self._table, gallery)
            query = replace(
                query,
                background_only=facts.background_only(query.kind, query.targets, row.split, gallery),
                old_value_named=facts.old_value_named(query.reference, query.texts, query.targets),
            )
            _judge(query, self._faults, where)
            self._queries.setdefault((row.split, row.protocol), []).append(query)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What training leaves out, a line each."""
        too_long = sum(not all(map(trainable, query.texts)) for query in self._training_queries())
        line = f"{counted(too_long, 'training query', 'training queries')} left out: a text is far too long"
        return (line,) if too_long else ()

    @property
    def training_texts(self) -> tuple[str, ...]:
        """Every text that training may use."""
        return tuple(text for query in self._training_queries() for text in query.texts)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have queries."""
        return tuple(dict.fromkeys(split or ANY_SPLIT for split, _ in self._queries))

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split, or of a half of one, whose images are there; all for an empty name."""
        return tuple(item for item in self._listed(split) if item in self.images)

    def _listed(self, split: str) -> tuple[str, ...]:
        whole, half = self._halved(split)
        items = self._table.of_split(whole)
        return tuple(item for item in items if self._half(item) == half) if half else items

    def _halved(self, split: str) -> tuple[str, str]:
        """Return (split, half), the half empty for a whole one. Raises DataError where there is nothing to halve by."""
        whole, _, half = split.rpartition("-")
        known = {*self._table.splits.values(), *(named for named, _ in self._queries)}
        if split in known or half not in HALVES or not whole:
            return split, ""
        if self._group not in self._table.columns:
            raise DataError(
                f"{self._table.file} has no column {self._group!r} to halve the split {whole!r} by; "
                "add one that names each image's product, or score the whole split"
            )
        return whole, half

    def _half(self, item: str) -> str:
        """Return the half of an item: that of its product, or its own where the table names none."""
        product = self._table.rows[item][self._group] or item
        return HALVES[hashlib.sha256(product.encode()).digest()[0] % 2]

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the queries of the train split in a seeded shuffle, one text each, incomplete ones left out."""
        rng = random.Random(f"{self._seed}/{epoch}")
        queries = self._training_queries()
        made: list[TrainingTriplet] = []
        for query in rng.sample(queries, len(queries)):
            targets = tuple(item for item in query.targets if item in self.images)
            if targets and query.reference in self.images and all(map(trainable, query.texts)):
                made.append(TrainingTriplet(query.reference, rng.choice(query.texts), targets, query.kind))
        return made

    def _training_queries(self) -> list[EvalQuery]:
        """Return the queries of the train split that have one image and one text."""
        queries_of_train = [
            query for (split, _), queries in self._queries.items() if split == "train" for query in queries
        ]
        return [query for query in queries_of_train if query.is_simple]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the protocols of a split, or of a half of one; queries that name no split belong to `test`.

        Those of a half are called NAME-choose and NAME-report.
        """
        whole, half = self._halved(split)
        protocols = [
            self._protocol(name, named, queries)
            for (named, name), queries in self._queries.items()
            if (named or ANY_SPLIT) == whole
        ]
        return [self._half_of(protocol, half) for protocol in protocols] if half else protocols

    def _protocol(self, name: str, split: str, queries: Sequence[EvalQuery]) -> EvaluationProtocol:
        digest = hashlib.sha256(read_regular(self._file)).hexdigest()[:12]
        version = VERSIONS.get(digest, f"sha256:{digest}")
        missing = tuple(item for item in self._table.of_split(split) if item not in self.images)
        note = f"gallery: the items of split {split}" if split else "gallery: all items"
        gallery = self.items(split)
        return EvaluationProtocol(
            name, version, gallery, tuple(queries), note=note, missing=len(missing), missing_ids=missing
        )

    def _half_of(self, protocol: EvaluationProtocol, half: str) -> EvaluationProtocol:
        """Return the gallery and the queries of one half: those of which the images and a right answer are in it."""

        def inside(items: Iterable[str]) -> tuple[str, ...]:
            return tuple(item for item in items if self._half(item) == half)

        missing = inside(protocol.missing_ids)
        return replace(
            protocol,
            name=f"{protocol.name}-{half}",
            gallery=inside(protocol.gallery),
            queries=_halved_queries(protocol.queries, inside),
            note=f"{protocol.note} whose {self._group} is of the half {half!r}",
            missing=len(missing),
            missing_ids=missing,
        )

    def check(self) -> CheckReport:
        """Count items and queries, name odd queries, and decode every image."""
        counts: dict[str, int] = {}
        expected: dict[str, int] = {}
        for split in dict.fromkeys(self._table.splits.values()):
            key = f"{split or 'all'}.found"
            counts[key] = len(self.items(split))
            expected[key] = len(self._table.of_split(split))
        for (split, protocol), queries in self._queries.items():
            key = f"{split or 'all'}.queries.{protocol}"
            counts[key] = counts.get(key, 0) + len(queries)
        index = scan(self._images_folder or self._folder)
        broken = broken_images(list(self.images.values()), index, self._table.dead)
        return CheckReport(self.name, counts, expected, self.missing, broken, (), self._faults.all(), index.skipped)


def _halved_queries(
    queries: Iterable[EvalQuery], inside: Callable[[Iterable[str]], tuple[str, ...]]
) -> tuple[EvalQuery, ...]:
    """Return the queries whose own images are all `inside`, with the answers that are; those without one are out."""
    halved = []
    for query in queries:
        targets = inside(query.targets)
        if len(inside(query.reference_ids)) == len(query.reference_ids) and not set(targets) <= {*query.reference_ids}:
            halved.append(replace(query, targets=targets, hard_negatives=inside(query.hard_negatives)))
    return tuple(halved)


def write_query_set(
    folder: Path, items: Mapping[str, Mapping[str, str]], queries: Iterable[tuple[str, str, EvalQuery]]
) -> None:
    """Write a query set without its images.

    Args:
        folder: Where to write items.csv and queries.jsonl; made where it is not there.
        items: Columns of the table by id.
        queries: (protocol, split, query), a line each.

    Raises:
        OutputError: The folder cannot be written.
    """
    columns = list(dict.fromkeys(column for row in items.values() for column in row))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "items.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", *columns], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows({"id": item, **row} for item, row in items.items())
        with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
            for protocol, split, query in queries:
                file.write(json.dumps(_row(protocol, split, query), ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write the query set to {folder}: {error.strerror}; choose another folder") from error


def _row(protocol: str, split: str, query: EvalQuery) -> dict[str, Any]:
    row: dict[str, Any] = {"protocol": protocol, "split": split, "reference": query.reference or None}
    row |= {"texts": query.texts, "targets": query.targets, "hard_negatives": query.hard_negatives}
    row |= {"more_references": query.more_references, "more_texts": query.more_texts}
    row |= {"negative_texts": query.negative_texts, "negative_images": query.negative_images}
    row |= {"kind": query.kind, "truth": {label.attribute: label.words for label in query.word_labels}}
    return {name: value for name, value in row.items() if value or name == "reference"}


def _read_rows(file: Path) -> Iterator[tuple[str, _Row]]:
    if not file.is_file():
        raise NotFoundError(f"no {file.name} in {file.parent}; it needs one JSON object a line")
    for number, line in read_lines(file):
        where = f"{file}:{number}"
        yield where, read_json_line(line, _Row, where, "protocol, reference, texts and targets")


def _query(row: _Row, where: str, table: ItemTable, gallery: frozenset[str]) -> EvalQuery:
    """Return the query of one line; raise DataError where it names what is not there."""
    reference, targets = "" if row.reference is None else str(row.reference), _ids(row.targets)
    hard, more, minus = _ids(row.hard_negatives), _ids(row.more_references), _ids(row.negative_images or row.minus)
    if more and not reference:
        raise DataError(f"{where} has more_references and no reference; name the first of them as the reference")
    for item in filter(None, (reference, *targets, *hard, *more, *minus)):
        if item not in table.rows:
            raise DataError(f"{where} names {item!r}, which {table.file} does not list; add it there")
    for item in targets:
        if item not in gallery:
            raise DataError(
                f"{where} has the target {item!r}, which is not of its split {row.split!r}; give both one split"
            )
    if not set(targets) - {reference, *more, *minus}:
        what = (
            "only images of its own as targets; they are"
            if more or minus
            else "its reference as the only target; it is"
        )
        raise DataError(f"{where} has {what} removed from the gallery")
    if any(len(texts) != len(row.texts) for texts in row.more_texts or ()):
        raise DataError(
            f"{where} has more_texts that are not lists of {len(row.texts)}, one text for each of its texts"
        )
    return EvalQuery(
        reference,
        row.texts,
        targets,
        hard,
        kind=row.kind,
        more_references=more,
        more_texts=row.more_texts or (),
        negative_texts=row.negative_texts or row.minus_texts or (),
        negative_images=minus,
    )


def _ids(items: Sequence[str | int] | None) -> tuple[str, ...]:
    return tuple(map(str, items or ()))


def _judge(query: EvalQuery, faults: Findings, entry: str) -> None:
    """Note what is odd about a query."""
    if len(set(query.targets)) < len(query.targets):
        faults.add("query lists a target twice", "queries list a target twice", entry)
    if not set(query.targets).isdisjoint(query.reference_ids):
        faults.add("query has an image of its own as target", "queries have an image of their own as target", entry)
    if not set(query.targets).isdisjoint(query.hard_negatives):
        faults.add("query has a target as hard negative", "queries have a target as hard negative", entry)
