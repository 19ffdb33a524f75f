"""Anybody's triplets: one table of reference, target, text and, where wanted, split."""

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsfse.data import CheckReport, Pixels, Protocol, Triplet, load_picture
from nsfse.data.layout import absent, broken_pictures, scan
from nsfse_runtime.errors import DataError, NotFoundError

__all__ = ["Table"]


class Table:
    """A CSV or JSONL file of `reference`, `target`, `text` and optionally `split` (train where it is not given).

    In JSONL `target` and `text` may be lists: all right answers, several phrasings. Rows with the same split, reference
    and text are one query with several right answers. A picture is named by its path under the table's folder (or
    `images`), by its file name or by its file name without suffix.
    `file` is the table, or a folder that holds exactly one. Raises NotFoundError and DataError.
    """

    name = "table"

    def __init__(self, file: Path, *, images: Path | None = None, seed: int = 0) -> None:
        self._file = _the_table(file)
        self._seed = seed
        self._queries: dict[str, list[Triplet]] = {}
        for split, triplet in _merged(_rows(self._file)):
            self._queries.setdefault(split, []).append(triplet)
        self._layout = scan(self._file.parent, *([images] if images else []))
        listed = [item for split in self._queries for item in self._listed(split)]
        self.images = self._layout.locate(listed)
        self.missing = absent(listed, self.images)

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one picture [H, W, 3] fitted to `size` (H, W)."""
        return load_picture(self.images, item, size)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have rows."""
        return tuple(self._queries)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the pictures that the split's rows name, those missing left out."""
        return tuple(item for item in self._listed(split) if item in self.images)

    def triplets(self, epoch: int) -> list[Triplet]:
        """Return the training rows in a seeded shuffle, one phrasing each, those with a missing picture left out."""
        rng = random.Random(f"{self._seed}/{epoch}")
        whole = [q for q in self._queries.get("train", []) if q.reference in self.images]
        rng.shuffle(whole)
        targets = [tuple(item for item in query.targets if item in self.images) for query in whole]
        return [Triplet(q.reference, (rng.choice(q.texts),), t) for q, t in zip(whole, targets, strict=True) if t]

    def protocols(self, split: str) -> list[Protocol]:
        """Return the split's protocol: gallery = every picture its rows name, the reference removed."""
        queries = self._queries.get(split, [])
        if not queries:
            return []
        missing = absent(self._listed(split), self.images)
        note = f"gallery: the pictures named by the {split} rows of {self._file.name}"
        name = f"{self._file.stem}-{split}"
        return [Protocol(name, "1", self.items(split), tuple(queries), True, (1, 10, 50), note, len(missing), missing)]

    def check(self) -> CheckReport:
        """Count queries and pictures per split; decode every picture."""
        counts: dict[str, int] = {}
        expected: dict[str, int] = {}
        for split, queries in self._queries.items():
            counts[f"{split}.queries"] = len(queries)
            counts[f"{split}.pictures"] = len(self.items(split))
            expected[f"{split}.pictures"] = len(self._listed(split))
        broken = broken_pictures(sorted(set(self.images.values())), self._layout)
        return CheckReport(self.name, counts, expected, self.missing, broken)

    def _listed(self, split: str) -> tuple[str, ...]:
        queries = self._queries.get(split, [])
        return tuple(dict.fromkeys(item for query in queries for item in (query.reference, *query.targets)))


def _the_table(file: Path) -> Path:
    if not file.is_dir():
        if not file.is_file():
            raise NotFoundError(f"no such table: {file}; give a .csv or .jsonl file")
        return file
    found = sorted(path for path in file.iterdir() if path.suffix.lower() in (".csv", ".jsonl"))
    if len(found) != 1:
        raise DataError(f"{file} holds {len(found)} .csv and .jsonl files; name the one with the triplets")
    return found[0]


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row); raise DataError for what is not a table of this form."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix.lower() == ".csv":
                for number, row in enumerate(csv.DictReader(lines, strict=True), 2):
                    yield f"{file} line {number}", row
            else:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield f"{file} line {number}", json.loads(line)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"{file} is not a UTF-8 {file.suffix[1:]} table: {error}") from error


def _merged(rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Triplet]]:
    """Yield (split, query), rows of the same split, reference and text made one."""
    merged: dict[tuple[str, str, tuple[str, ...]], dict[str, None]] = {}
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where} is not an object with reference, target and text")
        (reference,) = _values(row, "reference", where)
        key = (str(row.get("split") or "train"), reference, tuple(_values(row, "text", where)))
        merged.setdefault(key, {}).update(dict.fromkeys(_values(row, "target", where)))
    for (split, reference, texts), targets in merged.items():
        yield split, Triplet(reference, texts, tuple(targets))


def _values(row: dict[str, Any], column: str, where: str) -> list[str]:
    given = row.get(column)
    values = given if isinstance(given, list) and column != "reference" else [given]
    said = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    if not said or len(said) < len(values):
        raise DataError(f"{where} has no {column}; each row needs reference, target and text")
    return said
