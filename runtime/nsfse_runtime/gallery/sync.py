"""Make a gallery equal to a folder: list, read and decode in threads, encode and commit batch by batch, then report.

Order is what makes it safe to kill: a batch is committed first and reported after; what is gone is dropped last.
"""

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from nsfse_runtime.errors import DataError, InputError, IntegrityError, NotFoundError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.metadata import TableRow, match_table, merge, read_table
from nsfse_runtime.gallery.reader import (
    ReadResult,
    batches,
    default_batch_size,
    default_workers,
    has_profile,
    read_files,
)
from nsfse_runtime.gallery.removals import FEW, HOW_TO_ALLOW, Item, Removals
from nsfse_runtime.gallery.report import SyncProgress, SyncReport
from nsfse_runtime.gallery.scan import FileStamp, Listing, clean_globs, is_left_out, list_folder
from nsfse_runtime.gallery.sqlite_file import sole_writer
from nsfse_runtime.gallery.store import COMPANIONS, GalleryTables
from nsfse_runtime.images import decode
from nsfse_runtime.images.formats import readers_version
from nsfse_runtime.types import Pixels, Scorer, TargetFeatures

# Refusals are remembered with what refused them: another decoder tries again.
_DECODER = f"{decode.DECODER_VERSION}/{readers_version()}"
# A file changed so recently may change again within the clock's tick, unseen: next time it is hashed again.
_FRESH_NS = 2_000_000_000
_UNTRUSTED = -1


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
    remembered: Mapping[str, str] | None = None,
) -> SyncReport:
    """Make the gallery at `path` equal to `folder`. See Gallery.sync.

    Images that are new get the metadata (JSON) that `remembered` has of their ids.
    """
    batch, workers = batch or default_batch_size(scorer.image_size), workers or default_workers()
    check_is_folder(folder)
    rows = read_table(table) if table is not None else None
    if rows == []:
        raise DataError(f"{table} has a header and no rows; write a row for each image, or leave the table out")
    with sole_writer(path), GalleryTables.open_writer(path) as store:
        own = {os.path.realpath(path) + suffix for suffix in COMPANIONS}
        globs = clean_globs(exclude) if exclude is not None else store.read_list("exclude")
        run = _Sync(folder, store, scorer, list_folder(folder, own, globs), globs, progress)
        run.remembered = remembered or {}
        run.removals.check_folder(store.meta()["folder"])
        if not allow_removals:
            run.removals.check(store.read_list("mounts"))
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
        report = run.report
        report.seconds = round(time.perf_counter() - started, 3)
        run.finish()
        report.batch, report.workers = batch, workers
        report.device = scorer.info.device
        report.images_per_second = round(report.encoded / max(report.seconds, 0.001), 1)
        return report


def check_is_folder(folder: Path) -> None:
    """Raise NotFoundError or UsageError where `folder` is none."""
    if folder.is_dir():
        return
    if not folder.exists():
        raise NotFoundError(f"no folder at {folder}; check the path")
    if folder.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        raise UsageError(f"{folder} is an archive, not a folder; unpack it and name the folder")
    raise UsageError(f"{folder} is a file, not a folder; name the folder that it is in")


def sync_file(path: Path, folder: Path, name: str, scorer: Scorer, metadata: Mapping[str, str]) -> SyncReport:
    """Add or update the one file `name` under `folder`, the gallery's own; look at nothing else.

    Args:
        path: The gallery's file.
        folder: The folder that the gallery follows.
        name: The image's path relative to `folder`.
        scorer: The model that encodes the image.
        metadata: Columns to set, "" to remove one; the image's other columns stay.

    Returns:
        What the sync did.

    Raises:
        InputError: A rule of the gallery leaves this name out.
        OutputError: Another process writes into the gallery.
        IntegrityError: The gallery is damaged.
    """
    with sole_writer(path), GalleryTables.open_writer(path) as store:
        globs = store.read_list("exclude")
        if is_left_out(name, globs):
            raise InputError(f"{printable(name)} is left out of this gallery by its name; give it another one")
        status = (folder / name).stat()
        # Whatever else is in the folder was not looked at, so that nothing is known to be gone.
        listing = Listing({name: (status.st_size, status.st_mtime_ns)}, unreadable_dirs=[""])
        run = _Sync(folder, store, scorer, listing, globs)
        run.changes = {name: metadata}
        run.start()
        with closing(read_files(run.folder, run.changed(), scorer.image_size, run.known, 1, 1)) as reads:
            run.commit(list(reads))
        run.finish()
        return run.report


class _Sync:
    """One run: what the gallery knew, what the folder holds, and what has been done so far."""

    def __init__(
        self,
        folder: Path,
        store: GalleryTables,
        scorer: Scorer,
        listing: Listing,
        globs: Sequence[str],
        progress: Callable[[SyncProgress], None] | None = None,
    ) -> None:
        self.folder, self.listing = folder.resolve(), listing
        self._store, self._scorer, self._progress, self._globs = store, scorer, progress, globs
        self.report = SyncReport(failed=list(listing.skipped), left_out=dict(sorted(listing.left_out.items())))
        self.changes: dict[str, Mapping[str, str]] = {}
        self.remembered: Mapping[str, str] = {}
        self._items = {name: Item(content, stamp, metadata) for name, content, stamp, metadata in store.read_files()}
        self.contents = store.content_keys()
        # Contents that an older decoder read with other colours: they are encoded again, under their key.
        self._outdated: set[int] = set()
        self._done = 0
        self.removals = Removals(store.path, self.folder, listing, self._items, self.contents, globs)

    @property
    def known(self) -> Collection[bytes]:
        """Return the sha256 of what need not be encoded."""
        if not self._outdated:
            return self.contents.keys()
        return {sha256 for sha256, key in self.contents.items() if key not in self._outdated}

    def take_table(self, table: Path, rows: Sequence[TableRow]) -> None:
        """Take each image's metadata from a table. Raises DataError: two rows name one image."""
        matched = match_table(table, rows, self.listing.files, str(self.folder))
        self.report.unmatched, self.report.loose = matched.unmatched, matched.loose
        self.changes = dict(matched.columns)
        others = (item for name, item in self._items.items() if name in self.listing.files and name not in self.changes)
        self.report.metadata_kept = sum(item.metadata != "{}" for item in others)

    def check_metadata(self, table: Path) -> None:
        """Refuse a table that clears the metadata of most images that have any. Raises DataError."""
        had = [name for name, item in self._items.items() if item.metadata != "{}" and name in self.listing.files]
        cleared = [name for name in had if self._metadata(name, self._items[name].metadata) == "{}"]
        if 2 * len(cleared) > len(had) and len(cleared) >= FEW:
            raise DataError(
                f"{table} would clear the metadata of {len(cleared)} of {len(had)} images, "
                f"since its cells are empty; {HOW_TO_ALLOW}"
            )

    def start(self) -> None:
        """Commit what needs no image: the folder's path, the rules, other metadata."""
        with self._store.writing():
            before = self._store.total_changes
            facts = {"folder": str(self.folder), "exclude": json.dumps(list(self._globs))}
            if not self._items:
                facts["decoder"] = str(decode.DECODER_VERSION)
            for key, value in facts.items():
                self._set_fact(key, value)
            for name, item in self._items.items():
                metadata = self._metadata(name, item.metadata)
                if metadata != item.metadata:
                    self.report.count_changes(json.loads(item.metadata), json.loads(metadata))
                    self._store.put_item(name, item.content, item.stamp, metadata)
            self._advance_since(before)
        self._find_outdated()

    def _find_outdated(self) -> None:
        """Find what an older decoder read without its colour profile."""
        if self._store.meta().get("decoder", "") != str(decode.DECODER_VERSION):
            known = (name for name in self.listing.files if name in self._items)
            self._outdated = {self._items[name].content for name in known if has_profile(self.folder / name)}

    def changed(self) -> dict[str, FileStamp]:
        """Return the files that are not as they were; count and report the others."""
        changed = {name: stamp for name, stamp in self.listing.files.items() if not self._is_as_before(name)}
        self._done = len(self.listing.files) - len(changed)
        self._report_progress()
        return changed

    def _is_as_before(self, name: str) -> bool:
        stamp, item = self.listing.files[name], self._items.get(name)
        if item is not None and item.stamp == stamp and item.content not in self._outdated:
            self.report.unchanged += 1
            return True
        reason = self._store.failure_reason(name, stamp, _DECODER)
        if reason is None:
            return False
        self.report.failed.append((name, reason))
        return True

    def commit(self, reads: list[ReadResult]) -> None:
        """Encode what is new in `reads`, commit all of it, and only then report it."""
        # Features are made before the file is locked for writing, and read back only when committed.
        known = self.known
        new = {read.sha256: read.pixels for read in reads if read.pixels is not None and read.sha256 not in known}
        features = self._encode(list(new.values()))
        with self._store.writing():
            if features is not None:
                self._insert(list(new), features)
            for read in reads:
                self._record(read)
            self._store.advance()
        self.report.encoded += len(new)
        failed = tuple((read.name, read.reason) for read in reads if read.reason)
        self.report.failed.extend(failed)
        self._done += len(reads)
        self._report_progress(tuple(read.name for read in reads if not read.reason), failed)

    def _encode(self, pixels: list[Pixels]) -> TargetFeatures | None:
        if not pixels:
            return None
        features = self._scorer.encode_images(np.stack(pixels))
        if not (np.isfinite(features.vectors).all() and np.isfinite(features.regions).all()):
            raise IntegrityError("the model gives values that are no numbers; export it again")
        return features

    def _insert(self, hashes: list[bytes], features: TargetFeatures) -> None:
        self._store.write_meta({"dim": features.vectors.shape[1], "regions": features.regions.shape[1]})
        for sha256, vector, regions in zip(hashes, features.vectors, features.regions, strict=True):
            key = self._store.put_content(sha256, vector, self._store.encode_regions(regions))
            self.contents[sha256] = key
            self._outdated.discard(key)

    def _record(self, read: ReadResult) -> None:
        item = self._items.get(read.name)
        if read.reason:
            if read.refused:
                self._refuse(read, item)
            return
        content = self.contents[read.sha256]
        stamp = _trusted(read.stamp)
        self._store.delete_failures([read.name])
        if item is not None:
            self.report.unchanged += item.content == content
            self.report.updated += item.content != content
            metadata = self._metadata(read.name, item.metadata)
        elif (previous := self.removals.take_renamed(content)) is not None:
            self._store.delete_items([previous])
            metadata = self._metadata(read.name, self._items[previous].metadata)
            self.report.renamed += 1
        else:
            metadata = self._metadata(read.name, self.remembered.get(read.name, "{}"))
            self.report.added += 1
        self._store.put_item(read.name, content, stamp, metadata)

    def _refuse(self, read: ReadResult, item: Item | None) -> None:
        if item is not None:
            self._store.delete_items([read.name])
        self._store.put_failure(read.name, _trusted(read.stamp), _DECODER, read.reason)

    def finish(self) -> None:
        """Drop what is gone: names, refusals, and features that nothing shows any more."""
        gone = self.removals.names()
        with self._store.writing():
            before = self._store.total_changes
            self._store.delete_items(gone)
            refused = (name for name, _ in self._store.read_failures())
            self._store.delete_failures([name for name in refused if not self.listing.may_exist(name)])
            self._store.delete_unused_contents()
            if not self.listing.unreadable_dirs:
                self._set_fact("mounts", json.dumps(sorted(self.listing.mounts)))
                self._set_fact("decoder", str(decode.DECODER_VERSION))
            self._advance_since(before)
        self.report.excluded = self.removals.count_excluded(gone)
        self.report.removed = len(gone) - self.report.excluded

    def _metadata(self, name: str, before: str) -> str:
        return merge(before, self.changes[name]) if name in self.changes else before

    def _set_fact(self, key: str, value: str) -> None:
        """Set a fact where it is another one than before; an empty list need not be written."""
        before = self._store.meta().get(key, "")
        if before != value and (before or value != "[]"):
            self._store.write_meta({key: value})

    def _advance_since(self, changes: int) -> None:
        if self._store.total_changes != changes:
            self._store.advance()

    def _report_progress(self, ids: tuple[str, ...] = (), failed: tuple[tuple[str, str], ...] = ()) -> None:
        if self._progress is not None:
            self._progress(SyncProgress(self._done, len(self.listing.files), ids, failed))


def _trusted(stamp: FileStamp) -> FileStamp:
    return stamp if time.time_ns() - stamp[1] > _FRESH_NS else (stamp[0], _UNTRUSTED)
