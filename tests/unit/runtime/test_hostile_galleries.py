"""A gallery from a stranger, with right checksums: it is refused in one line, runs nothing and ends."""

import os
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nsfse_runtime.errors import IntegrityError, NsfseError, OutputError
from nsfse_runtime.gallery import checksums, sqlite_file
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.repair import verify
from tests.galleries import DIM, ColourScorer, save_images

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select"
Craft = Callable[[sqlite3.Connection], object]


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    save_images(tmp_path / "photos", 20)
    with Gallery.open(tmp_path / "g", ColourScorer(), create=True) as gallery:
        gallery.sync(tmp_path / "photos")
    return tmp_path / "g"


def use(path: Path) -> None:
    """Do all that a gallery is for."""
    with Gallery.open(path, ColourScorer()) as gallery:
        gallery.info()
        gallery.failures()
        snapshot = gallery.snapshot
        snapshot.targets(range(len(snapshot)))
        assert all(isinstance(row, dict) for row in snapshot.metadata)
        for row in range(len(snapshot)):
            snapshot.path_of(row)
            snapshot.is_current(row)
        gallery.sync(path.parent / "photos")


def craft(path: Path, change: Craft) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        change(connection)
        facts = dict(connection.execute("SELECT key, value FROM meta WHERE key <> 'checksum'"))
        try:
            checksum = checksums.facts_crc(facts)
        except TypeError:
            checksum = 0
        if connection.execute("SELECT type FROM sqlite_master WHERE name = 'meta'").fetchone() == ("table",):
            connection.execute("UPDATE meta SET value = ? WHERE key = 'checksum'", (checksum,))
        connection.commit()


def vector(blob: bytes, key: int = 5) -> Craft:
    def change(q: sqlite3.Connection) -> None:
        (sha256,) = q.execute("SELECT sha256 FROM contents WHERE key = ?", (key,)).fetchone()
        crc = zlib.crc32(blob, zlib.crc32(sha256))
        q.execute("UPDATE contents SET vector = ?, crc = ? WHERE key = ?", (blob, crc, key))

    return change


def regions(blob: bytes) -> Craft:
    def change(q: sqlite3.Connection) -> None:
        for (key,) in q.execute("SELECT key FROM regions").fetchall():
            crc = checksums.regions_crc(key, blob)
            q.execute("UPDATE regions SET data = ?, crc = ? WHERE key = ?", (blob, crc, key))

    return change


def metadata(text: str) -> Craft:
    def change(q: sqlite3.Connection) -> None:
        for name, content in q.execute("SELECT id, content FROM items").fetchall():
            crc = checksums.item_crc(name, content, text)
            q.execute("UPDATE items SET metadata = ?, crc = ? WHERE id = ?", (text, crc, name))

    return change


def image_id(name: str) -> Craft:
    def change(q: sqlite3.Connection) -> None:
        ((old, content, text),) = q.execute("SELECT id, content, metadata FROM items LIMIT 1").fetchall()
        q.execute("UPDATE items SET id = ?, crc = ? WHERE id = ?", (name, checksums.item_crc(name, content, text), old))

    return change


def run(*statements: str) -> Craft:
    return lambda q: [q.execute(statement) for statement in statements]


def full(value: float, length: int = DIM) -> bytes:
    return np.full(length, value, "<f4").tobytes()


CRAFTED = {
    "vector of NaN": vector(full(np.nan)),
    "vector of infinity": vector(full(np.inf)),
    "vector of huge numbers": vector(full(3e38)),
    "short vector": vector(b"abc"),
    "empty vector": vector(b""),
    "two lengths that add up": lambda q: (vector(full(0.1, DIM - 4), 5)(q), vector(full(0.1, DIM + 4), 6)(q)),
    "another dimension": lambda q: [vector(full(0.1, 4), key)(q) for (key,) in q.execute("SELECT key FROM contents")],
    "a text for a vector": run("UPDATE contents SET vector = 'abc' WHERE key = 5"),
    "regions of NaN": regions(full(np.nan, 3) + bytes([1] * 3 * DIM)),
    "short regions": regions(b"x" * 7),
    "empty regions": regions(b""),
    "fewer regions": regions(full(0.1, 2) + bytes([1] * 2 * DIM)),
    "metadata that are no JSON": metadata("{"),
    "metadata that are a list": metadata("[1, 2]"),
    "metadata that are nested": metadata('{"a": {"b": [1]}}'),
    "metadata of numbers": metadata('{"a": 1}'),
    "metadata that are deep": metadata("[" * 100_000),
    "metadata that are null": metadata("null"),
    "an id elsewhere": image_id("/etc/passwd"),
    "an id above": image_id("../../etc/passwd"),
    "no items": run("UPDATE meta SET value = NULL WHERE key = 'items'"),
    "a generation of words": run("UPDATE meta SET value = 'abc' WHERE key = 'generation'"),
    "a huge generation": run("UPDATE meta SET value = 9223372036854775807 WHERE key = 'generation'"),
    "no fingerprint": run("DELETE FROM meta WHERE key = 'fingerprint'"),
    "a folder with NUL": lambda q: q.execute("UPDATE meta SET value = ? WHERE key = 'folder'", ("/x\0y",)),
    "a folder of bytes": run("UPDATE meta SET value = x'ff00' WHERE key = 'folder'"),
    "rules that are no list": run("INSERT OR REPLACE INTO meta VALUES ('exclude', '{')"),
    "rules of numbers": run("INSERT OR REPLACE INTO meta VALUES ('exclude', '[1]')"),
    "an endless view of images": run(
        "DROP TABLE items",
        f"CREATE VIEW items (id, content, size, mtime_ns, metadata, crc) AS {ENDLESS} i,1,1,1,1,1 from n",
    ),
    "an endless view of facts": run(
        "DROP TABLE regions", f"CREATE VIEW regions (key, data, crc) AS {ENDLESS} i,i,i from n"
    ),
    "an endless trigger": run(
        f"CREATE TRIGGER t AFTER UPDATE ON items BEGIN INSERT INTO failures {ENDLESS} i,1,1,1,1,1 from n; END"
    ),
    "a trigger that wipes": run("CREATE TRIGGER t AFTER UPDATE ON items BEGIN DELETE FROM items; END"),
    "another trigger of a known name": run(
        "DROP TRIGGER item_in", "CREATE TRIGGER item_in AFTER INSERT ON items BEGIN DELETE FROM items; END"
    ),
    "no triggers": run("DROP TRIGGER item_in", "DROP TRIGGER item_out"),
    "one more table": run("CREATE TABLE more AS SELECT 1"),
    "an index of random bytes": run("CREATE INDEX e ON items (hex(id))"),
    "a broken schema": run("UPDATE sqlite_master SET sql = 'CREATE TABLE items(id' WHERE name = 'items'"),
    "a missing content": run("DELETE FROM contents WHERE key = 5"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_gallery_is_refused_in_one_line(gallery: Path, name: str) -> None:
    """Broken once: tables and triggers not compared in `_check`; facts of any form let through in `meta`."""
    craft(gallery, CRAFTED[name])
    with pytest.raises(IntegrityError) as refused:
        use(gallery)
    assert "\n" not in str(refused.value)
    try:
        found = verify(gallery)
    except NsfseError:
        return
    assert found.faults or name.startswith(("an id", "metadata", "rules"))


def test_pages_in_a_circle_do_not_hang(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "_STEPS", 1000)
    monkeypatch.setattr(sqlite_file, "_STEPS_PER_BYTE", 0)
    monkeypatch.setattr(sqlite_file, "_STEPS_PER_CALL", 100)
    with closing(sqlite_file.connect(gallery, "ro")) as connection, pytest.raises(IntegrityError, match="for ever"):
        connection.start_statement()
        with sqlite_file.translated(gallery):
            connection.execute(f"{ENDLESS} max(i) from n").fetchall()


@pytest.mark.parametrize("kind", ["pipe", "zeros", "loop", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "g"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
    with pytest.raises((OutputError, IntegrityError)):
        Gallery.open(path, ColourScorer(), create=True)


@pytest.mark.parametrize(("suffix", "size"), [("-wal", 100_000), ("-shm", 32_768)])
def test_random_bytes_beside_a_gallery_change_nothing(gallery: Path, suffix: str, size: int) -> None:
    Path(f"{gallery}{suffix}").write_bytes(np.random.default_rng(0).bytes(size))
    use(gallery)


@pytest.mark.parametrize("name", ["name?mode=memory", "name%00#x", ":memory:"])
def test_a_name_is_a_name(gallery: Path, name: str) -> None:
    use(gallery.rename(gallery.with_name(name)))
