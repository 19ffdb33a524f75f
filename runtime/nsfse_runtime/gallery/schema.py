"""The tables of a gallery's file in each format, the steps from one format to the next, and what may be in a file.

A file from elsewhere may hold views and triggers that run for ever or delete rows. So its schema must be, to the
letter, that of its format.
"""

import sqlite3
from collections.abc import Callable, Mapping

from nsfse_runtime.gallery.checksums import failure_crc, regions_crc
from nsfse_runtime.inference import region_codec

FORMAT_VERSION = 3  # 1: regions in float16 (nsfse_runtime.inference.region_codec); 2: no checksum of meta and failures
APPLICATION_ID = 0x6E736673  # "nsfs"
PAGE_SIZE = 8192  # rows of features fill it better than SQLite's 4096

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE contents (key INTEGER PRIMARY KEY AUTOINCREMENT, sha256 BLOB NOT NULL UNIQUE, vector BLOB NOT NULL,
                       crc INTEGER NOT NULL)""",
    """CREATE TABLE regions (key INTEGER PRIMARY KEY REFERENCES contents ON DELETE CASCADE, data BLOB NOT NULL,
                      crc INTEGER NOT NULL)""",
    """CREATE TABLE items (id TEXT PRIMARY KEY, content INTEGER NOT NULL REFERENCES contents, size INTEGER NOT NULL,
                    mtime_ns INTEGER NOT NULL, metadata TEXT NOT NULL, crc INTEGER NOT NULL)""",
    "CREATE INDEX items_content ON items (content)",
)
_OLD_FAILURES = """CREATE TABLE failures (id TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
                       decoder TEXT NOT NULL, reason TEXT NOT NULL)"""
_FAILURES = _OLD_FAILURES.replace("reason TEXT NOT NULL", "reason TEXT NOT NULL, crc INTEGER NOT NULL")


def _counting(name: str, table: str) -> tuple[str, str]:
    """Return the triggers by which `meta` has the number of rows of a table."""
    begin = f"CREATE TRIGGER {name}_{{}} AFTER {{}} ON {table} BEGIN UPDATE meta SET value = value {{}} 1 WHERE key ="
    return tuple(  # type: ignore[return-value]
        f"{begin.format(*words)} '{table}'; END" for words in (("in", "INSERT", "+"), ("out", "DELETE", "-"))
    )


_COUNT_ITEMS = _counting("item", "items")
_COUNT_OTHERS = (*_counting("content", "contents"), *_counting("failure", "failures"))
_SCHEMAS = {
    1: (*_TABLES, _OLD_FAILURES, *_COUNT_ITEMS),
    2: (*_TABLES, _OLD_FAILURES, *_COUNT_ITEMS),
    3: (*_TABLES, _FAILURES, *_COUNT_ITEMS, *_COUNT_OTHERS),
}
# What SQLite adds by itself, or by ANALYZE.
_OF_SQLITE = {("table", "sqlite_sequence"), ("table", "sqlite_stat1"), ("table", "sqlite_stat4")}


_FACTS = {"fingerprint": str, "bundle": str, "folder": str, "generation": int, "items": int}
_LATER_FACTS = {"dim": int, "regions": int, "contents": int, "failures": int} | dict.fromkeys(
    ("exclude", "mounts", "decoder"), str
)
_LARGEST = 1 << 53


def malformed_fact(facts: Mapping[str, object]) -> str | None:
    """Return the key of a fact in `meta` that is missing or not in its form, None where all are right."""
    for key, kind in (_FACTS | _LATER_FACTS).items():
        if key not in facts and key in _LATER_FACTS:
            continue
        value = facts.get(key)
        if type(value) is not kind:
            return key
        if (isinstance(value, str) and "\0" in value) or (isinstance(value, int) and not 0 <= value < _LARGEST):
            return key
    return None


def unexpected(connection: sqlite3.Connection, version: int) -> str | None:
    """Return the name of what a gallery of format `version` does not have, or lacks; None where the schema is right."""
    expected = {_plain(statement) for statement in _SCHEMAS.get(version, _SCHEMAS[FORMAT_VERSION])}
    for kind, name, statement in connection.execute("SELECT type, name, sql FROM sqlite_master"):
        if (kind, name) in _OF_SQLITE or (kind == "index" and statement is None):
            continue
        if _plain(statement) not in expected:
            return f"{kind} {name}"
        expected.discard(_plain(statement))
    return min(expected)[:40] if expected else None


def _plain(statement: str) -> str:
    return " ".join(statement.split())


def _create_tables(connection: sqlite3.Connection) -> int:
    for statement in _SCHEMAS[FORMAT_VERSION]:
        connection.execute(statement)
    return FORMAT_VERSION


def _encode_regions_in_int8(connection: sqlite3.Connection) -> int:
    dim = (connection.execute("SELECT value FROM meta WHERE key = 'dim'").fetchone() or (0,))[0]
    for (key,) in connection.execute("SELECT key FROM regions").fetchall():
        data, crc = connection.execute("SELECT data, crc FROM regions WHERE key = ?", (key,)).fetchone()
        if regions_crc(key, data) != crc:
            raise sqlite3.DatabaseError("an image's regions have changed by themselves")
        data = region_codec.to_bytes(region_codec.from_bytes([data], dim, 1)[0], 2)
        connection.execute("UPDATE regions SET data = ?, crc = ? WHERE key = ?", (data, regions_crc(key, data), key))
    return 2


def _add_checksums_and_counts(connection: sqlite3.Connection) -> int:
    failures = connection.execute("SELECT id, size, mtime_ns, decoder, reason FROM failures").fetchall()
    connection.execute("DROP TABLE failures")
    connection.execute(_FAILURES)
    rows = ((*row, failure_crc(*row)) for row in failures)
    connection.executemany("INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?)", rows)
    for table in ("contents", "failures"):
        connection.execute(f"INSERT OR REPLACE INTO meta SELECT '{table}', count(*) FROM {table}")
    for statement in _COUNT_OTHERS:
        connection.execute(statement)
    return 3


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], int]] = {
    0: _create_tables,
    1: _encode_regions_in_int8,
    2: _add_checksums_and_counts,
}
"""From each format the step that leaves it; a step returns the format that it leads to. Format 0 is an empty file."""
