"""Make a gallery equal to a folder: list, read and decode in threads, encode and commit batch by batch, then report.

Order is what makes it safe to kill: a batch is committed first and reported after; what is gone is dropped last.
"""

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL

from nsfse_runtime.errors import DataError, InputError, IntegrityError, NotFoundError, OutputError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.metadata import TableRow, match_table, read_table
from nsfse_runtime.gallery.reader import (
    Read,
    batches,
    content_hash,
    has_profile,
    looks_like_image,
    read_files,
    usual_batch,
    usual_workers,
)
from nsfse_runtime.gallery.scan import Listing, Stamp, clean_globs, is_left_out, list_folder
from nsfse_runtime.gallery.snapshot import content_crc, item_crc, regions_crc
from nsfse_runtime.gallery.store import COMPANIONS, connect_writer, format_of, sole_writer, transaction, translated
from nsfse_runtime.images import decode
from nsfse_runtime.inference.region_codec import to_bytes
from nsfse_runtime.types import Pixels, Scorer, TargetFeatures

# Refusals are remembered with what refused them: another decoder tries again.
_DECODER = f"{decode.DECODER_VERSION}/Pillow {PIL.__version__}"
# A file changed so recently may change again within the clock's tick, unseen: next time it is hashed again.
_FRESH_NS = 2_000_000_000
_UNTRUSTED = -1
# Removals are looked at from so many images on; in a sub-folder from so many, or so many where it is there but empty.
_FEW, _MANY, _MANY_EMPTY = 4, 10, 5
_ASKED = "nothing was changed; where that is meant: --allow-removals (allow_removals=True)"


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """What is committed: `ids` are in the gallery, `failed` (path, reason) are not; `done` of `total` files."""

    done: int
    total: int
    ids: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class SyncReport:
    """Counts of images, `encoded` those the model has seen; `failed` (path, reason) is every file not taken.

    `excluded` are images that were in the gallery and are left out now, by a rule; `left_out` counts files and folders
    by the rule that left them out of this sync, a folder as one. `unmatched` are keys of the metadata table that name
    no image, or several; `loose` (key, id) those that name one by a part of its path or name. `device` is what encoded,
    in batches of up to `batch`, with `workers` threads that decoded; `seconds` is the time of reading, encoding and
    committing, and `images_per_second` how many images were encoded in it. `ann` tells of the gallery's index, where it
    has one.
    """

    added: int = 0
    updated: int = 0
    renamed: int = 0
    removed: int = 0
    unchanged: int = 0
    encoded: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    loose: list[tuple[str, str]] = field(default_factory=list)
    excluded: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
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
    exclude: Sequence[str] | None = None,
    allow_removals: bool = False,
) -> SyncReport:
    """Make the gallery at `path` equal to `folder`. See Gallery.sync for what it promises and raises."""
    batch, workers = batch or usual_batch(scorer.image_size), workers or usual_workers()
    check_is_folder(folder)
    rows = read_table(table) if table is not None else None
    if rows == [] and not allow_removals:
        raise DataError(f"{table} has a header and no rows, which would clear all metadata; {_ASKED}")
    with sole_writer(path), translated(path), closing(connect_writer(path)) as connection:
        own = {os.path.realpath(path) + suffix for suffix in COMPANIONS}
        globs = clean_globs(exclude) if exclude is not None else _kept_globs(connection)
        run = _Sync(path, folder, connection, scorer, list_folder(folder, own, globs), progress, globs)
        run.check_folder()
        if not allow_removals:
            run.check_removals()
        if table is not None and rows is not None:
            run.take_table(table, rows)
            if not allow_removals:
                run.check_metadata(table)
        run.start()
        started = time.perf_counter()
        changed, ahead = run.changed(), batch + 2 * workers
        with closing(read_files(run.folder, changed, scorer.image_size, run.known, workers, ahead)) as reads:
            for part in batches(reads, batch):
                run.commit(part)
        run.report.seconds = round(time.perf_counter() - started, 3)
        run.finish()
        run.report.batch, run.report.workers = batch, workers
        run.report.device = scorer.info.device
        run.report.images_per_second = round(run.report.encoded / max(run.report.seconds, 0.001), 1)
        return run.report


def check_is_folder(folder: Path) -> None:
    """Raise NotFoundError or UsageError where `folder` is none."""
    if folder.is_dir():
        return
    if not folder.exists():
        raise NotFoundError(f"no folder at {folder}; check the path")
    if folder.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        raise UsageError(f"{folder} is an archive, not a folder; unpack it and name the folder")
    raise UsageError(f"{folder} is a file, not a folder; name the folder that it is in")


def _kept_globs(connection: sqlite3.Connection) -> tuple[str, ...]:
    found = connection.execute("SELECT value FROM meta WHERE key = 'exclude'").fetchone()
    return tuple(json.loads(found[0])) if found else ()


def sync_one(path: Path, folder: Path, name: str, scorer: Scorer, metadata: dict[str, str] | None) -> SyncReport:
    """Take the one file `name` under `folder`, the gallery's own, in and look at nothing else.

    Its metadata stay as they are where `metadata` is None. Raises OutputError (a second writer), IntegrityError.
    """
    with sole_writer(path), translated(path), closing(connect_writer(path)) as connection:
        globs = _kept_globs(connection)
        if is_left_out(name, globs):
            raise InputError(f"{printable(name)} is left out of this gallery by its name; give it another one")
        status = (folder / name).stat()
        # Whatever else is in the folder was not looked at, so that nothing is known to be gone.
        listing = Listing({name: (status.st_size, status.st_mtime_ns)}, unread=[""])
        run = _Sync(path, folder, connection, scorer, listing, None, globs)
        if metadata is not None:
            run.columns = {name: json.dumps(metadata, ensure_ascii=False)}
        run.start()
        with closing(read_files(run.folder, run.changed(), scorer.image_size, run.known, 1, 1)) as reads:
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
        globs: Sequence[str] = (),
    ) -> None:
        self.path, self.folder, self.listing = path, folder.resolve(), listing
        self._connection, self._scorer, self._progress = connection, scorer, progress
        self._format, self._globs = format_of(connection), globs
        self.report = SyncReport(failed=list(listing.skipped), left_out=dict(sorted(listing.left_out.items())))
        self.columns: dict[str, str] | None = None
        query = "SELECT id, content, size, mtime_ns, metadata FROM items"
        self._items = {row[0]: _Item(row[1], (row[2], row[3]), row[4]) for row in connection.execute(query)}
        self.contents: dict[bytes, int] = dict(connection.execute("SELECT sha256, key FROM contents"))
        # Contents that an older decoder read with other colours: they are encoded again, under their key.
        self._outdated: set[int] = set()
        self._done = 0
        # Names that are gone, by what they showed: a new file that shows the same is a rename.
        self._gone: dict[int, list[str]] = {}
        for name, item in self._items.items():
            if not listing.may_exist(name):
                self._gone.setdefault(item.content, []).append(name)
        self._excluded = {name for names in self._gone.values() for name in names if is_left_out(name, globs)}

    @property
    def known(self) -> Collection[bytes]:
        """Return the sha256 of what need not be encoded."""
        if not self._outdated:
            return self.contents.keys()
        return {sha256 for sha256, key in self.contents.items() if key not in self._outdated}

    def check_folder(self) -> None:
        """Refuse a folder that has nothing in common with the gallery's own, which is still there."""
        before = self._meta("folder")
        elsewhere = before and Path(before).is_dir() and not os.path.samefile(before, self.folder)
        if self._items and elsewhere and self.listing.files and not self._items.keys() & self.listing.files.keys():
            raise UsageError(
                f"{self.path} follows {before}, and {self.folder} has none of its images; "
                "use another gallery, or put both folders into one and index that"
            )

    def check_removals(self) -> None:
        """Refuse to drop most of the gallery, or of one of its sub-folders: a disk may not be mounted.

        Moved images are not lost; what a rule leaves out now is asked for. Raises InputError: nothing is changed then.
        """
        total = len(self._items) - len(self._excluded)
        if total and not self.listing.files and not self.listing.unread:
            raise InputError(
                f"{self.folder} holds no files but {self.path} has {total} images; is the disk mounted? {_ASKED}"
            )
        lost = self._lost()
        if self._refusal(lost) and (refusal := self._refusal(lost - self._moved())):
            raise InputError(f"{refusal}; is a disk not mounted? {_ASKED}")

    def _lost(self) -> set[str]:
        """Return the images whose files are gone, or hold no image any more."""
        lost = {name for names in self._gone.values() for name in names} - self._excluded
        changed = [name for name, item in self._items.items() if self.listing.files.get(name, item.stamp) != item.stamp]
        if len(lost) + len(changed) >= _FEW:
            lost |= {name for name in changed if not looks_like_image(self.folder / name)}
        return lost

    def _moved(self) -> set[str]:
        """Return names that are gone whose contents are there under new names."""
        sizes = {self._items[name].stamp[0] for names in self._gone.values() for name in names}
        left = {content: list(names) for content, names in self._gone.items()}
        moved = set()
        for name, stamp in self.listing.files.items():
            sha256 = content_hash(self.folder / name) if name not in self._items and stamp[0] in sizes else None
            if names := left.get(self.contents.get(sha256 or b"", -1)):
                moved.add(names.pop())
        return moved

    def _refusal(self, lost: set[str]) -> str | None:
        """Return why these many images are not dropped unasked, None where they may be."""
        if not lost:
            return None
        total = len(self._items) - len(self._excluded)
        if 2 * len(lost) > total and (len(lost) >= _FEW or (len(lost) == total and not self._has_new())):
            return f"{len(lost)} of {total} images of {self.path} are gone from {self.folder}"
        had = _by_folder(name for name in self._items if name not in self._excluded)
        mounts = json.loads(self._meta("mounts") or "[]")
        for folder, gone in sorted(_by_folder(lost).items()):
            whole, top = gone == had[folder], folder.count("/") == 1
            unmounted = folder in mounts and folder not in self.listing.mounts
            emptied = whole and gone >= _MANY_EMPTY and (self.folder / folder).is_dir() and not self._holds(folder)
            most = had[folder] >= _MANY and (whole or (top and 2 * gone > had[folder]))
            if unmounted or emptied or most:
                return f"{gone} of {had[folder]} images are gone from {printable(str(self.folder / folder))}"
        return None

    def _holds(self, folder: str) -> bool:
        return any(name.startswith(folder) for name in self.listing.files)

    def _has_new(self) -> bool:
        new = (name for name in self.listing.files if name not in self._items)
        return any(looks_like_image(self.folder / name) for name in new)

    def take_table(self, table: Path, rows: Sequence[TableRow]) -> None:
        """Take each image's metadata from a table. Raises DataError: two rows name one image."""
        found = match_table(table, rows, self.listing.files, str(self.folder))
        self.report.unmatched, self.report.loose = found.unmatched, found.loose
        self.columns = {
            name: json.dumps(found.columns.get(name, {}), ensure_ascii=False) for name in self.listing.files
        }

    def check_metadata(self, table: Path) -> None:
        """Refuse a table that clears the metadata of most images that have any. Raises DataError."""
        had = [name for name, item in self._items.items() if item.metadata != "{}" and name in self.listing.files]
        cleared = [name for name in had if self._metadata(name, self._items[name]) == "{}"]
        nothing = all(values == "{}" for values in (self.columns or {}).values())
        if cleared and (nothing or (2 * len(cleared) > len(had) and len(cleared) >= _FEW)):
            raise DataError(
                f"{table} would clear the metadata of {len(cleared)} of {len(had)} images, "
                f"as {len(self.report.unmatched)} of its rows name none; {_ASKED}"
            )

    def start(self) -> None:
        """Commit what needs no image: the folder's place, the rules, other metadata."""
        with transaction(self._connection):
            before = self._connection.total_changes
            facts = {"folder": str(self.folder), "exclude": json.dumps(list(self._globs))}
            if not self._items:
                facts["decoder"] = str(decode.DECODER_VERSION)
            for key, value in facts.items():
                self._keep(key, value)
            for name, item in self._items.items():
                metadata = self._metadata(name, item)
                if metadata != item.metadata:
                    self._put(name, item.content, item.stamp, metadata)
            self._advance_since(before)
        self._find_outdated()

    def _find_outdated(self) -> None:
        """Find what an older decoder read without its colour profile."""
        if self._meta("decoder") != str(decode.DECODER_VERSION):
            known = (name for name in self.listing.files if name in self._items)
            self._outdated = {self._items[name].content for name in known if has_profile(self.folder / name)}

    def changed(self) -> dict[str, Stamp]:
        """Return the files that are not as they were; count and tell of the others."""
        changed = {name: stamp for name, stamp in self.listing.files.items() if not self._is_as_before(name)}
        self._done = len(self.listing.files) - len(changed)
        self._tell()
        return changed

    def _is_as_before(self, name: str) -> bool:
        stamp, item = self.listing.files[name], self._items.get(name)
        if item is not None and item.stamp == stamp and item.content not in self._outdated:
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
        known = self.known
        new = {read.sha256: read.pixels for read in reads if read.pixels is not None and read.sha256 not in known}
        features = self._encode(list(new.values()))
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
            blob, cached = vector.astype("<f4").tobytes(), to_bytes(regions, self._format)
            insert = (
                "INSERT INTO contents (sha256, vector, crc) VALUES (?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET "
                "vector = excluded.vector, crc = excluded.crc RETURNING key"
            )
            key = self._connection.execute(insert, (sha256, blob, content_crc(sha256, blob))).fetchone()[0]
            insert = "INSERT OR REPLACE INTO regions VALUES (?, ?, ?)"
            self._connection.execute(insert, (key, cached, regions_crc(key, cached)))
            self.contents[sha256] = key
            self._outdated.discard(key)

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
            if not self.listing.unread:
                self._keep("mounts", json.dumps(sorted(self.listing.mounts)))
                self._keep("decoder", str(decode.DECODER_VERSION))
            self._advance_since(before)
        self.report.excluded = sum(name in self._excluded for name in gone)
        self.report.removed = len(gone) - self.report.excluded

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

    def _keep(self, key: str, value: str) -> None:
        """Set a fact where it is another one than before; an empty list need not be told."""
        before = self._meta(key)
        if before != value and (before or value != "[]"):
            self._set_meta(key, value)

    def _meta(self, key: str) -> str:
        found = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(found[0]) if found else ""

    def _advance_since(self, changes: int) -> None:
        if self._connection.total_changes != changes:
            self._advance()

    def _advance(self) -> None:
        self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")

    def _tell(self, ids: tuple[str, ...] = (), failed: tuple[tuple[str, str], ...] = ()) -> None:
        if self._progress is not None:
            self._progress(SyncProgress(self._done, len(self.listing.files), ids, failed))


def _by_folder(names: Iterable[str]) -> Counter[str]:
    """Count `names` by each folder that they are in, at any depth: "a/", "a/b/"."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split("/")
        counts.update("/".join(parts[:depth]) + "/" for depth in range(1, len(parts)))
    return counts


def _trusted(stamp: Stamp) -> Stamp:
    return stamp if time.time_ns() - stamp[1] > _FRESH_NS else (stamp[0], _UNTRUSTED)
