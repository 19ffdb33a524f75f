"""What was read goes into a store: what is new is encoded, names and metadata are written, and all is counted."""

import json
from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np

from nsfse_runtime.errors import IntegrityError, NotFoundError
from nsfse_runtime.gallery.metadata import merge
from nsfse_runtime.gallery.reader import ReadResult
from nsfse_runtime.gallery.report import SyncProgress, SyncReport
from nsfse_runtime.inference.region_codec import to_bytes
from nsfse_runtime.stores.protocol import (
    REGION_FORMAT,
    GalleryStore,
    Link,
    Metadata,
    Record,
)
from nsfse_runtime.types import Pixels, Scorer

_FETCHED_AT_ONCE = 500
Progress = Callable[[SyncProgress], None]
Changes = Mapping[str, Mapping[str, str]]


class Known(Container[bytes]):
    """The SHA-256 of what a store has features of, looked up one by one; of an empty store nothing is looked up."""

    def __init__(self, store: GalleryStore) -> None:
        self._store, self._was_empty = store, store.info().images == 0

    def __contains__(self, sha256: object) -> bool:
        return not self._was_empty and isinstance(sha256, bytes) and bool(self._store.known([sha256]))


class Indexer:
    """Writes what was read into a store, and counts it in a report."""

    def __init__(
        self,
        store: GalleryStore,
        scorer: Scorer,
        report: SyncReport,
        progress: Progress | None = None,
    ) -> None:
        """Write into `store`.

        Args:
            store: The gallery.
            scorer: The model.
            report: Counts what is done.
            progress: Called after each batch.

        Attributes:
            there: Ids that the store has of what is read next.
            total: How many images there are to read; 0 where that is not known.
        """
        self._store, self._scorer, self._report, self._progress = store, scorer, report, progress
        self.there, self.total, self._done = set[str](), 0, 0
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
        before = {record.id: record for record in self._present([r.name for r in reads if r.name in self.there])}
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
            self._progress(SyncProgress(self._done, max(self.total, self._done), ids, failed))

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
