"""Index of a data set's files: one walk of a folder, images found by name in any layout.

Public data sets are handed on in many forms: one folder or one per category, `train/34/x.png` or
`train/x.png`, .png for .jpg. Some have an extra folder on top, or images far from the annotations.
Images are found by name; where a name has folders, they tell apart images of the same file name.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nsfse_runtime.errors import ImageError, NotFoundError
from nsfse_runtime.escaping import printable
from nsfse_runtime.image_names import SUFFIXES
from nsfse_runtime.regular_files import open_regular

TABLES = (".json", ".jsonl", ".txt", ".csv", ".parquet")
"""Suffixes of annotation files; where a name occurs twice, the file nearest to the top is taken."""
EMPTY, NO_IMAGE = "0 bytes", "not an image"
"""Why a file counts as missing: a dead download."""

_STARTS = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"8BPS", b"\0\0\1\0", b"\xff\x0a")
_THREADS = 16
_BATCH = 256


@dataclass(frozen=True, slots=True)
class FileIndex:
    """The files of a data set's folders: image files by stem (the best first), other files by name."""

    roots: tuple[Path, ...]
    by_key: Mapping[str, tuple[Path, ...]] = field(repr=False)
    empty: frozenset[Path] = field(repr=False)
    """Images of 0 bytes: a dead download, as missing as no file at all."""
    files: Mapping[str, Path] = field(repr=False)
    skipped: tuple[tuple[str, str], ...] = ()
    """(folder or file, reason) of what could not be read."""
    no_images: dict[Path, str] = field(default_factory=dict, repr=False)
    """Files found for a name that hold no image, with the reason; `locate` adds to them."""

    def locate(self, names: Iterable[str]) -> dict[str, Path]:
        """Find the files of named images.

        A file that fits another of the names as well or better is not taken: the image of the same name is
        missing. So is one whose file is empty or holds no image, such as the page of a dead link.

        Args:
            names: Images, each an id, a file name or a path.

        Returns:
            Name → file, of the images that are there.
        """
        listed = list(dict.fromkeys(names))
        groups: dict[str, list[_Listed]] = defaultdict(list)
        for name in listed:
            groups[_key(name)].append(_Listed.of(name))
        folders = frozenset(part for group in groups.values() for entry in group for part in entry.folders)
        chosen: dict[str, tuple[Path, ...]] = {}
        for key, group in groups.items():
            if key in self.by_key:
                chosen |= self._chosen(group, self.by_key[key], folders)
        wrong = self._without_image({path for paths in chosen.values() for path in paths})
        first = {name: next((path for path in chosen.get(name, ()) if path not in wrong), None) for name in listed}
        return {name: path for name, path in first.items() if path is not None}

    def file(self, name: str) -> Path:
        """Return an annotation file by its name; raise NotFoundError with the folder that was searched."""
        if name not in self.files:
            raise NotFoundError(f"no {name} under {self.roots[0]}; give the folder that holds the official annotations")
        return self.files[name]

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about what could not be read."""
        if not self.skipped:
            return ()
        total = counted(len(self.skipped), "folder or file", "folders or files")
        first = ", ".join(f"{path} ({reason})" for path, reason in self.skipped[:3])
        more = f" and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
        return (f"{total} could not be read, the rest is used: {first}{more}",)

    def _chosen(
        self, group: Sequence["_Listed"], files: Sequence[Path], folders: Collection[str]
    ) -> dict[str, tuple[Path, ...]]:
        """Return name → files that it may be, the best first, for listed names and files of one stem."""
        with_folders = [entry for entry in group if entry.folders]
        bare = [entry for entry in group if entry.suffix and not entry.folders]
        ids = [entry for entry in group if not (entry.folders or entry.suffix)]
        tails: dict[tuple[str, ...], list[_Listed]] = defaultdict(list)
        for entry in with_folders if len(with_folders) > 1 else ():
            for start in range(len(entry.folders)):
                tails[entry.folders[start:]].append(entry)
        fitting: dict[str, list[tuple[tuple[int, bool], Path]]] = defaultdict(list)
        for path in files:
            top, parents = self._root_and_parents(path)
            within = with_folders if len(with_folders) < 2 else _match_by_folders((top, *parents), path.name, tails)
            named = bare if len(bare) < 2 else _match_by_name(path.name, bare)
            for entry in (*within, *named, *ids):
                if (fit := entry.fit(top, parents, path.name, folders)) is not None:
                    fitting[entry.name].append((fit, path))
        return {
            name: tuple(path for _, path in sorted(fits, key=lambda fit: fit[0], reverse=True))
            for name, fits in fitting.items()
        }

    def _root_and_parents(self, path: Path) -> tuple[str, tuple[str, ...]]:
        """Return the name of the outermost root over a file, and the folders below it."""
        root = min((root for root in self.roots if path.is_relative_to(root)), key=lambda root: len(root.parts))
        return root.name, path.relative_to(root).parts[:-1]

    def _without_image(self, paths: set[Path]) -> Mapping[Path, str]:
        """Look at the first bytes of files not seen before; return all that hold no image."""
        self.no_images.update(dead_files(paths - self.no_images.keys()))
        return self.no_images


@dataclass(frozen=True, slots=True)
class _Listed:
    """An image as a data set lists it: the `folders` before its file name, and the `suffix` where it has one."""

    name: str
    folders: tuple[str, ...]
    last: str
    suffix: bool

    @classmethod
    def of(cls, name: str) -> "_Listed":
        *folders, last = _normal(name).split("/")
        named = tuple(part for part in folders if part not in ("", "."))
        return cls(name, named, last, stem(last) != last)

    def fit(self, top: str, parents: tuple[str, ...], file: str, folders: Collection[str]) -> tuple[int, bool] | None:
        """Return how well a file fits: folders in common from the end, and whether the suffix is the same.

        `top` is the root's name, `parents` the folders below it. None where the file is in another branch of the
        listing: above the folders in common stands one that the listing knows, and what follows it is not listed so.
        """
        shared = _shared((top, *parents), self.folders)
        above = parents[: max(0, len(parents) - shared)]
        known = next((index for index, part in enumerate(above) if part in folders), len(above))
        wanted = iter(self.folders)
        if shared < len(self.folders) and not all(part in wanted for part in above[known:]):
            return None
        return shared, _normal(file) == self.last


def scan(*roots: Path) -> FileIndex:
    """Walk folders once, links followed, each real folder once.

    Args:
        roots: The data set's folder, and the folder of images where it is another.

    Returns:
        The index; folders and files that cannot be read are in `skipped`.

    Raises:
        NotFoundError: A folder is not there.
    """
    by_key: dict[str, list[Path]] = {}
    files: dict[str, Path] = {}
    empty: set[Path] = set()
    skipped: list[tuple[str, str]] = []
    for root in roots:
        if not root.is_dir():
            raise NotFoundError(f"no such folder: {root}; give the folder of the data set")
        for entry, size in _walk(root, skipped):
            path = Path(entry.path)
            if path.suffix.lower() in TABLES:
                files.setdefault(entry.name, path)
            elif path.suffix.lower() in SUFFIXES:
                by_key.setdefault(_key(entry.name), []).append(path)
                if size == 0:
                    empty.add(path)
    order = {key: tuple(sorted(paths, key=lambda path: _preference(path, empty))) for key, paths in by_key.items()}
    return FileIndex(roots, order, frozenset(empty), files, tuple(skipped))


def image_id(name: str) -> str:
    """Return the id of an image that an annotation names: without folders, blanks around and the image's suffix."""
    return stem(PurePosixPath(name.strip()).name)


def stem(name: str) -> str:
    """Return a file name without the suffix of an image; other dots belong to the name."""
    head, dot, tail = name.rpartition(".")
    return head if head and dot and f".{tail.lower()}" in SUFFIXES else name


def dead_files(paths: Collection[Path]) -> dict[Path, str]:
    """Return the files that hold no image, whole or damaged, by their first bytes, each with the reason."""
    ordered = sorted(paths)
    dead: dict[Path, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(_dead, [ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH)]):
            dead.update(part)
    return dead


def broken_images(
    paths: Collection[Path], index: FileIndex, also: Mapping[Path, str] | None = None, workers: int = 4
) -> tuple[tuple[str, str], ...]:
    """Decode every image.

    Args:
        paths: The images.
        index: Names the files that hold no image.
        also: Further files that hold no image, with the reason.
        workers: Threads that decode.

    Returns:
        (file, reason) of those that cannot be read, files that hold no image first.
    """
    dead = {path: EMPTY for path in index.empty} | index.no_images | dict(also or {})
    first = tuple((str(path), reason) for path, reason in sorted(dead.items(), key=lambda item: (item[1], item[0])))
    with ThreadPoolExecutor(workers) as pool:
        reasons = pool.map(_reason, paths)
        return first + tuple((str(path), reason) for path, reason in zip(paths, reasons, strict=True) if reason)


def absent(listed: Iterable[str], images: Mapping[str, Path]) -> tuple[str, ...]:
    """Return the ids of `listed` that have no image, each once, in order."""
    return tuple(item for item in dict.fromkeys(listed) if item not in images)


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return a number and its noun: "1 pair", "2 pairs"."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _dead(paths: Iterable[Path]) -> dict[Path, str]:
    dead: dict[Path, str] = {}
    for path in paths:
        try:
            with open_regular(path) as file:
                head = file.read(16)
        except OSError:  # reading the image will say what is wrong
            continue
        riff, iso_media = head[:4] == b"RIFF" and head[8:12] == b"WEBP", head[4:8] in (b"ftyp", b"jP  ", b"JXL ")
        if not head:
            dead[path] = EMPTY
        elif not (head.startswith(_STARTS) or riff or iso_media):
            dead[path] = NO_IMAGE
    return dead


def _reason(path: Path) -> str | None:
    from nsfse_runtime.images.decode import decode_image

    try:
        decode_image(path)
    except (ImageError, NotFoundError) as error:
        return str(error).removeprefix(f"{printable(os.fspath(path))}: ")
    return None


def _walk(root: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[os.DirEntry[str], int]]:
    """Yield the files under `root` and their sizes, nearest first; add to `skipped` what cannot be read."""
    pending: list[str] = [str(root)]
    seen: set[str] = set()
    while pending:
        folder = pending.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            skipped.append((printable(folder), f"{error.strerror}"))
            continue
        for entry in listed:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.is_file():
                    yield entry, entry.stat().st_size
            except OSError as error:
                skipped.append((printable(entry.path), f"{error.strerror}"))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _key(name: str) -> str:
    return stem(_normal(name).rpartition("/")[2])


def _shared(parents: Sequence[str], wanted: Sequence[str]) -> int:
    """Return how many folders are the same, counted from the end."""
    pairs = zip(reversed(parents), reversed(wanted), strict=False)
    return next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(parents), len(wanted)))


def _match_by_folders(
    parents: tuple[str, ...], file: str, tails: Mapping[tuple[str, ...], Sequence[_Listed]]
) -> Sequence[_Listed]:
    """Return the one listed name whose folders a file has most of in common; none where two fit it alike."""
    for start in range(len(parents)):
        if listed := tails.get(parents[start:]):
            return listed if _is_one_image(listed) else _match_by_name(file, listed)
    return ()


def _match_by_name(file: str, listed: Sequence[_Listed]) -> Sequence[_Listed]:
    """Return the one of `listed` that has a file's very name, suffix included; none where there is not one."""
    same = [entry for entry in listed if entry.last == _normal(file)]
    return same if _is_one_image(same) else ()


def _is_one_image(listed: Sequence[_Listed]) -> bool:
    """Return whether the names are one, spelled in several ways."""
    return len({(entry.folders, entry.last) for entry in listed}) == 1


def _preference(path: Path, empty: Collection[Path]) -> tuple[bool, int, int, str]:
    return path in empty, SUFFIXES.index(path.suffix.lower()), len(path.parts), str(path)
