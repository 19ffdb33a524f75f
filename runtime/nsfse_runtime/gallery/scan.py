"""What a folder of images holds: regular files by their path, what could not be looked at, and what is left out."""

import os
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from nsfse_runtime.escaping import printable
from nsfse_runtime.image_names import nfc

FileStamp = tuple[int, int]  # size in bytes, time of last change in ns

SYSTEM_FOLDERS = (
    *("@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot"),  # Synology, QNAP
    *("$RECYCLE.BIN", "System Volume Information", "RECYCLER"),  # Windows
    *("lost+found", "__MACOSX", "Network Trash Folder", "Temporary Items"),  # Linux, macOS
    *("node_modules", "__pycache__"),
)
"""Folders of thumbnails, deleted files and software, left out whatever the case of their names."""
_SYSTEM = {name.casefold() for name in SYSTEM_FOLDERS}


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds.

    Attributes:
        files: Stamps by POSIX path relative to the folder.
        skipped: What was skipped: (path, reason).
        unreadable_dirs: Folders, and single files, that could not be read.
        left_out: Files and folders by the rule that left them out; a folder counts as one.
        mounts: Sub-folders on another disk than the folder.
    """

    files: dict[str, FileStamp] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unreadable_dirs: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)

    def may_exist(self, name: str) -> bool:
        """Tell whether `name` is there, or in a folder that could not be read: it is then not known to be gone."""
        return name in self.files or any(name.startswith(prefix) for prefix in self.unreadable_dirs)


def clean_globs(globs: Iterable[str]) -> tuple[str, ...]:
    """Return globs in the one form that is stored: "/" as separator, none at the start, each once, no empty ones."""
    cleaned = (nfc(glob.strip().replace("\\", "/")).removeprefix("./").lstrip("/") for glob in globs)
    return tuple(dict.fromkeys(glob for glob in cleaned if glob))


def rule_against(path: str, globs: Sequence[str], *, folder: bool) -> str | None:
    """Return the rule by which the file or `folder` at `path` is left out: its system name or a glob of `globs`."""
    name = path.rpartition("/")[2]
    if folder and name.casefold() in _SYSTEM:
        return name
    path, name = nfc(path), nfc(name)
    for glob in globs:
        pattern = glob.removesuffix("/")
        if (folder or pattern == glob) and fnmatchcase(path if "/" in pattern else name, pattern):
            return glob
    return None


def is_left_out(path: str, globs: Sequence[str]) -> bool:
    """Tell whether an image at `path` is left out: it, or a folder that it is in."""
    parts = path.split("/")
    parents = ("/".join(parts[:count]) for count in range(1, len(parts)))
    return any(rule_against(parent, globs, folder=True) for parent in parents) or bool(
        rule_against(path, globs, folder=False)
    )


def list_folder(folder: Path, leave_out: Collection[str] = (), globs: Sequence[str] = ()) -> Listing:
    """List every regular file under `folder` but hidden ones and `leave_out` (real paths). Links are not followed.

    System folders are not listed.

    Args:
        folder: The folder to list.
        leave_out: Real paths of files and folders that are not listed.
        globs: Patterns (clean_globs) of what is not listed. One without "/" is compared with the name of a file or
            folder. One with "/" is compared with its whole path, in which * stands for "/" as well. One that ends in
            "/" applies to folders alone.
    """
    listing, waiting = Listing(), [""]
    names = {os.path.basename(path) for path in leave_out}
    disks = {"": _disk(folder)}
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            listing.skipped.append((printable(prefix or "."), f"the folder cannot be read: {error.strerror}"))
            listing.unreadable_dirs.append(prefix)
            continue
        for entry in children:
            if entry.name.startswith(".") or (entry.name in names and os.path.realpath(entry.path) in leave_out):
                continue
            path, is_folder = f"{prefix}{entry.name}", entry.is_dir(follow_symlinks=False)
            if rule := rule_against(path, globs, folder=is_folder):
                listing.left_out[rule] = listing.left_out.get(rule, 0) + 1
            elif is_folder:
                waiting.append(f"{path}/")
                disks[f"{path}/"] = _disk(entry.path)
                if disks[f"{path}/"] != disks[prefix]:
                    listing.mounts.append(f"{path}/")
            else:
                _add(listing, path, entry)
    return listing


def _disk(path: str | Path) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _add(listing: Listing, name: str, entry: os.DirEntry[str]) -> None:
    try:
        name.encode()
        status = entry.stat(follow_symlinks=False)
    except UnicodeEncodeError:
        listing.skipped.append((printable(name), "its name is not valid UTF-8; rename it"))
        return
    except OSError as error:
        listing.skipped.append((name, f"it cannot be read: {error.strerror}"))
        listing.unreadable_dirs.append(name)
        return
    if stat.S_ISLNK(status.st_mode):
        listing.skipped.append((name, "it is a link; links are not followed"))
    elif not stat.S_ISREG(status.st_mode):
        listing.skipped.append((name, "it is not a regular file"))
    else:
        listing.files[name] = (status.st_size, status.st_mtime_ns)
