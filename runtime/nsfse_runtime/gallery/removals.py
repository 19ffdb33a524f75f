"""Which images a sync would drop, and whether that many may go: a disk may not be mounted."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsfse_runtime.errors import InputError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.reader import content_hash, looks_like_image
from nsfse_runtime.gallery.scan import FileStamp, Listing, is_left_out

HOW_TO_ALLOW = "nothing was changed; where that is meant: --allow-removals (allow_removals=True)"
FEW = 4  # fewer removals are not looked at
# In a sub-folder they are looked at from so many images on, or so many where the folder is there but empty.
_MANY, _MANY_EMPTY = 10, 5


@dataclass(frozen=True, slots=True)
class Item:
    """What the gallery knows of one image: the key of its content, its file's stamp, its metadata as JSON."""

    content: int
    stamp: FileStamp
    metadata: str


class Removals:
    """The images of a gallery that a listing of its folder does not have."""

    def __init__(
        self,
        path: Path,
        folder: Path,
        listing: Listing,
        items: Mapping[str, Item],
        contents: Mapping[bytes, int],
        globs: Sequence[str],
    ) -> None:
        """Compare the `listing` of `folder` with the `items` and `contents` of the gallery at `path`."""
        self._path, self._folder, self._listing, self._items = path, folder, listing, items
        self._contents = contents
        # Names that are gone, by what they showed: a new file that shows the same is a rename.
        self._by_content: dict[int, list[str]] = {}
        for name, item in items.items():
            if not listing.may_exist(name):
                self._by_content.setdefault(item.content, []).append(name)
        self._excluded = {name for name in self.names() if is_left_out(name, globs)}

    def names(self) -> list[str]:
        """Return the names that are gone and were not taken as renamed."""
        return [name for names in self._by_content.values() for name in names]

    def count_excluded(self, names: Iterable[str]) -> int:
        """Return how many of `names` are gone since a rule leaves them out."""
        return sum(name in self._excluded for name in names)

    def take_renamed(self, content: int) -> str | None:
        """Return a name that is gone and showed `content`, which is then no removal; None where there is none."""
        names = self._by_content.get(content)
        return names.pop() if names else None

    def check_folder(self, previous: str) -> None:
        """Refuse a folder with no image of the gallery, whose own folder `previous` is still there."""
        elsewhere = previous and Path(previous).is_dir() and not os.path.samefile(previous, self._folder)
        if self._items and elsewhere and self._listing.files and not self._items.keys() & self._listing.files.keys():
            raise UsageError(
                f"{self._path} follows {previous}, and {self._folder} has none of its images; "
                "use another gallery, or put both folders into one and index that"
            )

    def check(self, mounts: Sequence[str]) -> None:
        """Refuse to drop most of the gallery, or of one of its sub-folders.

        Moved images are not lost; what a rule leaves out now is meant to go.

        Args:
            mounts: The sub-folders that were on another disk.

        Raises:
            InputError: Too many would go; nothing is changed.
        """
        total = len(self._items) - len(self._excluded)
        if total and not self._listing.files and not self._listing.unreadable_dirs:
            raise InputError(
                f"{self._folder} holds no files but {self._path} has {total} images; is the disk mounted? "
                f"{HOW_TO_ALLOW}"
            )
        lost = self._lost()
        if self._refusal(lost, mounts) and (refusal := self._refusal(lost - self._moved(), mounts)):
            raise InputError(f"{refusal}; is a disk not mounted? {HOW_TO_ALLOW}")

    def _lost(self) -> set[str]:
        """Return the images whose files are gone, or hold no image any more."""
        lost = set(self.names()) - self._excluded
        files = self._listing.files
        changed = [name for name, item in self._items.items() if files.get(name, item.stamp) != item.stamp]
        if len(lost) + len(changed) >= FEW:
            lost |= {name for name in changed if not looks_like_image(self._folder / name)}
        return lost

    def _moved(self) -> set[str]:
        """Return names that are gone whose contents are there under new names."""
        sizes = {self._items[name].stamp[0] for name in self.names()}
        unclaimed = {content: list(names) for content, names in self._by_content.items()}
        moved = set()
        for name, stamp in self._listing.files.items():
            sha256 = content_hash(self._folder / name) if name not in self._items and stamp[0] in sizes else None
            if names := unclaimed.get(self._contents.get(sha256 or b"", -1)):
                moved.add(names.pop())
        return moved

    def _refusal(self, lost: set[str], mounts: Sequence[str]) -> str | None:
        """Return why these many images are not dropped, None where they may be."""
        if not lost:
            return None
        total = len(self._items) - len(self._excluded)
        if 2 * len(lost) > total and (len(lost) >= FEW or (len(lost) == total and not self._has_new())):
            return f"{len(lost)} of {total} images of {self._path} are gone from {self._folder}"
        before = _count_by_folder(name for name in self._items if name not in self._excluded)
        for folder, count in sorted(_count_by_folder(lost).items()):
            whole, top = count == before[folder], folder.count("/") == 1
            unmounted = folder in mounts and folder not in self._listing.mounts
            emptied = (
                whole and count >= _MANY_EMPTY and (self._folder / folder).is_dir() and not self._has_files(folder)
            )
            mostly_lost = before[folder] >= _MANY and (whole or (top and 2 * count > before[folder]))
            if unmounted or emptied or mostly_lost:
                return f"{count} of {before[folder]} images are gone from {printable(str(self._folder / folder))}"
        return None

    def _has_files(self, folder: str) -> bool:
        return any(name.startswith(folder) for name in self._listing.files)

    def _has_new(self) -> bool:
        new = (name for name in self._listing.files if name not in self._items)
        return any(looks_like_image(self._folder / name) for name in new)


def _count_by_folder(names: Iterable[str]) -> Counter[str]:
    """Count `names` by each folder that they are in, at any depth: "a/", "a/b/"."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split("/")
        counts.update("/".join(parts[:depth]) + "/" for depth in range(1, len(parts)))
    return counts
