"""Make a gallery in a store equal to a folder: read, hash, ask what is known, encode the rest, write.

Each batch is committed before it is reported, and all of it may be repeated: what was killed goes on by the same call,
and several processes may index into one gallery. A store does not know when a file changed, so every file is read.
"""

import json
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np

from nsfse_runtime.errors import DataError, InputError, IntegrityError, NotFoundError, UsageError
from nsfse_runtime.gallery.metadata import match_table, merge, read_table
from nsfse_runtime.gallery.reader import ReadResult, batches, default_batch_size, default_workers, read_files
from nsfse_runtime.gallery.removals import FEW, HOW_TO_ALLOW
from nsfse_runtime.gallery.report import SyncProgress, SyncReport
from nsfse_runtime.gallery.scan import Listing, clean_globs, is_left_out, list_folder
from nsfse_runtime.gallery.sync import check_is_folder
from nsfse_runtime.inference.region_codec import to_bytes
from nsfse_runtime.stores.protocol import (
    REGION_FORMAT,
    GalleryStore,
    Link,
    Metadata,
    Record,
    StoreFacts,
    all_ids,
    check_fingerprint,
)
from nsfse_runtime.types import Pixels, Scorer

_FETCHED_AT_ONCE = 500
Progress = Callable[[SyncProgress], None]
Changes = Mapping[str, Mapping[str, str]]


def facts_of(scorer: Scorer, bundle: str, folder: str) -> StoreFacts:
    """Return the facts of a new gallery of `scorer`: the lengths of its features are those of a white image."""
    features = scorer.encode_images(np.full((1, *scorer.image_size, 3), 255, np.uint8))
    return StoreFacts(scorer.fingerprint, features.vectors.shape[1], features.regions.shape[1], bundle, folder)


def index_folder(
    store: GalleryStore,
    folder: Path,
    scorer: Scorer,
    *,
    table: Path | None = None,
    exclude: Sequence[str] = (),
    allow_removals: bool = False,
    workers: int | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    """Make the gallery in `store` equal to `folder`.

    Args:
        store: The gallery.
        folder: The folder of images, that which the gallery follows.
        scorer: The model whose features the store holds.
        table: A CSV of metadata (see gallery.metadata).
        exclude: Globs of what is left out. A store does not remember them.
        allow_removals: Whether most images may go.
        workers: Threads that read and decode.
        batch: Images that are encoded and committed at a time.
        progress: Called after each batch that is committed.

    Returns:
        What was done.

    Raises:
        InputError: Most images are gone from the folder; nothing was changed.
        UsageError: The gallery follows another folder.
        VersionError: The store holds features of another model.
        NsfseError: What check_is_folder, read_table and the store raise.
    """
    check_is_folder(folder)
    folder, info = folder.resolve(), store.info()
    check_fingerprint(info.url, info.facts.fingerprint, scorer.fingerprint)
    if info.facts.folder != str(folder):
        raise UsageError(
            f"{info.url} follows {info.facts.folder or 'no folder'}, not {folder}; "
            "index that one, or this one into another gallery"
        )
    globs = clean_globs(exclude)
    listing, there = list_folder(folder, (), globs), set(all_ids(store))
    gone = sorted(name for name in there if not listing.may_exist(name))
    excluded = sum(is_left_out(name, globs) for name in gone)
    if not allow_removals:
        _check_removals(info.url, folder, len(gone) - excluded, len(there) - excluded)
    workers, batch = workers or default_workers(), batch or default_batch_size(scorer.image_size)
    report = SyncReport(failed=list(listing.skipped), left_out=dict(sorted(listing.left_out.items())))
    report.workers, report.batch, report.device = workers, batch, scorer.info.device
    changes = _changes(table, listing, folder, report) if table is not None else {}
    indexer = Indexer(store, scorer, there, report, progress, len(listing.files))
    indexer.may_be_renamed(gone)

    def read_again(reads: Sequence[ReadResult]) -> list[ReadResult]:
        files = {read.name: read.stamp for read in reads}
        return list(read_files(folder, files, scorer.image_size, (), workers, batch))

    started, ahead = perf_counter(), batch + 2 * workers
    with closing(read_files(folder, listing.files, scorer.image_size, Known(store), workers, ahead)) as reads:
        for part in batches(reads, batch):
            indexer.commit(part, changes, read_again)
    deleted = store.delete(gone) if gone else 0
    report.excluded = excluded
    report.removed = max(0, deleted - excluded - report.renamed)
    report.seconds = round(perf_counter() - started, 3)
    report.images_per_second = round(report.encoded / max(report.seconds, 0.001), 1)
    return report


def _check_removals(url: str, folder: Path, gone: int, total: int) -> None:
    if gone >= FEW and 2 * gone > total:
        raise InputError(f"{gone} of {total} images of {url} are gone from {folder}; is a disk mounted? {HOW_TO_ALLOW}")


def _changes(table: Path, listing: Listing, folder: Path, report: SyncReport) -> Changes:
    rows = read_table(table)
    if not rows:
        raise DataError(f"{table} has a header and no rows; write a row for each image, or leave the table out")
    matched = match_table(table, rows, listing.files, str(folder))
    report.unmatched, report.loose = matched.unmatched, matched.loose
    return matched.columns


class Known(Container[bytes]):
    """The SHA-256 of what a store has features of, looked up one by one."""

    def __init__(self, store: GalleryStore) -> None:
        self._store = store

    def __contains__(self, sha256: object) -> bool:
        return isinstance(sha256, bytes) and bool(self._store.known([sha256]))


class Indexer:
    """Writes what was read into a store, and counts it in a report."""

    def __init__(
        self,
        store: GalleryStore,
        scorer: Scorer,
        there: set[str],
        report: SyncReport,
        progress: Progress | None = None,
        total: int = 0,
    ) -> None:
        """Write into `store`.

        Args:
            store: The gallery.
            scorer: The model.
            there: Ids that the store has.
            report: Counts what is done.
            progress: Called after each batch.
            total: How many images there are to read.
        """
        self._store, self._scorer, self._there, self._report = store, scorer, there, report
        self._progress, self._total, self._done = progress, total, 0
        # Images whose files are gone, by their content: a new file that has it is a rename.
        self._gone: dict[bytes, list[Record]] = {}

    def may_be_renamed(self, gone: Sequence[str]) -> None:
        """Let new images of the same content have the metadata of ids that are `gone`."""
        for start in range(0, len(gone), _FETCHED_AT_ONCE):
            for record in self._present(gone[start : start + _FETCHED_AT_ONCE]):
                self._gone.setdefault(record.sha256, []).append(record)

    def commit(
        self, reads: list[ReadResult], changes: Changes, read_again: Callable[[Sequence[ReadResult]], list[ReadResult]]
    ) -> None:
        """Encode what is new in `reads`, write all of it, and only then report it.

        Args:
            reads: A batch.
            changes: Columns to set by id, "" to remove one.
            read_again: Reads and decodes images whose features another process has deleted meanwhile.
        """
        before = {record.id: record for record in self._present([r.name for r in reads if r.name in self._there])}
        try:
            self._write(reads, before, changes)
        except NotFoundError:
            reads = read_again(reads)
            self._write(reads, before, changes)
        if refused := [read.name for read in reads if read.refused and read.name in before]:
            self._store.delete(refused)
        failed = tuple((read.name, read.reason) for read in reads if read.reason)
        self._report.failed += failed
        self._done += len(reads)
        if self._progress is not None:
            ids = tuple(read.name for read in reads if not read.reason)
            self._progress(SyncProgress(self._done, self._total, ids, failed))

    def _write(self, reads: Sequence[ReadResult], before: Mapping[str, Record], changes: Changes) -> None:
        good = [read for read in reads if not read.reason]
        new = {read.sha256: read.pixels for read in good if read.pixels is not None}
        for sha256 in self._store.known(list(new)):  # written since it was read
            del new[sha256]
        features = self._encode(new)
        records: list[Record] = []
        links: list[Link] = []
        gone = {sha256: list(some) for sha256, some in self._gone.items()}
        counts: dict[str, int] = {}
        changed: list[tuple[Metadata, Metadata]] = []
        for read in good:
            old, kind = before.get(read.name), "added"
            if old is not None:
                kind = "unchanged" if old.sha256 == read.sha256 else "updated"
            elif gone.get(read.sha256):
                old, kind = gone[read.sha256].pop(), "renamed"
            known = old.metadata if old is not None else {}
            metadata = _merged(known, changes.get(read.name))
            counts[kind] = counts.get(kind, 0) + 1
            if read.name in before and metadata != known:
                changed.append((known, metadata))
            if read.sha256 in features:
                records.append(Record(read.name, read.sha256, *features[read.sha256], metadata))
            elif kind != "unchanged" or metadata != known:
                links.append(Link(read.name, read.sha256, metadata))
        if records:
            self._store.upsert(records)
        if links:
            self._store.link(links)
        self._gone = gone
        for kind, count in counts.items():
            setattr(self._report, kind, getattr(self._report, kind) + count)
        for known, metadata in changed:
            self._report.count_changes(known, metadata)
        self._report.encoded += len(features)

    def _encode(self, pixels: Mapping[bytes, Pixels]) -> dict[bytes, tuple[np.ndarray, bytes]]:
        """Return vector and regions by SHA-256."""
        if not pixels:
            return {}
        features = self._scorer.encode_images(np.stack(list(pixels.values())))
        if not (np.isfinite(features.vectors).all() and np.isfinite(features.regions).all()):
            raise IntegrityError("the model gives values that are no numbers; export it again")
        encoded = (to_bytes(regions, REGION_FORMAT) for regions in features.regions)
        return dict(zip(pixels, zip(features.vectors.astype(np.float32), encoded, strict=True), strict=True))

    def _present(self, ids: Sequence[str]) -> list[Record]:
        """Return those of `ids` that the store still has, without regions."""
        if not ids:
            return []
        try:
            return self._store.fetch(ids, regions=False)
        except NotFoundError:  # another process has deleted some
            if len(ids) == 1:
                return []
            middle = len(ids) // 2
            return self._present(ids[:middle]) + self._present(ids[middle:])


def _merged(known: Metadata, changes: Mapping[str, str] | None) -> Metadata:
    return known if changes is None else json.loads(merge(json.dumps(dict(known)), changes))
