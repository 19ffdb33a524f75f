"""The table of items that query sets and catalogues share: `items.csv` with ids, images, splits and attributes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nsfse.data.datasets.file_index import dead_files
from nsfse.data.text_files import read_csv
from nsfse_runtime.errors import DataError, NotFoundError
from nsfse_runtime.image_names import SUFFIXES

RESERVED = ("id", "file", "split")
MISSING_VALUES = frozenset({"", "?"})


@dataclass(frozen=True, slots=True)
class ItemTable:
    """The rows of one items.csv: `rows` maps each id to its attributes, `images` to its image where it is there."""

    file: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]
    splits: Mapping[str, str]
    images: Mapping[str, Path]
    dead: Mapping[Path, str]
    """Files that hold no image, with the reason: as missing as no file at all."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids without an image."""
        return tuple(item for item in self.rows if item not in self.images)

    def of_split(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split in file order, with or without image; all ids for an empty name."""
        return tuple(item for item in self.rows if not split or self.splits[item] == split)


def read_items(folder: Path, table: str = "items.csv", images: Path | None = None) -> ItemTable:
    """Read a table of items and find their images: column `file`, else `images/ID.jpg|png|webp|...`.

    Args:
        folder: The folder that holds the table.
        table: The table's file name.
        images: Where images are when not in `folder/images`.

    Returns:
        The table; ids without an image are in `missing`.

    Raises:
        NotFoundError: The folder or the table is not there.
        DataError: A row cannot be used; the message names file and line.
    """
    file = folder / table
    if not folder.is_dir():
        raise NotFoundError(f"no such folder: {folder}; give the folder that holds {table}")
    if not file.is_file():
        raise NotFoundError(f"no {table} in {folder}; it needs a column id and one row per image")
    finder = _ImageFinder(folder, images or folder / "images")
    rows: dict[str, dict[str, str]] = {}
    splits: dict[str, str] = {}
    paths: dict[str, Path] = {}
    header, lines = read_csv(file, ("id",), RESERVED)
    columns = tuple(column for column in header if column not in RESERVED)
    for where, row in lines:
        item = row["id"]
        if not item:
            raise DataError(f"{where} has no id; give each row one")
        if item in rows:
            raise DataError(f"{where} repeats the id {item!r}; ids must be unique")
        path = finder.find(item, row.get("file", ""), where)
        if path:
            paths[item] = path
        splits[item] = row.get("split", "")
        rows[item] = {column: row[column] for column in columns}
    if not rows:
        raise DataError(f"{file} has no rows; write one per image")
    dead = dead_files(set(paths.values()))
    paths = {item: path for item, path in paths.items() if path not in dead}
    return ItemTable(file, columns, rows, splits, paths, dead)


class _ImageFinder:
    """Finds images by id; lists the image folder once, because a stat per id and suffix is slow on a disk far away."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self.images = folder, images
        try:
            names = os.listdir(images) if images.is_dir() else []
        except OSError as error:
            raise DataError(f"{images} cannot be read: {error.strerror}; check its permissions") from None
        self._by_stem: dict[str, list[str]] = {}
        for name in names:
            stem, dot, suffix = name.rpartition(".")
            if dot and f".{suffix.lower()}" in SUFFIXES:
                self._by_stem.setdefault(stem, []).append(name)

    def find(self, item: str, file: str, where: str) -> Path | None:
        """Return the image of an item, None where there is none."""
        if not file:
            names = self._by_stem.get(item)
            return self.images / min(names, key=_preference) if names else None
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise DataError(f"{where} names the file {file!r} outside the folder; use a path under {self.folder}")
        candidates = (self.folder / file, self.images / file)
        return next((path for path in candidates if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name far too long, a locked folder: there is no image to be had
        return False


def _preference(name: str) -> int:
    return SUFFIXES.index(f".{name.rpartition('.')[2].lower()}")
