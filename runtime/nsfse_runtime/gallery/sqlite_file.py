"""How a gallery's SQLite file is opened and locked, and its errors as nsfse's own, in one line."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from nsfse_runtime.errors import IntegrityError, NsfseError, OutputError


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open `path` in SQLite's `mode`: rw, rwc or ro, with more parameters after it. Raises sqlite3.Error."""
    # A thread has a connection of its own; only closing happens from another.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Be the one writer of `path` for a while; the system frees the lock with the process, so it is never stale.

    Raises OutputError at once when there is another.
    """
    # The lock is on a file of its own, or the gallery's own would be free between two batches.
    with translated(path), closing(sqlite3.connect(f"{path}.lock", timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("PRAGMA journal_mode = MEMORY")  # no second file beside it
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if not error_name(error).startswith("SQLITE_BUSY"):
                raise
            raise OutputError(f"{path} is being written by another process; wait until it has ended") from None
        yield


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about `path` into nsfse's."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from error


def _translate(path: Path, error: sqlite3.Error) -> NsfseError | sqlite3.Error:
    name = error_name(error)
    if name.startswith("SQLITE_NOTADB"):
        return IntegrityError(f"{path} is not a gallery; name another file, or make one with: nsfse index")
    if name.startswith("SQLITE_BUSY"):
        return OutputError(f"{path} is being written by another process; wait until it has ended")
    if name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return OutputError(f"{path} cannot be opened or written: {error}; check the disk and the rights")
    # SQLITE_ERROR: a table or column is gone; no name at all: Python could not decode a text.
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_ERROR")) or (
        not name and isinstance(error, sqlite3.OperationalError)
    ):
        return damaged(path, str(error))
    return error


def damaged(path: Path, why: str) -> IntegrityError:
    """Return the error for a gallery that holds something else than was written."""
    return IntegrityError(f"{path} is damaged ({why}); restore a copy, or delete it and index again")


def error_name(error: sqlite3.Error) -> str:
    """Return SQLite's name of an error, "" where Python raised it without one."""
    return getattr(error, "sqlite_errorname", None) or ""
