"""The gallery's SQLite file: its tables, how it is opened, who may write, and its errors in one line.

`contents` holds features once per distinct image, `items` names them: a rename or a duplicate encodes nothing. SQLite
does not check what it reads back, so each row carries a CRC and `meta` the number of items: bit rot is an error.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from nsfse_runtime.errors import IntegrityError, NsfseError, OutputError, VersionError

FORMAT_VERSION = 2  # 1: regions in float16 (nsfse_runtime.inference.region_codec)
APPLICATION_ID = 0x6E736673  # "nsfs"
# Beside the file itself, while it is open; the lock stays, empty, and so does a large gallery's index.
COMPANIONS = ("", "-wal", "-shm", "-journal", ".lock", ".lock-journal", ".ann", ".ann.part")

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE contents (key INTEGER PRIMARY KEY AUTOINCREMENT, sha256 BLOB NOT NULL UNIQUE, vector BLOB NOT NULL,
                       crc INTEGER NOT NULL);
CREATE TABLE regions (key INTEGER PRIMARY KEY REFERENCES contents ON DELETE CASCADE, data BLOB NOT NULL,
                      crc INTEGER NOT NULL);
CREATE TABLE items (id TEXT PRIMARY KEY, content INTEGER NOT NULL REFERENCES contents, size INTEGER NOT NULL,
                    mtime_ns INTEGER NOT NULL, metadata TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX items_content ON items (content);
CREATE TABLE failures (id TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, decoder TEXT NOT NULL,
                       reason TEXT NOT NULL);
CREATE TRIGGER item_in AFTER INSERT ON items BEGIN UPDATE meta SET value = value + 1 WHERE key = 'items'; END;
CREATE TRIGGER item_out AFTER DELETE ON items BEGIN UPDATE meta SET value = value - 1 WHERE key = 'items'; END;
"""


def exists(path: Path) -> bool:
    """Tell whether a gallery, finished or damaged, is at `path`; one killed before it was made counts as none."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return False
    with translated(path), closing(connect_reader(path)) as connection:
        return bool(_tables(connection) or _pragma(connection, "application_id"))


def create(path: Path, fingerprint: str, bundle: str) -> None:
    """Make an empty gallery at `path`. Raises OutputError."""
    with sole_writer(path), translated(path), closing(connect_writer(path)) as connection, transaction(connection):
        if _tables(connection):
            return  # another process has just made it
        for statement in _SCHEMA.split(";\n"):
            if sqlite3.complete_statement(f"{statement};"):
                connection.execute(statement)
        values = {"fingerprint": fingerprint, "bundle": bundle, "folder": "", "generation": 0, "items": 0}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def discard_empty(path: Path) -> None:
    """Delete a gallery in which nothing is, with its companions; one that holds an image or is written stays."""
    try:
        with sole_writer(path), translated(path):
            if path.exists() and exists(path):
                with closing(connect_reader(path)) as connection:
                    if connection.execute("SELECT count(*) FROM items").fetchone()[0]:
                        return
            for suffix in COMPANIONS:
                Path(f"{path}{suffix}").unlink(missing_ok=True)
    except (NsfseError, OSError):
        return  # somebody else has it


def format_of(connection: sqlite3.Connection) -> int:
    """Return the format of an open gallery. Raises sqlite3.Error."""
    return _pragma(connection, "user_version")


def check_format(path: Path) -> None:
    """Raise IntegrityError when `path` is no gallery, VersionError when it is one of a newer format."""
    with translated(path), closing(connect_reader(path)) as connection:
        if _pragma(connection, "application_id") != APPLICATION_ID:
            raise IntegrityError(f"{path} is not a gallery; name another file, or make one with: nsfse index")
        if (version := format_of(connection)) > FORMAT_VERSION:
            raise VersionError(
                f"{path} has gallery format {version}, this nsfse reads up to {FORMAT_VERSION}; upgrade nsfse"
            )


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open for reading, also where nothing may be written (a read-only disk). Raises sqlite3.Error."""
    connection = _connect(path, "rw")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if not _error_name(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            raise
        # With no log beside it the file is whole and, here, nobody writes it: then SQLite needs no companions.
        connection = _connect(path, "ro" if Path(f"{path}-wal").exists() else "ro&immutable=1")
    except BaseException:
        connection.close()
        raise
    connection.execute("PRAGMA query_only = ON")
    return connection


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open for writing, or make the file. What is committed is on the disk. Raises OutputError or IntegrityError."""
    with translated(path):
        connection = _connect(path, "rwc")
        for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {setting}")
        return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # Each thread has a connection of its own; only closing happens from another.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is written inside as one, or nothing of it, whatever interrupts."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


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
            if not _error_name(error).startswith("SQLITE_BUSY"):
                raise
            raise OutputError(f"{path} is being written by another process; wait until it has ended") from None
        yield


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about `path` into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from error


def _translate(path: Path, error: sqlite3.Error) -> NsfseError | sqlite3.Error:
    name = _error_name(error)
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


def _error_name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", None) or ""


def _tables(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
