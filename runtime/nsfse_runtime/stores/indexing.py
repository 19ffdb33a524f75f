"""Index a folder or shards into a store: read, hash, look up what is known, encode the rest, write.

Each batch is committed before it is reported, and all of it may be repeated: what was killed goes on by the same call,
and several processes may index into one gallery. A store does not know when a file changed, so every file is read.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np

from nsfse_runtime.errors import DataError, InputError, UsageError
from nsfse_runtime.gallery.metadata import match_table, read_table
from nsfse_runtime.gallery.reader import ReadResult, batches, default_batch_size, default_workers, read_files
from nsfse_runtime.gallery.removals import FEW, HOW_TO_ALLOW
from nsfse_runtime.gallery.report import SyncReport
from nsfse_runtime.gallery.scan import Listing, clean_globs, is_left_out, list_folder
from nsfse_runtime.gallery.sync import check_is_folder
from nsfse_runtime.stores.indexer import Changes, Indexer, Known, Progress
from nsfse_runtime.stores.protocol import (
    GalleryStore,
    StoreFacts,
    all_ids,
    check_fingerprint,
)
from nsfse_runtime.stores.shards import Sample, ShardError, read_sample, read_samples, read_shard, shard_name
from nsfse_runtime.types import Scorer

Part = tuple[int, int]


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
    indexer = Indexer(store, scorer, report, progress)
    indexer.there, indexer.total = there, len(listing.files)
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
    return _timed(report, started)


def _timed(report: SyncReport, started: float) -> SyncReport:
    report.seconds = round(perf_counter() - started, 3)
    report.images_per_second = round(report.encoded / max(report.seconds, 0.001), 1)
    return report


def check_shards(shards: Sequence[Path]) -> None:
    """Raise UsageError where two shards have one name."""
    names = [shard_name(path) for path in shards]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UsageError(f"two shards are called {twice}, so their images would have the same ids; rename one")


def index_shards(
    store: GalleryStore,
    shards: Sequence[Path],
    scorer: Scorer,
    *,
    part: Part = (0, 1),
    workers: int | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    """Index shards (see stores.shards). One that is as it was when it was indexed before is not read.

    An image that a shard has no more goes. What is in other shards stays. Metadata are merged column by column.

    Args:
        store: The gallery.
        shards: All shards, in the same order for each of several processes.
        scorer: The model whose features the store holds.
        part: (i, n): which of the shards this process takes, every n-th from the i-th on, from 0.
        workers: Threads that decode.
        batch: Images that are encoded and committed at a time.
        progress: Called after each batch that is committed; counts the images of shards that were read.

    Returns:
        What was done. `failed` has broken images, and shards that cannot be read to their end: their images up to
        there are in the gallery.

    Raises:
        UsageError: Two shards have one name, or the gallery follows a folder.
        VersionError: The store holds features of another model.
        NsfseError: What the store and read_shard raise.
    """
    check_shards(shards)
    info = store.info()
    check_fingerprint(info.url, info.facts.fingerprint, scorer.fingerprint)
    if info.facts.folder:
        raise UsageError(f"{info.url} follows {info.facts.folder}; index shards into another gallery")
    report = SyncReport(workers=workers or default_workers(), batch=batch or default_batch_size(scorer.image_size))
    report.device = scorer.info.device
    indexer, noted, started = Indexer(store, scorer, report, progress), store.shards(), perf_counter()
    for path in shards[part[0] :: part[1]]:
        _index_shard(path, noted.get(shard_name(path)), store, scorer, indexer, report)
    return _timed(report, started)


def _index_shard(
    path: Path, noted: str | None, store: GalleryStore, scorer: Scorer, indexer: Indexer, report: SyncReport
) -> None:
    try:
        status = path.stat()
    except OSError as error:
        report.failed.append((str(path), f"it cannot be read: {error.strerror}"))
        return
    stamp = {"bytes": status.st_size, "modified": status.st_mtime_ns}
    if noted is not None and json.loads(noted).items() >= stamp.items():
        report.shards_before += 1
        return
    there, seen = set(all_ids(store, f"{shard_name(path)}/")), set[str]()
    indexer.there = there
    waiting: dict[str, Sample] = {}
    broken: list[str] = []

    def samples() -> Iterator[Sample]:
        try:
            for sample in read_shard(path):
                seen.add(sample.id)
                waiting[sample.id] = sample
                yield sample
        except ShardError as error:  # what was read before is taken
            broken.append(str(error))

    ahead = report.batch + 2 * report.workers
    with closing(read_samples(samples(), scorer.image_size, Known(store), report.workers, ahead)) as reads:
        for part in batches(reads, report.batch):
            own = {read.name: waiting.pop(read.name) for read in part if read.name in waiting}

            def read_again(reads: Sequence[ReadResult], own: Mapping[str, Sample] = own) -> list[ReadResult]:
                return [read_sample(own[read.name], scorer.image_size, ()) for read in reads if read.name in own]

            indexer.commit(part, {name: sample.metadata for name, sample in own.items()}, read_again)
    if broken:
        report.failed.append((str(path), broken[0]))
        return
    if gone := sorted(there - seen):
        report.removed += store.delete(gone)
    store.put_shard(shard_name(path), json.dumps({**stamp, "images": len(seen)}))
    report.shards += 1


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
