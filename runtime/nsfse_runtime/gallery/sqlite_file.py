"""How a gallery's SQLite file is opened and locked, and its errors as nsfse's own, in one line."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from nsfse_runtime.errors import IntegrityError, NsfseError, OutputError

_LARGEST_VALUE = 1 << 26  # bytes of one text or blob
# A statement may take so many steps of SQLite's machine, and so many for each byte of the file: one that scans and
# sorts all rows takes about one a byte. A crafted file whose pages lead in circles would take for ever.
_STEPS, _STEPS_PER_BYTE, _STEPS_PER_CALL = 10_000_000, 20, 1_000_000


# A full or read-only disk has no space for SQLite's files beside the gallery.
_NOT_WRITABLE = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_IOERR", "SQLITE_FULL")


class Connection(sqlite3.Connection):
    """A connection to a file that may be from elsewhere: no code of its schema runs, and no statement for ever."""

    _seen: tuple[int, ...] = ()

    def limit(self, path: Path) -> None:
        """Set the limits, by the size of the file."""
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE)
        self.execute("PRAGMA trusted_schema = OFF")
        self._path, self._calls = path, 0
        self.set_progress_handler(self._is_over, _STEPS_PER_CALL)

    def start_statement(self) -> None:
        """Begin to count the steps of a statement."""
        self._calls = 0

    def _is_over(self) -> bool:
        self._calls += 1
        size = sum(_state(self._path)[::2])
        return self._calls * _STEPS_PER_CALL > _STEPS + _STEPS_PER_BYTE * size

    def watch(self) -> None:
        """Remember how the file is now: this connection would not see that another process writes it."""
        self._seen = _state(self._path)

    @property
    def is_outdated(self) -> bool:
        """Tell whether a watched file is another than it was."""
        return bool(self._seen) and self._seen != _state(self._path)


def _state(path: Path) -> tuple[int, ...]:
    """Return size and time of a file and of the log beside it."""
    state: tuple[int, ...] = ()
    for file in (path, Path(f"{path}-wal")):
        try:
            status = file.stat()
        except OSError:
            state += (0, 0)
        else:
            state += (status.st_size, status.st_mtime_ns)
    return state


def connect(path: Path, mode: str) -> Connection:
    """Open `path` in SQLite's `mode`: rw, rwc or ro, with more parameters after it.

    Raises sqlite3.Error, or OutputError where a device, pipe or folder is in its place.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} cannot be opened: it is not a regular file; name another file")
    # A thread has a connection of its own; only closing happens from another.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=30,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    connection.limit(path)
    return connection


def connect_reader(path: Path) -> Connection:
    """Open `path` for reading, also on a disk that is read-only or full. Raises sqlite3.Error or OutputError."""
    connection = connect(path, "rw")
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if not error_name(error).startswith(_NOT_WRITABLE):
            raise
        # With no log beside it the file is whole and, here, nobody writes it: then SQLite needs no companions.
        log = Path(f"{path}-wal")
        is_whole = not log.exists() or log.stat().st_size == 0
        connection = connect(path, "ro&immutable=1" if is_whole else "ro")
        connection.watch()
    except BaseException:
        connection.close()
        raise
    connection.execute("PRAGMA query_only = ON")
    return connection


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Be the one writer of `path` for a while, by whatever name others know it.

    The system frees the lock with the process, so it is never stale.

    Raises:
        OutputError: At once, when there is another writer, or the file has a second name that links do not lead to.
    """
    real = Path(os.path.realpath(path))
    _check_one_name(path, real)
    file = Path(f"{real}.lock")
    if file.exists() and not file.is_file():
        raise OutputError(f"{file} is in the place of the gallery's lock; move it away")
    # The lock is on a file of its own, or the gallery's own would be free between two batches.
    with translated(path), closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("PRAGMA journal_mode = MEMORY")  # no second file beside it
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.DatabaseError as error:
            if error_name(error).startswith("SQLITE_NOTADB"):
                raise OutputError(f"{file} is in the place of the gallery's lock; move it away") from None
            if not error_name(error).startswith("SQLITE_BUSY"):
                raise
            raise OutputError(f"{path} is being written by another process; wait until it has ended") from None
        yield


def _check_one_name(path: Path, real: Path) -> None:
    """Refuse a file that SQLite would write by two names, each with a log of its own: that destroys it."""
    if real.is_file() and (names := real.stat().st_nlink) > 1:
        raise OutputError(
            f"{path} has {names} names (hard links) and cannot be written safely; make a copy, and move it to this name"
        )
    if str(real) in _mount_points():
        raise OutputError(f"{path} is mounted as a single file and cannot be written safely; mount its folder instead")


def _mount_points() -> set[str]:
    """Return where something is mounted, as far as the system tells: Linux does."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return set()
    places = (line.split(" ")[4] for line in lines)
    return {place.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\") for place in places}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about `path` into nsfse's."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from error
    except UnicodeDecodeError as error:  # in an error's message, which names what the file holds
        raise damaged(path, "a name is not UTF-8") from error


@contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Turn what values of a wrong type or form make Python raise into IntegrityError: no gallery holds such ones."""
    try:
        yield
    except NsfseError:
        raise
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise damaged(path, f"a value is not in its form: {type(error).__name__}") from error


def _translate(path: Path, error: sqlite3.Error) -> NsfseError | sqlite3.Error:
    name = error_name(error)
    if name.startswith("SQLITE_NOTADB"):
        return IntegrityError(f"{path} is not a gallery; name another file, or make one with: nsfse index")
    if name.startswith("SQLITE_BUSY"):
        return OutputError(f"{path} is being written by another process; wait until it has ended")
    if name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return OutputError(f"{path} cannot be opened or written: {error}; check the disk and the rights")
    if name.startswith("SQLITE_INTERRUPT"):
        return damaged(path, "reading it takes for ever")
    # SQLITE_ERROR: a table or column is gone; no name at all: Python could not decode a text.
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_ERROR", "SQLITE_TOOBIG", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH")):
        return damaged(path, str(error))
    return error if name else damaged(path, str(error))


def damaged(path: Path, why: str) -> IntegrityError:
    """Return the error for a gallery that holds something else than was written."""
    return IntegrityError(f"{path} is damaged ({why}); see: nsfse gallery repair")


def error_name(error: sqlite3.Error) -> str:
    """Return SQLite's name of an error, "" where Python raised it without one."""
    return getattr(error, "sqlite_errorname", None) or ""
