"""Anybody's triplets: one table of reference, target, text and, where wanted, split."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

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
from nsfse.data.datasets.file_index import absent, broken_images, counted, scan
from nsfse.data.text_files import Name, read_csv, read_json_line, read_lines
from nsfse_runtime.errors import DataError, NotFoundError

__all__ = ["Table"]

NEEDS = "reference, target and text"
SPREADSHEETS = (".csv", ".tsv")
DEFAULT_SPLIT = "train"

_Ids = Annotated[tuple[Name | int, ...], msgspec.Meta(min_length=1)]
_Texts = Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]


class _Given(msgspec.Struct, frozen=True):
    """A line of a JSONL table; numbers are ids, too."""

    reference: Name | int
    target: Name | int | _Ids
    text: Name | _Texts
    split: str | None = None


class _Row(NamedTuple):
    reference: str
    targets: tuple[str, ...]
    texts: tuple[str, ...]
    split: str


class Table:
    """A CSV or JSONL file of `reference`, `target`, `text` and optionally `split` (train where it is not given).

    In JSONL `target` and `text` may be lists: all right answers, several phrasings. Rows with the same split, reference
    and text are one query with several right answers. An image is named by its path under the table's folder (or
    `images`), by its file name or by its file name without suffix. A CSV file may have commas, semicolons or tabs.
    `file` is the table, or a folder that holds exactly one. Raises NotFoundError and DataError.
    """

    name = "table"

    def __init__(self, file: Path, options: FolderOptions | None = None) -> None:
        options = options or FolderOptions()
        self._file = _the_table(file)
        self._seed = options.seed
        rows = list(_rows(self._file))
        self._index = scan(self._file.parent, *([options.images] if options.images else []))
        self.images = self._index.locate(item for _, row in rows for item in (row.reference, *row.targets))
        self._faults = Findings()
        self._queries = self._merged(rows)
        self.missing = absent((item for split in self._queries for item in self._listed(split)), self.images)

    @property
    def notes(self) -> tuple[str, ...]:
        """Folders and files that could not be read, a line each."""
        return self._index.notes

    @property
    def left_out(self) -> tuple[str, ...]:
        """What training leaves out, a line each."""
        silent = sum(not all(map(trainable, q.texts)) for q in self._queries.get(DEFAULT_SPLIT, ()))
        line = f"{counted(silent, 'training row')} left out: a text is far too long"
        return (line,) if silent else ()

    @property
    def training_texts(self) -> tuple[str, ...]:
        """Every text that training may use."""
        return tuple(text for query in self._trained() for text in query.texts)

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image [H, W, 3] fitted to `size` (H, W)."""
        return load_item(self.images, item, size)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have rows."""
        return tuple(self._queries)

    def items(self, split: str) -> tuple[str, ...]:
        """Return the images that the split's rows name, those missing left out."""
        return tuple(item for item in self._listed(split) if item in self.images)

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the training rows in a seeded shuffle, one phrasing each, those with a missing image left out."""
        rng = random.Random(f"{self._seed}/{epoch}")
        whole = self._trained()
        rng.shuffle(whole)
        targets = [tuple(item for item in query.targets if item in self.images) for query in whole]
        return [TrainingTriplet(q.reference, rng.choice(q.texts), t) for q, t in zip(whole, targets, strict=True) if t]

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the split's protocol: gallery = every image its rows name, the reference removed."""
        queries = self._queries.get(split, [])
        if not queries:
            return []
        missing = absent(self._listed(split), self.images)
        note = f"gallery: the images named by the {split} rows of {self._file.name}"
        name = f"{self._file.stem}-{split}"
        return [
            EvaluationProtocol(
                name, "1", self.items(split), tuple(queries), True, (1, 10, 50), note, len(missing), missing
            )
        ]

    def check(self) -> CheckReport:
        """Count queries and images per split; name odd rows; decode every image."""
        counts: dict[str, int] = {}
        expected: dict[str, int] = {}
        for split, queries in self._queries.items():
            counts[f"{split}.queries"] = len(queries)
            counts[f"{split}.found"] = len(self.items(split))
            expected[f"{split}.found"] = len(self._listed(split))
        broken = broken_images(sorted(set(self.images.values())), self._index)
        faults, skipped = self._faults.all(), self._index.skipped
        return CheckReport(self.name, counts, expected, self.missing, broken, (), faults, skipped)

    def _trained(self) -> list[EvalQuery]:
        queries = self._queries.get(DEFAULT_SPLIT, [])
        return [q for q in queries if q.reference in self.images and all(map(trainable, q.texts))]

    def _merged(self, rows: Sequence[tuple[str, _Row]]) -> dict[str, list[EvalQuery]]:
        """Return split → queries, rows of the same split, reference and text made one.

        An image that is named in several ways has the first name. Raises DataError for a row whose only target is its
        reference: that is removed from the gallery.
        """
        first: dict[Path, str] = {}
        for _, row in rows:
            for item in (row.reference, *row.targets):
                if path := self.images.get(item):
                    first.setdefault(path, item)
        ids = {item: first[path] for item, path in self.images.items()}
        merged: dict[tuple[str, str, tuple[str, ...]], dict[str, None]] = {}
        for where, row in rows:
            reference, *targets = (ids.get(item, item) for item in (row.reference, *row.targets))
            if set(targets) == {reference}:
                raise DataError(f"{where} has its reference as the only target, which is removed from the gallery")
            known = merged.setdefault((row.split or DEFAULT_SPLIT, reference, row.texts), {})
            if known.keys() & set(targets) or len(set(targets)) < len(targets):
                self._faults.add("row lists a target twice", "rows list a target twice", where)
            if reference in targets:
                self._faults.add("row has its reference as target", "rows have their reference as target", where)
            known.update(dict.fromkeys(targets))
        queries: dict[str, list[EvalQuery]] = {}
        for (split, reference, texts), right in merged.items():
            queries.setdefault(split, []).append(EvalQuery(reference, texts, tuple(right)))
        return queries

    def _listed(self, split: str) -> tuple[str, ...]:
        queries = self._queries.get(split, [])
        return tuple(dict.fromkeys(item for query in queries for item in (query.reference, *query.targets)))


def _the_table(file: Path) -> Path:
    if not file.is_dir():
        if not file.is_file():
            raise NotFoundError(f"no such table: {file}; give a .csv or .jsonl file")
        return file
    tables = sorted(path for path in file.iterdir() if path.suffix.lower() in (*SPREADSHEETS, ".jsonl"))
    if len(tables) != 1:
        raise DataError(f"{file} holds {counted(len(tables), '.csv or .jsonl file')}; name the one with the triplets")
    return tables[0]


def _rows(file: Path) -> Iterator[tuple[str, _Row]]:
    """Yield (where, row); raise DataError for what is not a table of this form."""
    if file.suffix.lower() in SPREADSHEETS:
        for where, cells in read_csv(file, ("reference", "target", "text"), ("split",), " line ", short=True)[1]:
            for column in ("reference", "target", "text"):
                if not cells[column]:
                    raise DataError(f"{where} has no {column}; it needs {NEEDS}")
            yield where, _Row(cells["reference"], (cells["target"],), (cells["text"],), cells.get("split", ""))
        return
    for number, line in read_lines(file):
        where = f"{file} line {number}"
        row = read_json_line(line, _Given, where, NEEDS)
        targets, texts = (value if isinstance(value, tuple) else (value,) for value in (row.target, row.text))
        yield where, _Row(_id(row.reference), tuple(map(_id, targets)), tuple(map(_id, texts)), row.split or "")


def _id(value: str | int) -> str:
    return str(value).strip()
