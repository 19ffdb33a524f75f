"""Salvage: what can still be read of a gallery's file, damaged or not, row by row, and what is wrong with the rest."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nsfse_runtime.errors import IntegrityError, OutputError, VersionError
from nsfse_runtime.gallery.checksums import content_crc, facts_crc, failure_crc, item_crc, regions_crc
from nsfse_runtime.gallery.scan import FileStamp
from nsfse_runtime.gallery.schema import APPLICATION_ID, FORMAT_VERSION, malformed_fact, unexpected
from nsfse_runtime.gallery.sqlite_file import Connection, connect_reader, translated
from nsfse_runtime.inference import region_codec
from nsfse_runtime.inference.region_codec import is_sound

_MOST_FAULTS = 1000  # listed of one kind
_BAD_VALUE = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError)  # the latter where an error's message has what the file holds
_HEADER = b"SQLite format 3\0"


@dataclass(slots=True)
class Entry:
    """A row of `items` that has its checksum."""

    content: int
    stamp: FileStamp
    metadata: str


@dataclass(slots=True)
class Found:
    """What a look at a gallery's file found.

    Attributes:
        format_version: The format of its tables, 0 where they cannot be read.
        facts: What `meta` holds, empty where that has not its checksum.
        facts_as_read: What `meta` holds, whatever its checksum.
        entries: The images whose entries have their checksums, by id.
        contents: The keys of the features that have theirs, vector and regions, with the image's SHA-256.
        damaged_ids: Ids as they are read of entries that have not.
        faults: What is wrong and where, a line each; empty where the gallery is whole.
    """

    format_version: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    facts_as_read: dict[str, Any] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    damaged_ids: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Salvage:
    """One look at a gallery's file, which it does not change. A context manager closes it.

    Raises OutputError where the file cannot be opened, IntegrityError where it is another kind of file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._connection, self._found = path, None, Found()
        self._copy: TemporaryDirectory[str] | None = None
        with path.open("rb") as file:
            head = file.read(100)
        if head.strip(b"\0") and not head.startswith(_HEADER):
            raise IntegrityError(f"{path} is not a gallery; name another file")
        missing = _stated_size(head) - path.stat().st_size
        if missing > 0:
            self._found.faults.append(f"the file: its last {missing} bytes are missing")
            path = self._filled_copy(path.stat().st_size + missing)
        try:
            with translated(path):
                self._connection = connect_reader(path)
                self._connection.text_factory = _decode
        except IntegrityError:
            self._found.faults.append("the file: it is no SQLite file any more")

    def __enter__(self) -> "Salvage":
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def _filled_copy(self, size: int) -> Path:
        """Copy the file and fill it with zeros: SQLite reads nothing of a file that is shorter than it says."""
        try:
            self._copy = TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.")
            copy = Path(self._copy.name, "gallery")
            for suffix in ("", "-wal"):
                if Path(f"{self.path}{suffix}").exists():
                    shutil.copyfile(f"{self.path}{suffix}", f"{copy}{suffix}")
            os.truncate(copy, size)
        except OSError as error:
            raise OutputError(
                f"{self.path.parent} cannot be written: {error.strerror}; free some disk space there"
            ) from error
        return copy

    def look(self) -> Found:
        """Read all that is there, check it, and return what was found."""
        found, connection = self._found, self._connection
        if connection is None:
            return found
        try:
            connection.execute("BEGIN")
            found.format_version = self._format(connection)
        except _UNREADABLE as error:
            found.faults.append(f"the schema: {error}")
        if not found.format_version:
            return found
        self._check_pages(connection)
        self._look_at_facts(connection)
        self._look_at_contents()
        self._look_at_items()
        if found.format_version > 2:
            self._look_at_failures()
        return found

    def vectors(self) -> Iterator[tuple[int, bytes]]:
        """Yield key and vector of each content that was found."""
        return ((key, vector) for key, vector in self._rows("contents", "vector") if key in self._found.contents)

    def regions(self) -> Iterator[tuple[int, bytes]]:
        """Yield key and encoded regions of each content that was found."""
        return ((key, data) for key, data in self._rows("regions", "data") if key in self._found.contents)

    def _format(self, connection: Connection) -> int:
        """Return the format that the tables are of, 0 for none, whatever the header says."""
        mark, stated = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if mark == APPLICATION_ID and stated > FORMAT_VERSION:
            raise VersionError(f"{self.path} has gallery format {stated}; upgrade nsfse")
        versions = [version for version in (stated, 3, 2) if version > 0 and not unexpected(connection, version)]
        if not versions and mark != APPLICATION_ID:
            raise IntegrityError(f"{self.path} is not a gallery; name another file")
        if mark != APPLICATION_ID or versions[:1] != [stated]:
            self._found.faults.append("the header or the schema: the tables are not those of its format")
        return versions[0] if versions else 0

    def _check_pages(self, connection: Connection) -> None:
        connection.start_statement()
        try:
            for (line,) in connection.execute("PRAGMA integrity_check(20)").fetchall():
                if line != "ok":
                    self._found.faults.extend(f"the file: {part}" for part in str(line).splitlines()[:20])
        except _UNREADABLE as error:
            self._found.faults.append(f"the file: {error}")

    def _look_at_facts(self, connection: Connection) -> None:
        found = self._found
        try:
            found.facts_as_read = facts = dict(connection.execute("SELECT key, value FROM meta").fetchall())
            checksum = facts.pop("checksum", None)
            if found.format_version > 2 and checksum != facts_crc(facts):
                raise ValueError("they have not their checksum")
            if key := malformed_fact(facts):
                raise ValueError(f"{key} is missing or not in its form")
            found.facts = facts
        except (sqlite3.Error, *_BAD_VALUE) as error:
            found.faults.append(f"meta (folder, bundle, counts): {error}")

    def _look_at_contents(self) -> None:
        found, hashes = self._found, {}
        length = 4 * found.facts["dim"] if "dim" in found.facts else None
        for key, sha256, vector, crc in self._rows("contents", "sha256, vector, crc"):
            with suppress(*_BAD_VALUE):
                length = len(vector) if length is None else length
                values = np.frombuffer(vector, "<f4")
                if content_crc(sha256, vector) == crc and len(vector) == length and is_sound(values):
                    hashes[key] = sha256
                    continue
            found.faults.append(f"contents {key}: the vector is not as it was written")
        for key, data, crc in self._rows("regions", "data, crc"):
            with suppress(*_BAD_VALUE):
                if regions_crc(key, data) == crc and self._are_sound(data):
                    if key in hashes:
                        found.contents[key] = hashes[key]
                    continue
            found.faults.append(f"regions {key}: they are not as they were written")

    def _are_sound(self, data: bytes) -> bool:
        """Tell whether regions have the shape and the values of some; without facts their shape is not known."""
        shape = self._found.facts.get("regions"), self._found.facts.get("dim")
        if None in shape:
            return True
        values = region_codec.from_bytes([data], int(shape[1] or 0), self._found.format_version)
        return values.shape[1:] == shape

    def _look_at_items(self) -> None:
        found, rows = self._found, 0
        for row, name, content, size, mtime, metadata, crc in self._rows(
            "items", "id, content, size, mtime_ns, metadata, crc"
        ):
            rows += 1
            with suppress(*_BAD_VALUE):
                if item_crc(name, content, metadata) == crc and isinstance(json.loads(metadata), dict):
                    found.entries[name] = Entry(content, (size, mtime), metadata)
                    continue
            found.damaged_ids.append(str(name))
            found.faults.append(f"items {row}: the entry of {str(name)[:200]} is not as it was written")
        lost = [name for name, entry in found.entries.items() if entry.content not in found.contents]
        found.faults.extend(f"items: {name} has no features that can be read" for name in lost[:_MOST_FAULTS])
        if rows != found.facts.get("items", rows):
            found.faults.append(f"items: {rows} of {found.facts['items']} can be read")

    def _look_at_failures(self) -> None:
        found, rows = self._found, 0
        for _, *values, crc in self._rows("failures", "id, size, mtime_ns, decoder, reason, crc"):
            rows += 1
            with suppress(*_BAD_VALUE):
                if failure_crc(*values) == crc:
                    continue
            found.faults.append(f"failures: the entry of {str(values[0])[:200]} is not as it was written")
        if rows != found.facts.get("failures", rows):
            found.faults.append(f"failures: {rows} of {found.facts['failures']} can be read")

    def _rows(self, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table with their rowids, over pages that cannot be read."""
        after = -1
        while self._connection is not None and self._found.format_version:
            self._connection.start_statement()
            query = f"SELECT rowid, {columns} FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid"
            try:
                for row in self._connection.execute(query, (after,)):
                    after = row[0]
                    yield row
                return
            except _UNREADABLE as error:
                fault = f"{table} after row {after}: {error}"
                self._found.faults += [fault] if fault not in self._found.faults else []
                following = self._readable_after(table, after)
            if following is None:
                return
            after = following - 1

    def _readable_after(self, table: str, after: int) -> int | None:
        """Return the first row number after `after` from which rows can be read on, None where there is none."""
        low, step = after + 1, 1
        while not self._can_read(table, low + step):
            step *= 2
            if step > 1 << 40:
                return None
        high = low + step
        while low + 1 < high:  # rows cannot be read from low, and can from high
            middle = (low + high) // 2
            low, high = (low, middle) if self._can_read(table, middle) else (middle, high)
        return high

    def _can_read(self, table: str, row: int) -> bool:
        assert self._connection is not None
        self._connection.start_statement()
        try:
            self._connection.execute(f"SELECT * FROM {table} NOT INDEXED WHERE rowid >= ? LIMIT 1", (row,)).fetchone()
        except _UNREADABLE:
            return False
        return True


def _stated_size(head: bytes) -> int:
    """Return the size of an SQLite file by its header: pages × bytes a page, 0 where that is no header."""
    if len(head) < 32 or not head.startswith(_HEADER):
        return 0
    page = int.from_bytes(head[16:18], "big")
    pages = int.from_bytes(head[28:32], "big")
    return pages * page if 512 <= page <= 32768 and pages < 1 << 24 else 0


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")
