"""Query sets: a folder that anyone can make, with pictures, a table of them, and queries with their right answers.

    items.csv        id[, file][, split][, attributes ...]
    images/          ID.jpg, .png, .webp where the table names no file
    queries.jsonl    {"protocol": NAME, "reference": ID, "texts": [...], "targets": [ID, ...]}, one a line
                     and where wanted "split", "hard_negatives": [ID, ...], "kind"; of queries with several pictures,
                     texts and exclusions (docs/queries.md) "more_references": [ID, ...], "more_texts": [[...], ...],
                     "minus_texts": [...], "minus": [ID, ...]

The gallery of a query is the items of its split, all items where it names none.

Where the table has a column that says which images show one product (`group`), a split has two halves, SPLIT-choose and
SPLIT-report: one to choose settings by, one to report. No product is in both, as reference, target or other image.
"""

import csv
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nsfse.data import CheckReport, Pixels, Protocol, Triplet, load_picture
from nsfse.data.items import ItemTable, read_items
from nsfse.data.layout import broken_pictures, scan
from nsfse_runtime.errors import DataError, NotFoundError, OutputError

ANY_SPLIT = "test"
"""Where the queries that name no split are found."""
HALVES = ("choose", "report")
"""A product is in one or the other by the hash of its name."""


class QuerySetSource:
    """A query set read from a folder; `group` is the column of items.csv that names products, by which splits halve.

    Raises NotFoundError and DataError naming file and line for what is not a query set.
    """

    name = "queryset"

    def __init__(self, folder: Path, *, images: Path | None = None, seed: int = 0, group: str = "group") -> None:
        self._folder, self._images_folder, self._group = folder, images, group
        self._table = read_items(folder, images=images)
        self.images: Mapping[str, Path] = self._table.images
        self.missing = self._table.missing
        self._file = folder / "queries.jsonl"
        self._seed = seed
        self._queries: dict[tuple[str, str], list[Triplet]] = {}
        galleries: dict[str, frozenset[str]] = {}
        for where, row in _read_lines(self._file):
            split = _text(row, "split", where, default="")
            if split not in galleries:
                galleries[split] = frozenset(self._table.of_split(split))
            query = _query(row, where, self._table, galleries[split], split)
            self._queries.setdefault((split, _text(row, "protocol", where)), []).append(query)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have queries."""
        return tuple(dict.fromkeys(split or ANY_SPLIT for split, _ in self._queries))

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one picture [H, W, 3] fitted to `size` (H, W)."""
        return load_picture(self.images, item, size)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split, or of a half of one, whose pictures are there; all for an empty name."""
        return tuple(item for item in self._listed(split) if item in self.images)

    def _listed(self, split: str) -> tuple[str, ...]:
        whole, half = self._halved(split)
        every = self._table.of_split(whole)
        return tuple(item for item in every if self._half(item) == half) if half else every

    def _halved(self, split: str) -> tuple[str, str]:
        """Return (split, half), the half empty for a whole one. Raises DataError where there is nothing to halve by."""
        whole, _, half = split.rpartition("-")
        known = {*self._table.splits.values(), *(named for named, _ in self._queries)}
        if split in known or half not in HALVES or not whole:
            return split, ""
        if self._group not in self._table.columns:
            told = f"{self._table.file} has no column {self._group!r} to halve the split {whole!r} by"
            raise DataError(f"{told}; add one that names each image's product, or score the whole split")
        return whole, half

    def _half(self, item: str) -> str:
        """Return the half of an item: that of its product, or its own where the table names none."""
        product = self._table.rows[item][self._group] or item
        return HALVES[hashlib.sha256(product.encode()).digest()[0] % 2]

    def triplets(self, epoch: int) -> list[Triplet]:
        """Return the queries of the train split in a seeded shuffle, one text each, incomplete ones left out."""
        rng = random.Random(f"{self._seed}/{epoch}")
        given = [query for (split, _), queries in self._queries.items() if split == "train" for query in queries]
        made: list[Triplet] = []
        for query in rng.sample(given, len(given)):
            targets = tuple(item for item in query.targets if item in self.images)
            if targets and query.plain and query.reference in self.images:
                made.append(Triplet(query.reference, (rng.choice(query.texts),), targets, kind=query.kind))
        return made

    def protocols(self, split: str) -> list[Protocol]:
        """Return the protocols of a split, or of a half of one; queries that name no split belong to `test`.

        Those of a half are called NAME-choose and NAME-report.
        """
        whole, half = self._halved(split)
        found = [
            self._protocol(name, named, queries)
            for (named, name), queries in self._queries.items()
            if (named or ANY_SPLIT) == whole
        ]
        return [self._half_of(protocol, half) for protocol in found] if half else found

    def _protocol(self, name: str, split: str, queries: Sequence[Triplet]) -> Protocol:
        version = f"sha256:{hashlib.sha256(self._file.read_bytes()).hexdigest()[:12]}"
        missing = tuple(item for item in self._table.of_split(split) if item not in self.images)
        note = f"gallery: the items of split {split}" if split else "gallery: all items"
        gallery = self.items(split)
        return Protocol(name, version, gallery, tuple(queries), note=note, missing=len(missing), missing_ids=missing)

    def _half_of(self, protocol: Protocol, half: str) -> Protocol:
        """Return the gallery and the queries of one half: those of which the images and a right answer are in it."""

        def inside(items: Iterable[str]) -> tuple[str, ...]:
            return tuple(item for item in items if self._half(item) == half)

        gone = inside(protocol.missing_ids)
        return replace(
            protocol,
            name=f"{protocol.name}-{half}",
            gallery=inside(protocol.gallery),
            queries=_halved_queries(protocol.queries, inside),
            note=f"{protocol.note} whose {self._group} is of the half {half!r}",
            missing=len(gone),
            missing_ids=gone,
        )

    def check(self) -> CheckReport:
        """Count items and queries, and decode every picture."""
        counts: dict[str, int] = {}
        expected: dict[str, int] = {}
        for split in dict.fromkeys(self._table.splits.values()):
            key = f"{split or 'all'}.pictures"
            counts[key] = len(self.items(split))
            expected[key] = len(self._table.of_split(split))
        for (split, protocol), queries in self._queries.items():
            key = f"{split or 'all'}.queries.{protocol}"
            counts[key] = counts.get(key, 0) + len(queries)
        layout = scan(self._images_folder or self._folder)
        return CheckReport(
            self.name, counts, expected, self.missing, broken_pictures(list(self.images.values()), layout)
        )


def _halved_queries(
    queries: Iterable[Triplet], inside: Callable[[Iterable[str]], tuple[str, ...]]
) -> tuple[Triplet, ...]:
    """Return the queries whose own images are all `inside`, with the answers that are; those without one are out."""
    found = []
    for query in queries:
        targets = inside(query.targets)
        if len(inside(query.pictures)) == len(query.pictures) and not set(targets) <= {*query.pictures}:
            found.append(replace(query, targets=targets, hard_negatives=inside(query.hard_negatives)))
    return tuple(found)


def write_query_set(
    folder: Path, items: Mapping[str, Mapping[str, str]], queries: Iterable[tuple[str, str, Triplet]]
) -> None:
    """Write items.csv (id → its columns) and queries.jsonl ((protocol, split, query)) into `folder`.

    Raises OutputError where it cannot be written.
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


def _row(protocol: str, split: str, query: Triplet) -> dict[str, Any]:
    row: dict[str, Any] = {"protocol": protocol, "split": split, "reference": query.reference}
    row |= {"texts": query.texts, "targets": query.targets, "hard_negatives": query.hard_negatives}
    row |= {"more_references": query.more_references, "more_texts": query.more_texts}
    row |= {"minus_texts": query.minus_texts, "minus": query.minus}
    row |= {"kind": query.kind, "truth": {claim.attribute: claim.words for claim in query.truth}}
    return {name: value for name, value in row.items() if value}


def _read_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not file.is_file():
        raise NotFoundError(f"no {file.name} in {file.parent}; it needs one JSON object a line")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{file}:{number} is not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number} is not a JSON object; write one object a line")
        yield f"{file}:{number}", row


def _query(row: Mapping[str, Any], where: str, table: ItemTable, gallery: frozenset[str], split: str) -> Triplet:
    """Return the query of one line; raise DataError where it names what is not there."""
    reference = _text(row, "reference", where)
    texts, targets = _texts(row, "texts", where), _texts(row, "targets", where)
    hard, more, minus, minus_texts = (
        _texts(row, name, where) if row.get(name) else ()
        for name in ("hard_negatives", "more_references", "minus", "minus_texts")
    )
    for item in (reference, *targets, *hard, *more, *minus):
        if item not in table.rows:
            raise DataError(f"{where} names {item!r}, which {table.file} does not list; add it there")
    for item in targets:
        if item not in gallery:
            raise DataError(
                f"{where} has the target {item!r}, which is not of its split {split!r}; give both one split"
            )
    if not set(targets) - {reference, *more, *minus}:
        what = (
            "only pictures of its own as targets; they are"
            if more or minus
            else "its reference as the only target; it is"
        )
        raise DataError(f"{where} has {what} removed from the gallery")
    return Triplet(
        reference,
        texts,
        targets,
        hard,
        kind=_text(row, "kind", where, default=""),
        more_references=more,
        more_texts=_more_texts(row, where, len(texts)),
        minus_texts=minus_texts,
        minus=minus,
    )


def _more_texts(row: Mapping[str, Any], where: str, phrasings: int) -> tuple[tuple[str, ...], ...]:
    value = row.get("more_texts") or []
    found = tuple(_texts({"more_texts": texts}, "more_texts", where) for texts in value if isinstance(value, list))
    if not isinstance(value, list) or any(len(texts) != phrasings for texts in found):
        raise DataError(f"{where} has more_texts that are not lists of {phrasings}, one text for each of its texts")
    return found


def _text(row: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise DataError(f"{where} has no {name}; give it as text")
    return value


def _texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values: Sequence[Any] = row.get(name) or ()
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise DataError(f"{where} has no {name}; give a list of one text or more")
    return tuple(values)
