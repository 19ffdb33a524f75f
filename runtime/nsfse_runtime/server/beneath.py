"""A file of a folder, opened so that no link leads elsewhere, not even one that is made at that moment."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_BY_PARTS = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW") and hasattr(os, "O_DIRECTORY")


def open_beneath(folder: Path, name: str) -> BinaryIO:
    """Open the regular file `name` beneath `folder`, its parts apart by slashes. Only `folder` may be a link.

    Raises OSError where there is none, where it is something else, and where a part of `name` is a link or "..".
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, "no name of a file", name)
    descriptor = _open_by_parts(folder, parts) if _BY_PARTS else _open_and_compare(folder, parts)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", name)


def _open_by_parts(folder: Path, parts: list[str]) -> int:
    """Open each folder within the one before: what is renamed or linked meanwhile changes nothing."""
    as_folder = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
    here = os.open(folder, as_folder)
    try:
        for part in parts[:-1]:
            within = os.open(part, as_folder | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = within
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)


def _open_and_compare(folder: Path, parts: list[str]) -> int:
    """Open a path, and afterwards require that it has no link and is still the file that was opened."""
    path = os.path.join(os.path.realpath(folder), *parts)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        if os.path.realpath(path) == path and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise OSError(errno.ELOOP, "it is a link", path)
