"""What lies in a folder of pictures: regular files by their path, and what could not be looked at, with its reason."""

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from nsfse_runtime.printable import printable

Stamp = tuple[int, int]  # size in bytes, time of last change in ns


@dataclass(frozen=True, slots=True)
class Listing:
    """`files` by POSIX path relative to the folder; `skipped` (path, reason); `unread` are folders not looked into."""

    files: dict[str, Stamp] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def may_exist(self, name: str) -> bool:
        """Tell whether `name` is there, or lies where one could not look: it is then not known to be gone."""
        return name in self.files or any(name.startswith(prefix) for prefix in self.unread)


def list_folder(folder: Path, leave_out: Collection[str] = ()) -> Listing:
    """List every regular file under `folder` but hidden ones and `leave_out` (real paths). Links are not followed."""
    listing, waiting = Listing(), [""]
    names = {os.path.basename(path) for path in leave_out}
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            listing.skipped.append((printable(prefix or "."), f"the folder cannot be read: {error.strerror}"))
            listing.unread.append(prefix)
            continue
        for entry in found:
            if entry.name.startswith(".") or (entry.name in names and os.path.realpath(entry.path) in leave_out):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{prefix}{entry.name}/")
            else:
                _add(listing, f"{prefix}{entry.name}", entry)
    return listing


def _add(listing: Listing, name: str, entry: os.DirEntry[str]) -> None:
    try:
        name.encode()
        status = entry.stat(follow_symlinks=False)
    except UnicodeEncodeError:
        listing.skipped.append((printable(name), "its name is not valid UTF-8; rename it"))
        return
    except OSError as error:
        listing.skipped.append((name, f"it cannot be read: {error.strerror}"))
        listing.unread.append(name)
        return
    if stat.S_ISLNK(status.st_mode):
        listing.skipped.append((name, "it is a link; links are not followed"))
    elif not stat.S_ISREG(status.st_mode):
        listing.skipped.append((name, "it is not a regular file"))
    else:
        listing.files[name] = (status.st_size, status.st_mtime_ns)
