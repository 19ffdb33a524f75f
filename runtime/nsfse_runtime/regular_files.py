"""Regular files, opened for reading: a pipe or device in the place of one is refused, not waited for."""

import errno
import os
import stat
from io import BufferedReader


class IrregularFileError(OSError):
    """A pipe, socket or device is in the place of a file."""


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        path: The file.
        follow: Open what a link leads to; otherwise a link is an error.

    Raises:
        IrregularFileError: It is neither a file nor a folder.
        OSError: It cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise IrregularFileError(errno.EINVAL, "it is not a regular file", os.fspath(path))


def read_regular(path: str | os.PathLike[str], limit: int = -1, *, follow: bool = True) -> bytes:
    """Return the content of a regular file, of more than `limit` bytes the first ones. Raises as `open_regular`."""
    with open_regular(path, follow=follow) as file:
        return file.read(limit)
