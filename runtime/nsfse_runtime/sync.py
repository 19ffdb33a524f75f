"""Make a gallery equal to a folder: list, read and decode in threads, encode and commit batch by batch, then report.

Order is what makes it safe to kill: a batch is committed first and reported after; what is gone is dropped last.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL

from nsfse_runtime import images
from nsfse_runtime.errors import InputError, IntegrityError, NotFoundError, OutputError, UsageError
from nsfse_runtime.features import Pixels, Scorer, TargetFeatures
from nsfse_runtime.folder import Listing, Stamp, list_folder
from nsfse_runtime.gallery_file import COMPANIONS, connect_writer, sole_writer, transaction, translated
from nsfse_runtime.intake import Read, batches, read_files, usual_batch, usual_workers
from nsfse_runtime.metadata import match_table, read_table
from nsfse_runtime.printable import printable
from nsfse_runtime.snapshot import content_crc, item_crc, regions_crc

# Refusals are remembered with what refused them: another decoder tries again.
_DECODER = f"{images.DECODER_VERSION}/Pillow {PIL.__version__}"
# A file changed so recently may change again within the clock's tick, unseen: next time it is hashed again.
_FRESH_NS = 2_000_000_000
_UNTRUSTED = -1


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """What is committed: `ids` are in the gallery, `failed` (path, reason) are not; `done` of `total` files."""

    done: int
    total: int
    ids: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class SyncReport:
    """Counts of pictures, `encoded` those the model has seen; `failed` (path, reason) is every file not taken.

    `unmatched` are keys of the metadata table that name no picture, or several. `device` is what encoded, in batches of
    up to `batch`, with `workers` threads that decoded; `seconds` is the time of reading, encoding and committing, and
    `images_per_second` how many pictures were encoded in it. `ann` tells of the gallery's index, where it has one.
    """

    added: int = 0
    updated: int = 0
    renamed: int = 0
    removed: int = 0
    unchanged: int = 0
    encoded: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    device: str = ""
    workers: int = 0
    batch: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    ann: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    content: int
    stamp: Stamp
    metadata: str


def sync(
    path: Path,
    folder: Path,
    scorer: Scorer,
    table: Path | None = None,
    batch: int | None = None,
    workers: int | None = None,
    progress: Callable[[SyncProgress], None] | None = None,
) -> SyncReport:
    """Make the gallery at `path` equal to `folder`. See Gallery.sync for what it promises and raises."""
    batch, workers = batch or usual_batch(scorer.image_size), workers or usual_workers()
    if not folder.is_dir():
        raise NotFoundError(f"no folder at {folder}; check the path")
    rows = read_table(table) if table is not None else None
    with sole_writer(path), translated(path), closing(connect_writer(path)) as connection:
        own = {os.path.realpath(path) + suffix for suffix in COMPANIONS}
        run = _Sync(path, folder, connection, scorer, list_folder(folder, own), progress)
        run.check_folder()
        if table is not None and rows is not None:
            columns, run.report.unmatched = match_table(table, rows, run.listing.files)
            run.columns = {name: json.dumps(columns.get(name, {}), ensure_ascii=False) for name in run.listing.files}
        run.start()
        started = time.perf_counter()
        changed, ahead = run.changed(), batch + 2 * workers
        with closing(read_files(run.folder, changed, scorer.image_size, run.contents, workers, ahead)) as reads:
            for part in batches(reads, batch):
                run.commit(part)
        run.report.seconds = round(time.perf_counter() - started, 3)
        run.finish()
        run.report.batch, run.report.workers = batch, workers
        run.report.device = getattr(scorer, "device", "cpu")
        run.report.images_per_second = round(run.report.encoded / max(run.report.seconds, 0.001), 1)
        return run.report


def sync_one(path: Path, folder: Path, name: str, scorer: Scorer, metadata: dict[str, str] | None) -> SyncReport:
    """Take the one file `name` under `folder`, the gallery's own, in and look at nothing else.

    Its metadata stay as they are where `metadata` is None. Raises OutputError (a second writer), IntegrityError.
    """
    with sole_writer(path), translated(path), closing(connect_writer(path)) as connection:
        status = (folder / name).stat()
        # Whatever else lies in the folder was not looked at, so that nothing is known to be gone.
        listing = Listing({name: (status.st_size, status.st_mtime_ns)}, unread=[""])
        run = _Sync(path, folder, connection, scorer, listing, None)
        if metadata is not None:
            run.columns = {name: json.dumps(metadata, ensure_ascii=False)}
        run.start()
        with closing(read_files(run.folder, run.changed(), scorer.image_size, run.contents, 1, 1)) as reads:
            run.commit(list(reads))
        run.finish()
        return run.report


def drop_one(path: Path, folder: Path, name: str) -> None:
    """Delete the file `name` under `folder` and what the gallery knows of it.

    Raises OutputError (a second writer, or a file that cannot be deleted), IntegrityError.
    """
    with sole_writer(path), translated(path), closing(connect_writer(path)) as connection:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{printable(name)} cannot be deleted: {error.strerror}; check the rights") from error
        with transaction(connection):
            connection.execute("DELETE FROM items WHERE id = ?", (name,))
            connection.execute("DELETE FROM contents WHERE key NOT IN (SELECT content FROM items)")
            connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")


class _Sync:
    """One run: what the gallery knew, what the folder holds, and what has been done so far."""

    def __init__(
        self,
        path: Path,
        folder: Path,
        connection: sqlite3.Connection,
        scorer: Scorer,
        listing: Listing,
        progress: Callable[[SyncProgress], None] | None,
    ) -> None:
        self.path, self.folder, self.listing = path, folder.resolve(), listing
        self._connection, self._scorer, self._progress = connection, scorer, progress
        self.report = SyncReport(failed=list(listing.skipped))
        self.columns: dict[str, str] | None = None
        query = "SELECT id, content, size, mtime_ns, metadata FROM items"
        self._items = {row[0]: _Item(row[1], (row[2], row[3]), row[4]) for row in connection.execute(query)}
        self.contents: dict[bytes, int] = dict(connection.execute("SELECT sha256, key FROM contents"))
        self._done = 0
        # Names that are gone, by what they showed: a new file that shows the same is a rename.
        self._gone: dict[int, list[str]] = {}
        for name, item in self._items.items():
            if not listing.may_exist(name):
                self._gone.setdefault(item.content, []).append(name)

    def check_folder(self) -> None:
        """Refuse a folder that would wipe the gallery by mistake: an empty one, or one that has nothing in common."""
        if not self._items:
            return
        if not self.listing.files:
            raise InputError(
                f"{self.folder} holds no files but {self.path} has {len(self._items)} pictures; "
                "is the disk mounted? to start again, delete the gallery"
            )
        before = self._meta("folder")
        elsewhere = before and Path(before).is_dir() and not os.path.samefile(before, self.folder)
        if elsewhere and not self._items.keys() & self.listing.files.keys():
            raise UsageError(
                f"{self.path} follows {before}, and {self.folder} has none of its pictures; "
                "use another gallery, or put both folders into one and index that"
            )

    def start(self) -> None:
        """Commit what needs no picture: the folder's place, other metadata."""
        with transaction(self._connection):
            before = self._connection.total_changes
            if self._meta("folder") != str(self.folder):
                self._set_meta("folder", str(self.folder))
            for name, item in self._items.items():
                metadata = self._metadata(name, item)
                if metadata != item.metadata:
                    self._put(name, item.content, item.stamp, metadata)
            self._advance_since(before)

    def changed(self) -> dict[str, Stamp]:
        """Return the files that are not as they were; count and tell of the others."""
        changed = {name: stamp for name, stamp in self.listing.files.items() if not self._is_as_before(name)}
        self._done = len(self.listing.files) - len(changed)
        self._tell()
        return changed

    def _is_as_before(self, name: str) -> bool:
        stamp, item = self.listing.files[name], self._items.get(name)
        if item is not None and item.stamp == stamp:
            self.report.unchanged += 1
            return True
        query = "SELECT reason FROM failures WHERE (id, size, mtime_ns, decoder) = (?, ?, ?, ?)"
        if found := self._connection.execute(query, (name, *stamp, _DECODER)).fetchone():
            self.report.failed.append((name, found[0]))
            return True
        return False

    def commit(self, reads: list[Read]) -> None:
        """Encode what is new in `reads`, commit all of it, and only then report it."""
        # Features are made before the file is locked for writing, and read back only when committed.
        new = {read.sha256: read.pixels for read in reads if read.pixels is not None}
        new = {sha256: pixels for sha256, pixels in new.items() if sha256 not in self.contents}
        features = self._encode([pixels for pixels in new.values() if pixels is not None])
        with transaction(self._connection):
            if features is not None:
                self._insert(list(new), features)
            for read in reads:
                self._record(read)
            self._advance()
        self.report.encoded += len(new)
        failed = tuple((read.name, read.reason) for read in reads if read.reason)
        self.report.failed.extend(failed)
        self._done += len(reads)
        self._tell(tuple(read.name for read in reads if not read.reason), failed)

    def _encode(self, pixels: list[Pixels]) -> TargetFeatures | None:
        if not pixels:
            return None
        features = self._scorer.encode_images(np.stack(pixels))
        if not (np.isfinite(features.vectors).all() and np.isfinite(features.regions).all()):
            raise IntegrityError("the model gives values that are no numbers; export it again")
        return features

    def _insert(self, hashes: list[bytes], features: TargetFeatures) -> None:
        self._set_meta("dim", features.vectors.shape[1])
        self._set_meta("regions", features.regions.shape[1])
        for sha256, vector, regions in zip(hashes, features.vectors, features.regions, strict=True):
            blob, cached = vector.astype("<f4").tobytes(), regions.astype("<f2").tobytes()
            insert = "INSERT INTO contents (sha256, vector, crc) VALUES (?, ?, ?) RETURNING key"
            key = self._connection.execute(insert, (sha256, blob, content_crc(sha256, blob))).fetchone()[0]
            self._connection.execute("INSERT INTO regions VALUES (?, ?, ?)", (key, cached, regions_crc(key, cached)))
            self.contents[sha256] = key

    def _record(self, read: Read) -> None:
        item = self._items.get(read.name)
        if read.reason:
            if read.refused:
                self._refuse(read, item)
            return
        content = self.contents[read.sha256]
        stamp = _trusted(read.stamp)
        self._connection.execute("DELETE FROM failures WHERE id = ?", (read.name,))
        if item is not None:
            self.report.unchanged += item.content == content
            self.report.updated += item.content != content
            self._put(read.name, content, stamp, self._metadata(read.name, item))
        elif gone := self._gone.get(content):
            before = gone.pop()
            self._connection.execute("DELETE FROM items WHERE id = ?", (before,))
            self._put(read.name, content, stamp, self._metadata(read.name, self._items[before]))
            self.report.renamed += 1
        else:
            self._put(read.name, content, stamp, self._metadata(read.name, None))
            self.report.added += 1

    def _refuse(self, read: Read, item: _Item | None) -> None:
        if item is not None:
            self._connection.execute("DELETE FROM items WHERE id = ?", (read.name,))
        stamp = _trusted(read.stamp)
        insert = "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?)"
        self._connection.execute(insert, (read.name, *stamp, _DECODER, read.reason))

    def finish(self) -> None:
        """Drop what is gone: names, refusals, and features that nothing shows any more."""
        gone = [name for names in self._gone.values() for name in names]
        failures = [row[0] for row in self._connection.execute("SELECT id FROM failures")]
        with transaction(self._connection):
            before = self._connection.total_changes
            self._connection.executemany("DELETE FROM items WHERE id = ?", ((name,) for name in gone))
            lost = ((name,) for name in failures if not self.listing.may_exist(name))
            self._connection.executemany("DELETE FROM failures WHERE id = ?", lost)
            self._connection.execute("DELETE FROM contents WHERE key NOT IN (SELECT content FROM items)")
            self._advance_since(before)
        self.report.removed = len(gone)

    def _metadata(self, name: str, item: _Item | None) -> str:
        if self.columns is not None and name in self.columns:
            return self.columns[name]
        return item.metadata if item is not None else "{}"

    def _put(self, name: str, content: int, stamp: Stamp, metadata: str) -> None:
        # Not INSERT OR REPLACE: that deletes without the trigger that counts.
        self._connection.execute(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET content = excluded.content, "
            "size = excluded.size, mtime_ns = excluded.mtime_ns, metadata = excluded.metadata, crc = excluded.crc",
            (name, content, *stamp, metadata, item_crc(name, content, metadata)),
        )

    def _set_meta(self, key: str, value: str | int) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _meta(self, key: str) -> str:
        return str(self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def _advance_since(self, changes: int) -> None:
        if self._connection.total_changes != changes:
            self._advance()

    def _advance(self) -> None:
        self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")

    def _tell(self, ids: tuple[str, ...] = (), failed: tuple[tuple[str, str], ...] = ()) -> None:
        if self._progress is not None:
            self._progress(SyncProgress(self._done, len(self.listing.files), ids, failed))


def _trusted(stamp: Stamp) -> Stamp:
    return stamp if time.time_ns() - stamp[1] > _FRESH_NS else (stamp[0], _UNTRUSTED)
