"""FileStore: a gallery file behind the one protocol of stores: one writer, exact search, snapshots."""

import json
import os
import sqlite3
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path

import numpy as np

from nsfse_runtime.errors import NotFoundError, OutputError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery import store
from nsfse_runtime.gallery.filters import Where
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.snapshot import Snapshot
from nsfse_runtime.gallery.sqlite_file import sole_writer
from nsfse_runtime.gallery.store import GalleryTables
from nsfse_runtime.search.first_stage import FirstStage
from nsfse_runtime.stores.groups import best_of_groups
from nsfse_runtime.stores.protocol import (
    REGION_FORMAT,
    Found,
    Link,
    Metadata,
    Record,
    StoreFacts,
    StoreInfo,
    check_fingerprint,
    check_length,
    check_records,
)
from nsfse_runtime.types import Floats

# Size and time of a file that nobody has seen: the next sync with a folder hashes it.
_UNSEEN = (0, -1)
_SHARD = "shard:"  # before the name of a shard among the facts


class FileStore:
    """A gallery file. Syncing it with a folder is the Gallery's alone."""

    def __init__(self, path: Path, create: StoreFacts | None = None) -> None:
        """Open the file at `path` (see stores.open.open_store)."""
        self._path, self.url = path, str(path)
        if create is not None and not store.exists(path):
            if not path.absolute().parent.is_dir():
                raise OutputError(f"{path.parent} is not a folder; make it first")
            store.create(path, create.fingerprint, create.bundle)
            with self._writing() as tables:
                tables.write_meta({"dim": create.dim, "regions": create.regions, "folder": create.folder})
        self.gallery, self._held = Gallery.open(path), threading.local()
        self._first_stage = FirstStage(path, self.gallery.fingerprint)
        if create is not None:
            check_fingerprint(self.url, self.gallery.fingerprint, create.fingerprint)

    @contextmanager
    def _writing(self) -> Iterator[GalleryTables]:
        with sole_writer(self._path), GalleryTables.open_writer(self._path) as tables, tables.writing():
            yield tables
            tables.advance()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See one committed state inside."""
        with self.gallery.reading():
            self._held.state = True
            try:
                yield
            finally:
                self._held.state = False

    def _newest(self) -> Snapshot:
        """Return the newest generation, or within `reading` the one that it holds."""
        if not getattr(self._held, "state", False):
            self.gallery.refresh()
        return self.gallery.snapshot

    def info(self) -> StoreInfo:
        """Return what the file holds and promises."""
        facts = self.gallery.info()
        return StoreInfo(
            url=self.url,
            engine=f"SQLite {sqlite3.sqlite_version}",
            facts=StoreFacts(
                facts["fingerprint"], facts["dim"] or 0, facts["regions"] or 0, facts["bundle"], facts["folder"]
            ),
            images=facts["images"],
            distinct=facts["distinct"],
            search="exact",
            consistency="snapshot",
            writers="one",
            total="counted",
            batches="whole",
            writable=os.access(self._path, os.W_OK),
        )

    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns of metadata, sorted."""
        return self._newest().columns

    def known(self, sha256: Sequence[bytes]) -> set[bytes]:
        """Return those of `sha256` whose features the file has."""
        with GalleryTables.open_reader(self._path) as tables:
            return {key for key in set(sha256) if tables.content_key(key) is not None}

    def upsert(self, records: Sequence[Record]) -> None:
        """Write all of `records` or none. Raises OutputError where another process writes."""
        check_records(records)
        with self._writing() as tables:
            self._check_shape(tables, records)
            replaces = _has_any(tables, records)
            for record in records:
                key = tables.content_key(record.sha256)
                if key is None:
                    key = tables.put_content(record.sha256, record.vector, record.regions)
                tables.put_item(record.id, key, _UNSEEN, _json(record.metadata))
            if replaces:
                tables.delete_unused_contents()

    def _check_shape(self, tables: GalleryTables, records: Sequence[Record]) -> None:
        dim = tables.meta().get("dim")
        for record in records:
            if dim is None:
                dim = len(record.vector)
                tables.write_meta({"dim": dim, "regions": len(record.regions) // (dim + 4)})
            check_length(self.url, record, dim)

    def link(self, links: Sequence[Link]) -> None:
        """Write names for known features, all or none. Raises NotFoundError or OutputError."""
        check_records(links)
        with self._writing() as tables:
            replaces = _has_any(tables, links)
            for link in links:
                if (key := tables.content_key(link.sha256)) is None:
                    raise NotFoundError(f"{self.url} has no features of the file with the SHA-256 {link.sha256.hex()}")
                tables.put_item(link.id, key, _UNSEEN, _json(link.metadata))
            if replaces:
                tables.delete_unused_contents()

    def delete(self, ids: Sequence[str]) -> int:
        """Delete images, and features that no image has any more; return how many images there were."""
        with self._writing() as tables:
            before = int(tables.meta()["items"])
            tables.delete_items(ids)
            deleted = before - int(tables.meta()["items"])
            tables.delete_unused_contents()
        return deleted

    def search(
        self,
        vector: Floats,
        k: int,
        where: Where | None = None,
        *,
        without: Sequence[bytes] = (),
        group_by: str | None = None,
        exact: bool = False,
    ) -> Found:
        """Find the images with the largest inner product with `vector` (see GalleryStore.search)."""
        snapshot = self._newest()
        mask, notes = snapshot.select(where)
        for sha256 in without:
            mask[snapshot.rows_with_content(sha256)] = False
        if group_by is not None:
            mask = best_of_groups(snapshot.vectors, vector, mask, snapshot.column(group_by))
        rows, scores = self._first_stage(snapshot, vector, k, mask)
        return Found(tuple(snapshot.ids[row] for row in rows), scores, int(np.count_nonzero(mask)), notes)

    def fetch(self, ids: Sequence[str], regions: bool = True) -> list[Record]:
        """Return images in the order of `ids`. Raises NotFoundError."""
        snapshot = self._newest()
        if missing := next((name for name in ids if not snapshot.has(name)), None):
            raise NotFoundError(printable(f"{self.url} has no image {missing[:200]}"))
        rows = [snapshot.row(name) for name in ids]
        encoded = snapshot.encoded_regions(rows, REGION_FORMAT) if regions else [b""] * len(rows)
        return [
            Record(name, snapshot.sha256(row), snapshot.vectors[row], data, snapshot.metadata_of(row))
            for name, row, data in zip(ids, rows, encoded, strict=True)
        ]

    def ids(self, prefix: str = "", after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` ids, sorted, that begin with `prefix` and come after `after`."""
        own = self._newest().ids
        start = max(bisect_right(own, after), bisect_left(own, prefix))
        later = (own[row] for row in range(start, len(own)))
        return list(islice(takewhile(lambda name: name.startswith(prefix), later), limit))

    def shards(self) -> dict[str, str]:
        """Return what `put_shard` has noted, by name."""
        with GalleryTables.open_reader(self._path) as tables:
            noted = {key: str(value) for key, value in tables.meta().items() if key.startswith(_SHARD)}
        return {key.removeprefix(_SHARD): facts for key, facts in noted.items()}

    def put_shard(self, name: str, facts: str) -> None:
        """Note `facts` of a shard."""
        with self._writing() as tables:
            tables.write_meta({f"{_SHARD}{name}": facts})

    def build_index(self) -> None:
        """Make the approximate index of a large gallery (see search.first_stage)."""
        self._first_stage.prepare_index(self.gallery.snapshot)

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self.gallery.close()


def _has_any(tables: GalleryTables, records: Sequence[Record | Link]) -> bool:
    return any(tables.read_file(record.id) is not None for record in records)


def _json(metadata: Metadata) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False)
