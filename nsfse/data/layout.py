"""Where a data set's files really are: one walk of a folder, pictures found by name in whatever layout they lie.

Public data sets are handed on in many forms: one folder or one per category, `train/34/x.png` or `train/x.png`, .png
for .jpg, an extra folder on top, pictures far from the annotations. Names are unique, so names find them.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nsfse_runtime.errors import DataError, ImageError, NotFoundError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""Suffixes of pictures, the preferred ones first where one id has several files."""
TABLES = (".json", ".jsonl", ".txt", ".csv")
"""Suffixes of annotation files; where a name occurs twice, the file nearest to the top is taken."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies in a data set's folders: picture files by stem (the best first), other files by name."""

    roots: tuple[Path, ...]
    pictures: Mapping[str, tuple[Path, ...]] = field(repr=False)
    empty: frozenset[Path] = field(repr=False)
    """Pictures of 0 bytes: a dead download, as missing as no file at all."""
    files: Mapping[str, Path] = field(repr=False)

    def picture(self, name: str) -> Path | None:
        """Return the file of a picture given by id, file name or relative path; None where there is none."""
        folder, _, last = name.rpartition("/")
        found = self.pictures.get(_stem(last))
        if not found:
            return None
        if folder and len(found) > 1:
            wanted = PurePosixPath(name)
            found = tuple(sorted(found, key=lambda path: -_shared_tail(path, wanted)))
        return found[0]

    def locate(self, names: Iterable[str]) -> dict[str, Path]:
        """Return name → file for the pictures that are there and not empty."""
        found = ((name, self.picture(name)) for name in names)
        return {name: path for name, path in found if path is not None and path not in self.empty}

    def file(self, name: str) -> Path:
        """Return an annotation file by its name; raise NotFoundError that says where it was looked for."""
        if name not in self.files:
            raise NotFoundError(f"no {name} under {self.roots[0]}; give the folder that holds the official annotations")
        return self.files[name]


def scan(*roots: Path) -> Layout:
    """Walk folders once (links followed, each real folder once); raise NotFoundError for a folder that is not there."""
    pictures: dict[str, list[Path]] = {}
    files: dict[str, Path] = {}
    empty: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise NotFoundError(f"no such folder: {root}; give the folder of the data set")
        for entry in _walk(root):
            path = Path(entry.path)
            if path.suffix.lower() in TABLES:
                files.setdefault(entry.name, path)
            elif path.suffix.lower() in SUFFIXES:
                pictures.setdefault(_stem(entry.name), []).append(path)
                if entry.stat().st_size == 0:
                    empty.add(path)
    order = {stem: tuple(sorted(paths, key=lambda path: _preference(path, empty))) for stem, paths in pictures.items()}
    return Layout(roots, order, frozenset(empty), files)


def read_json(path: Path) -> Any:
    """Return a JSON file's content; raise DataError naming the file when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a JSON file ({error}); fetch it again") from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that hold something; raise DataError when it is not UTF-8."""
    try:
        return [line.rstrip("\r\n") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file ({error}); fetch it again") from error


def broken_pictures(paths: Collection[Path], layout: Layout, workers: int = 4) -> tuple[tuple[str, str], ...]:
    """Decode every picture and return (file, reason) of those that cannot be read, zero-byte files first."""
    zero = tuple((str(path), "0 bytes") for path in sorted(layout.empty))
    with ThreadPoolExecutor(workers) as pool:
        reasons = pool.map(_reason, paths)
        return zero + tuple((str(path), reason) for path, reason in zip(paths, reasons, strict=True) if reason)


def absent(listed: Iterable[str], images: Mapping[str, Path]) -> tuple[str, ...]:
    """Return the ids of `listed` that have no picture, each once, in order."""
    return tuple(item for item in dict.fromkeys(listed) if item not in images)


def _reason(path: Path) -> str | None:
    from nsfse_runtime.images import decode_image

    try:
        decode_image(path)
    except (ImageError, NotFoundError) as error:
        return str(error)
    return None


def _walk(root: Path) -> Iterator[os.DirEntry[str]]:
    pending: list[str] = [str(root)]
    seen: set[str] = set()
    while pending:
        folder = pending.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                pending.append(entry.path)
            elif entry.is_file():
                yield entry


def _stem(name: str) -> str:
    head, dot, tail = name.rpartition(".")
    return head if dot and f".{tail.lower()}" in SUFFIXES else name


def _preference(path: Path, empty: Collection[Path]) -> tuple[bool, int, int, str]:
    return path in empty, SUFFIXES.index(path.suffix.lower()), len(path.parts), str(path)


def _shared_tail(path: Path, wanted: PurePosixPath) -> int:
    ours: Sequence[str] = path.parent.parts[::-1]
    theirs = wanted.parent.parts[::-1]
    matches = (a == b for a, b in zip(ours, theirs, strict=False))
    count = 0
    for match in matches:
        if not match:
            break
        count += 1
    return count
