"""GalleryStore: the tables of a gallery's SQLite file. All SQL of a gallery is in this module.

`contents` and `regions` hold features once per distinct image, `items` names them: a rename or a duplicate encodes
nothing. SQLite does not check what it reads back. So each row carries a CRC-32, and `meta` the number of items.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nsfse_runtime.errors import IntegrityError, NsfseError, VersionError
from nsfse_runtime.gallery.checksums import content_crc, item_crc, regions_crc
from nsfse_runtime.gallery.scan import FileStamp
from nsfse_runtime.gallery.sqlite_file import connect, damaged, error_name, sole_writer, translated
from nsfse_runtime.inference import region_codec
from nsfse_runtime.types import Floats

FORMAT_VERSION = 2  # 1: regions in float16 (nsfse_runtime.inference.region_codec)
APPLICATION_ID = 0x6E736673  # "nsfs"
# Beside the file itself, while it is open; the lock stays, empty, and so does a large gallery's index.
COMPANIONS = ("", "-wal", "-shm", "-journal", ".lock", ".lock-journal", ".ann", ".ann.part")
_MAX_PARAMETERS = 500  # keys in one statement: SQLite may have been built for 999

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


def _create_tables(connection: sqlite3.Connection) -> int:
    for statement in _SCHEMA.split(";\n"):
        if sqlite3.complete_statement(f"{statement};"):
            connection.execute(statement)
    return FORMAT_VERSION


# From each format the step that leaves it; a step returns the format that it leads to. Format 0 is an empty file.
# A format without a step is read and written as it is: a gallery of format 1 keeps its regions in float16.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], int]] = {0: _create_tables}


def exists(path: Path) -> bool:
    """Tell whether a gallery, finished or damaged, is at `path`; one killed before it was made counts as none."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return False
    with GalleryStore.open_reader(path) as store:
        return bool(store.count("sqlite_master") or store.application_id)


def create(path: Path, fingerprint: str, bundle: str) -> None:
    """Make an empty gallery at `path`. Raises OutputError."""
    with sole_writer(path), GalleryStore.open_writer(path) as store, store.writing():
        if not store.count("sqlite_master"):  # else another process has just made it
            store.initialise(fingerprint, bundle)


def discard_empty(path: Path) -> None:
    """Delete a gallery in which nothing is, with its companions; one that holds an image or is written stays."""
    try:
        with sole_writer(path):
            if path.exists() and exists(path):
                with GalleryStore.open_reader(path) as store:
                    if store.count("items"):
                        return
            for suffix in COMPANIONS:
                Path(f"{path}{suffix}").unlink(missing_ok=True)
    except (NsfseError, OSError):
        return  # somebody else has it


def check_format(path: Path) -> None:
    """Raise IntegrityError when `path` is no gallery, VersionError when it is one of a newer format."""
    with GalleryStore.open_reader(path) as store:
        if store.application_id != APPLICATION_ID:
            raise IntegrityError(f"{path} is not a gallery; name another file, or make one with: nsfse index")
        if (version := store.format_version) > FORMAT_VERSION:
            raise VersionError(
                f"{path} has gallery format {version}, this nsfse reads up to {FORMAT_VERSION}; upgrade nsfse"
            )


class GalleryStore:
    """One connection to a gallery's file. A context manager closes it.

    Any method may raise IntegrityError (the file is damaged) or OutputError (it cannot be opened or written).
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection = path, connection

    @classmethod
    def open_reader(cls, path: Path) -> "GalleryStore":
        """Open for reading, also where nothing may be written (a read-only disk)."""
        with translated(path):
            return cls(path, _connect_reader(path))

    @classmethod
    def open_writer(cls, path: Path) -> "GalleryStore":
        """Open for writing, or make the file; an older format is migrated. What is committed is on the disk."""
        with translated(path):
            connection = connect(path, "rwc")
            for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {setting}")
        store = cls(path, connection)
        try:
            if store.format_version and store.format_version in MIGRATIONS:
                with store.writing():
                    store._migrate()
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> "GalleryStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _run(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with translated(self.path):
            return self._connection.execute(statement, parameters).fetchall()

    def _run_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with translated(self.path):
            self._connection.executemany(statement, rows)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See one committed generation inside, whatever a writer commits meanwhile."""
        if self._connection.in_transaction:
            raise RuntimeError("reading() within reading()")
        self._run("BEGIN")
        try:
            yield
        finally:
            self._run("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Commit what is written inside as one, or nothing of it, whatever interrupts."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            raise

    def initialise(self, fingerprint: str, bundle: str) -> None:
        """Make the tables of an empty gallery in an empty file."""
        self._migrate()
        self.write_meta({"fingerprint": fingerprint, "bundle": bundle, "folder": "", "generation": 0, "items": 0})
        self._run(f"PRAGMA application_id = {APPLICATION_ID}")

    def _migrate(self) -> None:
        with translated(self.path):
            while step := MIGRATIONS.get(self.format_version):
                self._run(f"PRAGMA user_version = {step(self._connection)}")

    def compact(self) -> None:
        """Make it one file without free pages, and without companions once it is closed."""
        self._run("PRAGMA journal_mode = DELETE")
        self._run("VACUUM")

    @property
    def format_version(self) -> int:
        """Return the format of the file."""
        return int(self._run("PRAGMA user_version")[0][0])

    @property
    def application_id(self) -> int:
        """Return what marks the file as a gallery: APPLICATION_ID."""
        return int(self._run("PRAGMA application_id")[0][0])

    @property
    def total_changes(self) -> int:
        """Return how many rows this connection has changed."""
        return self._connection.total_changes

    def count(self, table: str) -> int:
        """Return how many rows `table` has."""
        return int(self._run(f"SELECT count(*) FROM {table}")[0][0])

    def meta(self) -> dict[str, Any]:
        """Return all facts of the gallery: fingerprint, bundle, folder, generation, items and more."""
        return dict(self._run("SELECT key, value FROM meta"))

    def read_meta(self, key: str, default: str | None = None) -> str:
        """Return one fact as text. Raises IntegrityError where it is missing and there is no `default`."""
        rows = self._run("SELECT value FROM meta WHERE key = ?", (key,))
        if not rows and default is None:
            raise damaged(self.path, f"it has no {key}")
        return str(rows[0][0]) if rows else str(default)

    def write_meta(self, values: Mapping[str, str | int]) -> None:
        """Set facts of the gallery."""
        self._run_many("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    @property
    def generation(self) -> int:
        """Return the number of the committed generation."""
        return int(self.read_meta("generation"))

    def advance(self) -> None:
        """Begin a new generation: readers load the gallery again."""
        self._run("UPDATE meta SET value = value + 1 WHERE key = 'generation'")

    def read_items(self) -> list[tuple[str, int, str, int]]:
        """Return id, content key, metadata (JSON) and CRC of each image, by id. Each row's CRC is checked."""
        rows = sorted(self._run("SELECT id, content, metadata, crc FROM items NOT INDEXED"))
        if any(item_crc(name, content, metadata) != crc for name, content, metadata, crc in rows):
            raise damaged(self.path, "an image's entry has changed by itself")
        return rows

    def read_files(self) -> list[tuple[str, int, FileStamp, str]]:
        """Return id, content key, file stamp and metadata (JSON) of each image."""
        rows = self._run("SELECT id, content, size, mtime_ns, metadata FROM items")
        return [(name, content, (size, mtime), metadata) for name, content, size, mtime, metadata in rows]

    def read_file(self, name: str) -> tuple[FileStamp, bytes] | None:
        """Return the stamp and SHA-256 of one image's file, None where `name` is no id."""
        query = "SELECT size, mtime_ns, sha256 FROM items JOIN contents ON key = content WHERE id = ?"
        rows = self._run(query, (name,))
        return ((rows[0][0], rows[0][1]), rows[0][2]) if rows else None

    def read_vectors(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield content key, vector (float32 bytes) and CRC of each distinct image. Each row's CRC is checked."""
        with translated(self.path):
            for key, sha256, vector, crc in self._connection.execute(
                "SELECT key, sha256, vector, crc FROM contents NOT INDEXED"
            ):
                if content_crc(sha256, vector) != crc:
                    raise damaged(self.path, "an image's vector has changed by itself")
                yield key, vector, crc

    def read_regions(self, keys: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded regions of those content `keys` that are there. Each row's CRC is checked."""
        regions: dict[int, bytes] = {}
        for start in range(0, len(keys), _MAX_PARAMETERS):
            chunk = keys[start : start + _MAX_PARAMETERS]
            query = f"SELECT key, data, crc FROM regions WHERE key IN ({','.join('?' * len(chunk))})"
            for key, data, crc in self._run(query, chunk):
                if regions_crc(key, data) != crc:
                    raise damaged(self.path, "an image's regions have changed by themselves")
                regions[key] = data
        return regions

    def decode_regions(self, encoded: Sequence[bytes], dim: int) -> Floats:
        """Return regions [K, R, d] of K encoded ones, as this file's format encodes them."""
        return region_codec.from_bytes(encoded, dim, self.format_version)

    def content_keys(self) -> dict[bytes, int]:
        """Return the content key of each distinct image by its SHA-256."""
        return dict(self._run("SELECT sha256, key FROM contents"))

    def content_key(self, sha256: bytes) -> int | None:
        """Return the content key of the image with this SHA-256, None where there is none."""
        rows = self._run("SELECT key FROM contents WHERE sha256 = ?", (sha256,))
        return int(rows[0][0]) if rows else None

    def read_failures(self) -> list[tuple[str, str]]:
        """Return path and reason of each file that was refused."""
        return [(name, reason) for name, reason in self._run("SELECT id, reason FROM failures ORDER BY id")]

    def failure_reason(self, name: str, stamp: FileStamp, decoder: str) -> str | None:
        """Return why this `decoder` refused the file with this stamp, None where it did not."""
        query = "SELECT reason FROM failures WHERE (id, size, mtime_ns, decoder) = (?, ?, ?, ?)"
        rows = self._run(query, (name, *stamp, decoder))
        return str(rows[0][0]) if rows else None

    # Writing, within `writing`

    def encode_regions(self, regions: Floats) -> bytes:
        """Return regions [R, d] as this file's format encodes them."""
        return region_codec.to_bytes(regions, self.format_version)

    def put_content(self, sha256: bytes, vector: Floats, regions: bytes) -> int:
        """Write the features of a distinct image, its regions encoded, and return its content key."""
        data = vector.astype("<f4").tobytes()
        insert = (
            "INSERT INTO contents (sha256, vector, crc) VALUES (?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET "
            "vector = excluded.vector, crc = excluded.crc RETURNING key"
        )
        key = int(self._run(insert, (sha256, data, content_crc(sha256, data)))[0][0])
        self._run("INSERT OR REPLACE INTO regions VALUES (?, ?, ?)", (key, regions, regions_crc(key, regions)))
        return key

    def put_item(self, name: str, content: int, stamp: FileStamp, metadata: str) -> None:
        """Write one image's entry; `metadata` is JSON."""
        # Not INSERT OR REPLACE: that deletes without the trigger that counts.
        self._run(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET content = excluded.content, "
            "size = excluded.size, mtime_ns = excluded.mtime_ns, metadata = excluded.metadata, crc = excluded.crc",
            (name, content, *stamp, metadata, item_crc(name, content, metadata)),
        )

    def put_failure(self, name: str, stamp: FileStamp, decoder: str, reason: str) -> None:
        """Write that `decoder` refused the file with this stamp, and why."""
        self._run("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?)", (name, *stamp, decoder, reason))

    def delete_items(self, names: Iterable[str]) -> None:
        """Delete the entries of images."""
        self._run_many("DELETE FROM items WHERE id = ?", ((name,) for name in names))

    def delete_failures(self, names: Iterable[str]) -> None:
        """Delete what is known of files that were refused."""
        self._run_many("DELETE FROM failures WHERE id = ?", ((name,) for name in names))

    def delete_unused_contents(self) -> None:
        """Delete features that no image shows any more."""
        self._run("DELETE FROM contents WHERE key NOT IN (SELECT content FROM items)")


def _connect_reader(path: Path) -> sqlite3.Connection:
    connection = connect(path, "rw")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if not error_name(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            raise
        # With no log beside it the file is whole and, here, nobody writes it: then SQLite needs no companions.
        connection = connect(path, "ro" if Path(f"{path}-wal").exists() else "ro&immutable=1")
    except BaseException:
        connection.close()
        raise
    connection.execute("PRAGMA query_only = ON")
    return connection
