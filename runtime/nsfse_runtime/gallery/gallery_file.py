"""GalleryFile: a gallery's SQLite file: opened and checked, written in transactions, and its facts in `meta`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from nsfse_runtime.errors import IntegrityError, VersionError
from nsfse_runtime.gallery.checksums import facts_crc
from nsfse_runtime.gallery.schema import (
    APPLICATION_ID,
    FORMAT_VERSION,
    MIGRATIONS,
    PAGE_SIZE,
    malformed_fact,
    unexpected,
)
from nsfse_runtime.gallery.sqlite_file import Connection, connect, connect_reader, damaged, translated, well_formed


class GalleryFile:
    """One connection to a gallery's file. A context manager closes it.

    Any method may raise IntegrityError (the file is damaged) or OutputError (it cannot be opened or written).
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        self.path, self._connection = path, connection
        self._is_writing = False
        self._format: int | None = None  # within `reading`, where no writer changes it

    @classmethod
    def open_reader(cls, path: Path) -> Self:
        """Open a gallery for reading, also where nothing may be written (a read-only or full disk).

        Raises IntegrityError when `path` is no gallery, VersionError when it is one of a newer format.
        """
        with translated(path):
            store = cls(path, connect_reader(path))
        with store._closed_on_error():
            store._check()
        return store

    @classmethod
    def open_writer(cls, path: Path) -> Self:
        """Open for writing, or make the file; an older format is migrated. What is committed is on the disk.

        Raises IntegrityError when `path` is no gallery, VersionError when it is one of a newer format.
        """
        with translated(path):
            store = cls(path, connect(path, "rwc"))
        with store._closed_on_error():
            is_blank = store.is_blank
            if is_blank:
                store._run(f"PRAGMA page_size = {PAGE_SIZE}")
            else:
                store._check()
            for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                store._run(f"PRAGMA {setting}")
            if not is_blank:
                store.meta()  # a checksum is written anew only over what had the right one
                if store.format_version in MIGRATIONS:
                    with store.writing():
                        store._migrate()
        return store

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        """Check that this is a gallery of a known format, with the tables of one and nothing else."""
        if self.application_id != APPLICATION_ID:
            raise IntegrityError(f"{self.path} is not a gallery; name another file, or make one with: nsfse index")
        if (version := self.format_version) > FORMAT_VERSION:
            raise VersionError(
                f"{self.path} has gallery format {version}, this nsfse reads up to {FORMAT_VERSION}; upgrade nsfse"
            )
        if version < 1:
            raise damaged(self.path, f"its format is {version}")
        with translated(self.path), well_formed(self.path):
            if name := unexpected(self._connection, version):
                raise damaged(self.path, f"its tables are not those of a gallery: {name!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _run(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with translated(self.path):
            self._connection.start_statement()
            return self._connection.execute(statement, parameters).fetchall()

    def _run_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with translated(self.path):
            self._connection.start_statement()
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
            self._format = None
            if self._connection.in_transaction:  # SQLite ends it after some errors
                self._run("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Commit what is written inside as one, or nothing of it, whatever interrupts."""
        self._run("BEGIN IMMEDIATE")
        self._is_writing = True
        try:
            yield
            self._write_checksum()
            self._run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            raise
        finally:
            self._is_writing = False

    def initialise(self, fingerprint: str, bundle: str) -> None:
        """Make the tables of an empty gallery in an empty file."""
        self._migrate()
        self.write_meta({"fingerprint": fingerprint, "bundle": bundle, "folder": ""})
        self.write_meta({"generation": 0, "items": 0, "contents": 0, "failures": 0})
        self._run(f"PRAGMA application_id = {APPLICATION_ID}")

    def _migrate(self) -> None:
        with translated(self.path), well_formed(self.path):
            while step := MIGRATIONS.get(self.format_version):
                self._run(f"PRAGMA user_version = {step(self._connection)}")

    def compact(self) -> None:
        """Make it one file without free pages, and without companions once it is closed."""
        self._run("PRAGMA journal_mode = DELETE")
        self._run("VACUUM")

    @property
    def format_version(self) -> int:
        """Return the format of the file."""
        if self._format is not None:
            return self._format
        version = int(self._run("PRAGMA user_version")[0][0])
        if self._connection.in_transaction and not self._is_writing:
            self._format = version
        return version

    @property
    def application_id(self) -> int:
        """Return what marks the file as a gallery: APPLICATION_ID."""
        return int(self._run("PRAGMA application_id")[0][0])

    @property
    def total_changes(self) -> int:
        """Return how many rows this connection has changed."""
        return self._connection.total_changes

    @property
    def is_blank(self) -> bool:
        """Tell whether the file has no table and no mark of a gallery yet."""
        return not self.application_id and not self._run("SELECT 1 FROM sqlite_master LIMIT 1")

    @property
    def is_outdated(self) -> bool:
        """Tell whether the file, opened as one that nobody writes, has been written since."""
        return self._connection.is_outdated

    def meta(self) -> dict[str, Any]:
        """Return all facts of the gallery, checked: fingerprint, bundle, folder, generation, items and more."""
        with well_formed(self.path):
            facts = dict(self._run("SELECT key, value FROM meta"))
            checksum = facts.pop("checksum", None)
            expected = facts_crc(facts) if self.format_version > 2 else None
            if checksum != expected and not self._is_writing:  # it is written at the end
                raise damaged(self.path, "its facts have changed by themselves")
            if key := malformed_fact(facts):
                raise damaged(self.path, f"its {key} is missing or not in its form")
            return facts

    def count(self, table: str) -> int:
        """Return how many rows `table` has."""
        facts = self.meta()
        return int(facts[table] if table in facts else self._run(f"SELECT sum(1) FROM {table}")[0][0] or 0)

    def read_list(self, key: str) -> tuple[str, ...]:
        """Return a fact that is a list, empty where there is none."""
        with well_formed(self.path):
            values = tuple(json.loads(self.meta().get(key, "[]")))
            if not all(type(value) is str for value in values):
                raise TypeError
            return values

    def write_meta(self, values: Mapping[str, str | int]) -> None:
        """Set facts of the gallery."""
        if not self._is_writing:
            with self.writing():
                return self.write_meta(values)
        self._run_many("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _write_checksum(self) -> None:
        """Write the checksum of the facts, whatever triggers have counted."""
        facts = dict(self._run("SELECT key, value FROM meta"))
        checksum = facts.pop("checksum", None)
        if checksum != (now := facts_crc(facts)):
            self._run("INSERT OR REPLACE INTO meta VALUES ('checksum', ?)", (now,))

    @property
    def generation(self) -> int:
        """Return the number of the committed generation."""
        return int(self.meta()["generation"])

    def advance(self) -> None:
        """Begin a new generation: readers load the gallery again."""
        self._run("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
