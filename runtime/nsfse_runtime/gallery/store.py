"""GalleryTables: the rows of a gallery file's tables.

`contents` and `regions` hold features once per distinct image, `items` names them: a rename or a duplicate encodes
nothing. SQLite does not check what it reads back. So each row carries a CRC-32, and `meta` the numbers of rows and a
checksum of itself.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from nsfse_runtime.errors import NsfseError
from nsfse_runtime.gallery.checksums import content_crc, failure_crc, item_crc, regions_crc
from nsfse_runtime.gallery.gallery_file import GalleryFile
from nsfse_runtime.gallery.scan import FileStamp
from nsfse_runtime.gallery.sqlite_file import connect_reader, damaged, sole_writer, translated, well_formed
from nsfse_runtime.inference import region_codec
from nsfse_runtime.types import Floats

# Beside the file itself, while it is open; the lock stays, empty, and so does a large gallery's index.
COMPANIONS = ("", "-wal", "-shm", "-journal", ".lock", ".lock-journal", ".ann", ".ann.part")
_MAX_PARAMETERS = 500  # keys in one statement: SQLite may have been built for 999


def exists(path: Path) -> bool:
    """Tell whether a gallery, finished or damaged, is at `path`; one killed before it was made counts as none."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return False
    with translated(path), GalleryTables(path, connect_reader(path)) as store:
        return not store.is_blank


def create(path: Path, fingerprint: str, bundle: str) -> None:
    """Make an empty gallery at `path`. Raises OutputError."""
    with sole_writer(path), GalleryTables.open_writer(path) as store, store.writing():
        if store.is_blank:  # else another process has just made it
            store.initialise(fingerprint, bundle)


def discard_empty(path: Path) -> None:
    """Delete a gallery in which nothing is, with its companions; one that holds an image or is written stays."""
    path = Path(os.path.realpath(path))
    try:
        with sole_writer(path):
            if path.exists() and exists(path):
                with GalleryTables.open_reader(path) as store:
                    if store.meta()["items"]:
                        return
            for suffix in COMPANIONS:
                Path(f"{path}{suffix}").unlink(missing_ok=True)
    except (NsfseError, OSError):
        return  # somebody else has it


class GalleryTables(GalleryFile):
    """One connection to a gallery's file, and what it reads and writes of images. A context manager closes it.

    Any method may raise IntegrityError (the file is damaged) or OutputError (it cannot be opened or written).
    """

    def read_items(self) -> list[tuple[str, int, str, int]]:
        """Return id, content key, metadata (JSON) and CRC of each image, by id. Each row's CRC is checked."""
        with well_formed(self.path):
            rows = sorted(self._run("SELECT id, content, metadata, crc FROM items NOT INDEXED"))
            if any(item_crc(name, content, metadata) != crc for name, content, metadata, crc in rows):
                raise damaged(self.path, "an image's entry has changed by itself")
            if any(one[0] == other[0] for one, other in pairwise(rows)):
                raise damaged(self.path, "an image is there twice")
            return rows

    def read_files(self) -> list[tuple[str, int, FileStamp, str]]:
        """Return id, content key, file stamp and metadata (JSON) of each image. Each row's CRC is checked.

        Who writes an entry again would else give one that has changed by itself a CRC of its own, and add one that the
        index of ids has lost.
        """
        stamps = {name: (size, mtime) for name, size, mtime in self._run("SELECT id, size, mtime_ns FROM items")}
        rows = self.read_items()
        if len(rows) != self.meta()["items"]:
            raise damaged(self.path, f"{len(rows)} images of {self.meta()['items']}")
        indexed = self._run("SELECT id FROM items INDEXED BY sqlite_autoindex_items_1 ORDER BY id")
        if [name for (name,) in indexed] != [row[0] for row in rows]:
            raise damaged(self.path, "its index of images is not theirs")
        return [(name, content, stamps[name], metadata) for name, content, metadata, _ in rows]

    def read_entry(self, name: str) -> tuple[int, FileStamp, str] | None:
        """Return content key, file stamp and metadata (JSON) of one image, None where `name` is no id."""
        rows = self._run("SELECT content, size, mtime_ns, metadata, crc FROM items WHERE id = ?", (name,))
        if not rows:
            return None
        with well_formed(self.path):
            content, size, mtime, metadata, crc = rows[0]
            if item_crc(name, content, metadata) != crc:
                raise damaged(self.path, "an image's entry has changed by itself")
        return content, (size, mtime), metadata

    def read_file(self, name: str) -> tuple[FileStamp, bytes] | None:
        """Return the stamp and SHA-256 of one image's file, None where `name` is no id."""
        query = "SELECT size, mtime_ns, sha256 FROM items JOIN contents ON key = content WHERE id = ?"
        rows = self._run(query, (name,))
        return ((rows[0][0], rows[0][1]), rows[0][2]) if rows else None

    def read_vectors(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield content key, vector (float32 bytes) and CRC of each distinct image. Each row's CRC is checked."""
        with translated(self.path), well_formed(self.path):
            self._connection.start_statement()
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
            rows = self._run(query, chunk)
            with well_formed(self.path):
                if any(regions_crc(key, data) != crc for key, data, crc in rows):
                    raise damaged(self.path, "an image's regions have changed by themselves")
            regions.update((key, data) for key, data, _ in rows)
        return regions

    def decode_regions(self, encoded: Sequence[bytes], dim: int) -> Floats:
        """Return regions [K, R, d] of K encoded ones, as this file's format encodes them."""
        with well_formed(self.path):
            return region_codec.from_bytes(encoded, dim, self.format_version)

    def content_keys(self) -> dict[bytes, int]:
        """Return the content key of each distinct image by its SHA-256."""
        return dict(self._run("SELECT sha256, key FROM contents"))

    def content_key(self, sha256: bytes) -> int | None:
        """Return the content key of the image with this SHA-256, None where there is none."""
        rows = self._run("SELECT key FROM contents WHERE sha256 = ?", (sha256,))
        return int(rows[0][0]) if rows else None

    def read_failures(self) -> list[tuple[str, str]]:
        """Return path and reason of each file that was refused. Each row's CRC is checked."""
        if self.format_version < 3:
            return list(self._run("SELECT id, reason FROM failures ORDER BY id"))
        rows = self._run("SELECT id, size, mtime_ns, decoder, reason, crc FROM failures ORDER BY id")
        with well_formed(self.path):
            if len(rows) != self.meta()["failures"] or any(failure_crc(*row[:-1]) != row[-1] for row in rows):
                raise damaged(self.path, "what it knows of refused files has changed by itself")
        return [(name, reason) for name, _, _, _, reason, _ in rows]

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

    def put_salvaged_vector(self, key: int, sha256: bytes, vector: bytes) -> None:
        """Write an encoded vector under the key that it had."""
        row = (key, sha256, vector, content_crc(sha256, vector))
        self._run("INSERT INTO contents (key, sha256, vector, crc) VALUES (?, ?, ?, ?)", row)

    def put_salvaged_regions(self, key: int, regions: bytes) -> None:
        """Write encoded regions under the key that they had."""
        self._run("INSERT INTO regions VALUES (?, ?, ?)", (key, regions, regions_crc(key, regions)))

    def put_item(self, name: str, content: int, stamp: FileStamp, metadata: str) -> None:
        """Write one image's entry; `metadata` is JSON."""
        # Not INSERT OR REPLACE, here and below: that deletes without the trigger that counts.
        self._run(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET content = excluded.content, "
            "size = excluded.size, mtime_ns = excluded.mtime_ns, metadata = excluded.metadata, crc = excluded.crc",
            (name, content, *stamp, metadata, item_crc(name, content, metadata)),
        )

    def put_failure(self, name: str, stamp: FileStamp, decoder: str, reason: str) -> None:
        """Write that `decoder` refused the file with this stamp, and why."""
        self._run(
            "INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET size = excluded.size, "
            "mtime_ns = excluded.mtime_ns, decoder = excluded.decoder, reason = excluded.reason, crc = excluded.crc",
            (name, *stamp, decoder, reason, failure_crc(name, *stamp, decoder, reason)),
        )

    def delete_items(self, names: Iterable[str]) -> None:
        """Delete the entries of images."""
        self._run_many("DELETE FROM items WHERE id = ?", ((name,) for name in names))

    def delete_failures(self, names: Iterable[str]) -> None:
        """Delete what is known of files that were refused."""
        self._run_many("DELETE FROM failures WHERE id = ?", ((name,) for name in names))

    def delete_unused_contents(self) -> None:
        """Delete features that no image shows any more."""
        self._run("DELETE FROM contents WHERE key NOT IN (SELECT content FROM items)")
