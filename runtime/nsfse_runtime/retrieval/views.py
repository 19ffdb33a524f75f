"""A gallery as a batch of queries sees it, whether it is a file or a store: images by id, candidates of stage 1."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nsfse_runtime.errors import InputError, IntegrityError, NotFoundError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.columns import known_column
from nsfse_runtime.gallery.filters import Where
from nsfse_runtime.gallery.snapshot import Snapshot
from nsfse_runtime.image_names import leads_out, nfc
from nsfse_runtime.inference import region_codec
from nsfse_runtime.retrieval.candidates import Candidates, remembering
from nsfse_runtime.search.first_stage import FirstStage
from nsfse_runtime.search.on_device import MOST_PAIRS, DeviceCache
from nsfse_runtime.stores.groups import best_of_groups
from nsfse_runtime.stores.protocol import REGION_FORMAT, GalleryStore, Record, StoreInfo, all_ids
from nsfse_runtime.types import Floats, PairScores, QueryFeatures, Rows, TargetFeatures


class View(Protocol):
    """A gallery as one batch of queries sees it. Names are ids unless said otherwise."""

    @property
    def url(self) -> str:
        """Return the gallery's path or URL, for messages."""

    @property
    def folder(self) -> str:
        """Return the folder of the images, "" where there is none."""

    def __len__(self) -> int:
        """Return N."""

    def ids(self) -> Iterator[str]:
        """Yield all ids, sorted."""

    def has(self, name: str) -> bool:
        """Tell whether `name` is an id."""

    def same(self, name: str) -> str | None:
        """Return the id that `name` is, in whatever Unicode form; None where there is none."""

    def find(self, name: str) -> str:
        """Return the id of the image that is called `name`. Raises NotFoundError, or UsageError for several."""

    def hint(self, name: str) -> str:
        """Return "did you mean ID?", "" where no id is near."""

    def sha256(self, name: str) -> bytes:
        """Return the SHA-256 of an image's file as it was encoded."""

    def path_of(self, name: str) -> Path:
        """Return where an image's file was. Raises IntegrityError for an id that leads out of the folder."""

    def is_current(self, name: str) -> bool:
        """Tell whether an image's file is still as it was when it was encoded."""

    def features(self, name: str) -> TargetFeatures:
        """Return the features of one image."""

    def column(self, name: str) -> str:
        """Return the name of the column called `name`, or called so but for case and blanks. Raises UsageError."""

    def count(self, where: Where | None) -> int:
        """Return how many images fit a filter. Raises UsageError."""

    def select(self, where: Where | None) -> Any:
        """Return a filter in the form that `candidates` takes. Raises UsageError, or `candidates` does."""

    def candidates(
        self,
        vector: Floats,
        depth: int,
        selection: Any,
        *,
        without: Sequence[bytes] = (),
        group_by: str | None = None,
        on_device: bool = False,
    ) -> Candidates:
        """Do stage 1.

        Args:
            vector: The query's vector [d].
            depth: How many candidates to find.
            selection: What may be found, as `select` returns it.
            without: SHA-256 of files that must not be found.
            group_by: A column, of each value of which only the best image is found.
            on_device: Whether stage 2 scores all candidates at once, so that a device may.
        """


class FileView:
    """One generation of a gallery file."""

    def __init__(self, snapshot: Snapshot, first_stage: FirstStage, cache: DeviceCache | None) -> None:
        self._snapshot, self._first_stage, self._cache = snapshot, first_stage, cache
        self.url, self.folder = snapshot.url, snapshot.folder
        self.has, self.same, self.hint, self.select = snapshot.has, snapshot.same, snapshot.hint, snapshot.select

    def __len__(self) -> int:
        """Return N."""
        return len(self._snapshot)

    def ids(self) -> Iterator[str]:
        """Yield all ids, sorted."""
        return iter(self._snapshot.ids)

    def find(self, name: str) -> str:
        """Return the id of the image that is called `name` (see Snapshot.row)."""
        return self._snapshot.ids[self._snapshot.row(name)]

    def sha256(self, name: str) -> bytes:
        """Return the SHA-256 of an image's file as it was encoded."""
        return self._snapshot.sha256(self._snapshot.row(name))

    def path_of(self, name: str) -> Path:
        """Return where an image's file was when the folder was last indexed."""
        return self._snapshot.path_of(self._snapshot.row(name))

    def is_current(self, name: str) -> bool:
        """Tell whether an image's file is still as it was when it was encoded."""
        return self._snapshot.is_current(self._snapshot.row(name))

    def features(self, name: str) -> TargetFeatures:
        """Return the features of one image."""
        return self._snapshot.targets([self._snapshot.row(name)])

    def column(self, name: str) -> str:
        """Return the name of the column called `name`. Raises UsageError."""
        return self._snapshot.column(name).name

    def count(self, where: Where | None) -> int:
        """Return how many images fit a filter. Raises UsageError."""
        return int(np.count_nonzero(self._snapshot.mask(where)))

    def candidates(
        self,
        vector: Floats,
        depth: int,
        selection: Any,
        *,
        without: Sequence[bytes] = (),
        group_by: str | None = None,
        on_device: bool = False,
    ) -> Candidates:
        """Do stage 1 (see View.candidates), on the device where the gallery is there."""
        snapshot, (mask, notes) = self._snapshot, selection
        for sha256 in without:
            mask[snapshot.rows_with_content(sha256)] = False
        if group_by is not None:
            mask = best_of_groups(snapshot.vectors, vector, mask, snapshot.column(group_by))
        total, pairs = int(np.count_nonzero(mask)), None
        if self._cache is None or not on_device or depth > MOST_PAIRS:
            rows, scores = self._first_stage(snapshot, vector, depth, mask)
        else:
            gallery = self._cache.gallery(snapshot, snapshot.targets)
            hits = gallery.search(vector, depth, mask)
            rows, scores = hits.rows, hits.scores

            def pairs(queries: Sequence[QueryFeatures]) -> list[PairScores]:
                return gallery.pairs(queries, hits)

        return Candidates(
            self.folder,
            snapshot.ids,
            rows,
            scores,
            total,
            notes,
            remembering(snapshot.targets),
            lambda wanted: snapshot.vectors[wanted],
            snapshot.metadata_of,
            pairs,
        )


class StoreView:
    """A store within its `reading`."""

    def __init__(self, store: GalleryStore, info: StoreInfo) -> None:
        self._store, self.url, self._dim, self.folder = store, info.url, info.facts.dim, info.facts.folder
        self._records: dict[str, Record] = {}

    def __len__(self) -> int:
        """Return N."""
        return self._store.info().images

    def ids(self) -> Iterator[str]:
        """Yield all ids, sorted."""
        return all_ids(self._store)

    def has(self, name: str) -> bool:
        """Tell whether `name` is an id."""
        return self._record(name) is not None

    def same(self, name: str) -> str | None:
        """Return the id that `name` is; None where there is none."""
        return next((form for form in (name, nfc(name)) if self.has(form)), None)

    def find(self, name: str) -> str:
        """Return the id that `name` is. Raises NotFoundError."""
        if (own := self.same(name)) is None:
            raise NotFoundError(printable(f"{self.url} has no image {name[:200]}; give an id as results show it"))
        return own

    def hint(self, name: str) -> str:
        """Return "": a store does not look for names that are near."""
        return ""

    def sha256(self, name: str) -> bytes:
        """Return the SHA-256 of an image's file as it was encoded."""
        return self._known(name).sha256

    def path_of(self, name: str) -> Path:
        """Return where an image's file was. Raises IntegrityError for an id that leads out of the folder."""
        if leads_out(name):
            raise IntegrityError(printable(f"{self.url} has an id that leads out of its folder: {name[:200]}"))
        return Path(self.folder, name)

    def is_current(self, name: str) -> bool:
        """Tell whether an image's file has the bytes that were encoded."""
        from nsfse_runtime.gallery.reader import content_hash  # which needs Pillow

        path = self.path_of(name)
        try:
            return bool(self.folder) and content_hash(path) == self.sha256(name)
        except (OSError, InputError):
            return False

    def features(self, name: str) -> TargetFeatures:
        """Return the features of one image."""
        return self._targets([self._known(name)])

    def column(self, name: str) -> str:
        """Return the name of the column called `name`. Raises UsageError."""
        return known_column(name, self._store.columns(), self.url)

    def count(self, where: Where | None) -> int:
        """Return how many images fit a filter. Raises UsageError."""
        return self._store.search(np.zeros(self._dim, np.float32), 0, where).total

    def select(self, where: Where | None) -> Any:
        """Return `where` itself: the store reads it."""
        return where

    def candidates(
        self,
        vector: Floats,
        depth: int,
        selection: Any,
        *,
        without: Sequence[bytes] = (),
        group_by: str | None = None,
        on_device: bool = False,
    ) -> Candidates:
        """Do stage 1 (see View.candidates) in the store."""
        found = self._store.search(vector, depth, selection, without=without, group_by=group_by)
        ids = sorted(found.ids)
        row_of = {name: row for row, name in enumerate(ids)}
        rows = np.array([row_of[name] for name in found.ids], np.intp)
        metadata: dict[int, dict[str, str]] = {}

        def targets(wanted: Rows) -> TargetFeatures:
            records = self._fetch([ids[row] for row in wanted])
            metadata.update(zip(wanted.tolist(), (dict(record.metadata) for record in records), strict=True))
            return self._targets(records)

        def metadata_of(row: int) -> dict[str, str]:
            return metadata[row] if row in metadata else dict(self._fetch([ids[row]], regions=False)[0].metadata)

        def vectors(wanted: Rows) -> Floats:
            return self._vectors(self._fetch([ids[row] for row in wanted], regions=False))

        return Candidates(
            self.folder, ids, rows, found.scores, found.total, found.notes, remembering(targets), vectors, metadata_of
        )

    def _record(self, name: str) -> Record | None:
        if name not in self._records and name and "\0" not in name:
            try:
                self._records[name] = self._store.fetch([name])[0]
            except NotFoundError:
                return None
        return self._records.get(name)

    def _known(self, name: str) -> Record:
        self.find(name)
        return self._records[name]

    def _fetch(self, ids: Sequence[str], regions: bool = True) -> list[Record]:
        try:
            return self._store.fetch(ids, regions)
        except NotFoundError as error:
            raise InputError(f"{self.url} was changed while it was read; try again") from error

    def _targets(self, records: Sequence[Record]) -> TargetFeatures:
        try:
            regions = region_codec.from_bytes([record.regions for record in records], self._dim, REGION_FORMAT)
        except ValueError as error:
            raise IntegrityError(f"{self.url} is damaged ({error}); index it again") from error
        return TargetFeatures(self._vectors(records), regions)

    def _vectors(self, records: Sequence[Record]) -> Floats:
        return np.array([record.vector for record in records], np.float32).reshape(len(records), self._dim)
