"""QdrantStore: a gallery in Qdrant. Tried with its client's in-process mode alone, never with a server."""

import json
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice, takewhile
from typing import Any, TypeVar

from nsfse_runtime.errors import InputError, NotFoundError, NsfseError, OutputError
from nsfse_runtime.escaping import printable
from nsfse_runtime.extras import need
from nsfse_runtime.gallery.columns import known_column
from nsfse_runtime.gallery.filters import Where, evaluate
from nsfse_runtime.stores import qdrant_tables as tables
from nsfse_runtime.stores import stored_columns
from nsfse_runtime.stores.addresses import Address, parse
from nsfse_runtime.stores.groups import best_of_groups_in_pages
from nsfse_runtime.stores.protocol import (
    Found,
    Link,
    Record,
    StoreFacts,
    StoreInfo,
    check_fingerprint,
    check_length,
    check_records,
    in_order,
    with_features,
)
from nsfse_runtime.stores.qdrant_tables import EVERYTHING, Condition, having, one_of, point_id
from nsfse_runtime.stores.rescoring import SPARE, rescored
from nsfse_runtime.stores.stored_columns import StoredColumn
from nsfse_runtime.types import Floats

FEW = 1000
"""So many images that fit are searched exactly; beyond, the index searches."""
_BATCH, _PAGE, _PORT, _TIMEOUT = 500, 4096, 6333, 60
_FIELDS = ["id", "sha256", "metadata"]
_SHARDS = "shards"  # in the place of a column's term: what was noted of shards
T = TypeVar("T")


def connect(address: Address) -> Any:
    """Return a client of the server at `address`; its key is in QDRANT_API_KEY."""
    from qdrant_client import QdrantClient

    key = address.password or os.environ.get("QDRANT_API_KEY")
    return QdrantClient(url=address.http, api_key=key, timeout=_TIMEOUT, check_compatibility=False)


class QdrantStore:
    """A gallery in two collections of Qdrant (see qdrant_tables). Threads share its client.

    It promises no snapshot and no whole batches: a batch that was interrupted is there in part, and is written again.
    """

    def __init__(self, url: str, create: StoreFacts | None = None) -> None:
        """Open the gallery at `url`: qdrant://HOST:PORT?gallery=NAME (see addresses).

        Args:
            url: Where it is.
            create: Make the gallery where there is none, with these facts.

        Raises:
            NotFoundError: There is no such gallery, and `create` is None.
            VersionError: It is of a newer format or of another model than `create`, or no gallery of nsfse.
            InputError: The server cannot be reached.
            UsageError: The URL or the name is none.
            MissingExtraError: qdrant-client is not installed.
        """
        need("qdrant_client", "qdrant")
        self._address = parse(url, _PORT)
        self._name, self.url = self._address.name, self._address.shown
        self._values, self._written = f"{self._name}_values", set[str]()
        self._opening, self._client = threading.Lock(), None
        self._columns: dict[str, StoredColumn] = {}
        self._walk: list[str] | None = None
        if not self._call("collection_exists", self._name):
            if create is None:
                raise NotFoundError(f"no gallery at {self.url}; make it with: nsfse gallery copy FILE URL")
            self._create(create)
        self._facts = tables.read_facts(self.url, self._call("get_collection", self._name).config.metadata)
        if create is not None:
            check_fingerprint(self.url, self._facts.fingerprint, create.fingerprint)

    def _create(self, facts: StoreFacts) -> None:
        from qdrant_client.models import Distance, PayloadSchemaType, VectorParams

        vectors = VectorParams(size=facts.dim, distance=Distance.DOT)
        try:
            self._call("create_collection", self._values, vectors_config={})
            self._call("create_payload_index", self._values, "column", PayloadSchemaType.KEYWORD)
            self._call(
                "create_collection",
                self._name,
                vectors_config=vectors,
                on_disk_payload=True,
                metadata=tables.facts_of(facts),
            )
            for field in ("sha256", "terms"):
                self._call("create_payload_index", self._name, field, PayloadSchemaType.KEYWORD)
        except NsfseError:  # another process may just have made it
            if not self._call("collection_exists", self._name):
                raise

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the client. Raises InputError or OutputError for what the server says."""
        from qdrant_client.http.exceptions import ApiException, ResponseHandlingException

        try:
            with self._opening:
                if self._client is None:
                    self._client = connect(self._address)
                client = self._client
            return getattr(client, method)(*args, **options)
        except ResponseHandlingException as error:
            raise InputError(f"{self.url} cannot be reached: {_line(error)}; check the URL and the server") from error
        except ApiException as error:
            raise OutputError(f"{self.url}: the server refuses: {_line(error)}; check its log") from error

    def shards(self) -> dict[str, str]:
        """Return what `put_shard` has noted, by name."""
        return dict(json.loads(text) for text in self._texts(_SHARDS))

    def put_shard(self, name: str, facts: str) -> None:
        """Note `facts` of a shard."""
        value = tables.value_of(stored_columns.term("\0shards", name), _SHARDS, json.dumps([name, facts]))
        self._upsert(self._values, [value])

    def build_index(self) -> None:
        """Do nothing: Qdrant builds its index of what was written, by and by."""

    def reading(self) -> AbstractContextManager[None]:
        """Promise nothing: what is read inside may change."""
        return nullcontext()

    def close(self) -> None:
        """Close the client; a later use opens it again."""
        with self._opening:
            if self._client is not None:
                self._client.close()
                self._client = None

    # What is there

    def info(self) -> StoreInfo:
        """Return what the store holds and promises."""
        return StoreInfo(
            url=self.url,
            engine=f"Qdrant {self._call('info').version}, untried against a server",
            facts=self._facts,
            images=self._count(self._name, EVERYTHING),
            distinct=None,
            search="approximate",
            consistency="bounded",
            writers="many",
            total="counted",
            batches="repeated",
        )

    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns of metadata, sorted."""
        return tuple(self._texts(""))

    def known(self, sha256: Sequence[bytes]) -> set[bytes]:
        """Return those of `sha256` whose features the store has."""
        return set(self._names(sha256))

    def ids(self, prefix: str = "", after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` ids, sorted, that begin with `prefix` and come after `after`.

        Qdrant does not sort texts: a walk reads all ids at its beginning, and keeps them until this object writes.
        """
        own = self._walk
        if own is None or not after:
            own = self._walk = sorted(point.payload["id"] for point in self._points(self._name, EVERYTHING, ["id"]))
        start = max(bisect_right(own, after), bisect_left(own, prefix))
        return list(islice(takewhile(lambda name: name.startswith(prefix), islice(own, start, None)), limit))

    def fetch(self, ids: Sequence[str], regions: bool = True) -> list[Record]:
        """Return images in the order of `ids`. Raises NotFoundError, or IntegrityError for what has rotted."""
        names, fields = list(dict.fromkeys(ids)), [*_FIELDS, *(["regions", "crc"] if regions else [])]
        records = {}
        for batch in _batches(names):
            keys = [point_id(name) for name in batch]
            for point in self._call("retrieve", self._name, keys, with_payload=fields, with_vectors=True):
                records[point.payload["id"]] = tables.read_point(self.url, point)
        return in_order(self.url, ids, records)

    # Reading

    def _points(
        self, collection: str, condition: Condition, fields: list[str], with_vectors: bool = False
    ) -> Iterator[Any]:
        return chain.from_iterable(self._pages(collection, condition, fields, with_vectors))

    def _pages(
        self, collection: str, condition: Condition, fields: list[str], with_vectors: bool
    ) -> Iterator[list[Any]]:
        """Yield all points that fit, some at a time."""
        offset, is_first = None, True
        while is_first or offset is not None:
            page, offset = self._call(
                "scroll",
                collection,
                condition.filter,
                limit=_PAGE,
                offset=offset,
                with_payload=fields,
                with_vectors=with_vectors,
            )
            is_first = False
            yield page

    def _count(self, collection: str, condition: Condition) -> int:
        return int(self._call("count", collection, condition.filter, exact=True).count)

    def _names(self, sha256: Sequence[bytes]) -> dict[bytes, str]:
        """Return the id of an image by the SHA-256 of its file, for those of `sha256` that are there."""
        names = {}
        for batch in _batches(sorted({each.hex() for each in sha256})):
            for point in self._points(self._name, one_of("sha256", batch), ["id", "sha256"]):
                names[bytes.fromhex(point.payload["sha256"])] = str(point.payload["id"])
        return names

    def _texts(self, column: str) -> list[str]:
        points = self._points(self._values, one_of("column", [column]), ["text"])
        return sorted(point.payload["text"] for point in points)

    # Writing

    def upsert(self, records: Sequence[Record]) -> None:
        """Write `records`; one whose id is there takes its place."""
        check_records(records)
        for record in records:
            check_length(self.url, record, self._facts.dim)
        last = {record.id: record for record in records}
        self._write_values([record.metadata for record in records])
        self._upsert(self._name, [tables.point_of(record) for record in last.values()])

    def _write_values(self, metadata: Sequence[Mapping[str, str]]) -> None:
        """Say what terms mean before an image has them. Meanings are only ever added."""
        new = {each: means for each, means in stored_columns.dictionary(metadata).items() if each not in self._written}
        self._upsert(self._values, [tables.value_of(each, column, text) for each, (column, text) in new.items()])
        self._written.update(new)

    def _upsert(self, collection: str, points: Sequence[Any]) -> None:
        self._walk = None
        for batch in _batches(points):
            self._call("upsert", collection, batch, wait=True)

    def link(self, links: Sequence[Link]) -> None:
        """Write names for known features. Raises NotFoundError for features that are not there, and writes none."""
        check_records(links)
        self.upsert(with_features(self, links, self._names))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete images and their features; return how many images there were."""
        from qdrant_client.models import PointIdsList

        self._walk, deleted = None, 0
        for batch in _batches(sorted({point_id(name) for name in ids})):
            there = [point.id for point in self._call("retrieve", self._name, batch, with_payload=False)]
            if there:
                self._call("delete", self._name, PointIdsList(points=there), wait=True)
            deleted += len(there)
        return deleted

    # Search

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
        """Find the images with the largest inner product with `vector` (see GalleryStore.search).

        What Qdrant finds is scored again here. Where its index finds too few, all that fit are searched.
        """
        condition, notes = evaluate(where, EVERYTHING, self._column, having)
        if without:
            condition &= ~one_of("sha256", [each.hex() for each in without])
        if group_by is not None:
            name = known_column(group_by, self.columns(), self.url)
            pages = self._pages(self._name, condition, ["id", "metadata"], with_vectors=True)
            images = best_of_groups_in_pages(([_with_value(each, name) for each in page] for page in pages), vector)
            return rescored(images, vector, k, len(images), notes)
        total = self._count(self._name, condition)
        limit = min(k + SPARE, total) if k else 0
        if not limit:
            return rescored([], vector, 0, total, notes)
        images = self._nearest(condition, vector, limit, exact or total <= FEW)
        if len(images) < limit:
            images = self._nearest(condition, vector, limit, exact=True)
        return rescored(images, vector, k, total, notes)

    def _nearest(self, condition: Condition, query: Floats, limit: int, exact: bool) -> list[tuple[str, Floats]]:
        from qdrant_client.models import SearchParams

        found = self._call(
            "query_points",
            self._name,
            query=query.tolist(),
            query_filter=condition.filter,
            limit=limit,
            with_payload=["id"],
            with_vectors=True,
            search_params=SearchParams(exact=exact, hnsw_ef=max(200, 2 * limit)),
        )
        return [(point.payload["id"], point.vector) for point in found.points]

    def _column(self, name: str) -> StoredColumn:
        name = known_column(name, self.columns(), self.url)
        values = one_of("column", [stored_columns.term(name)])
        known = self._columns.get(name)
        if known is None or len(known.values) != self._count(self._values, values) + 1:  # values are only ever added
            texts = self._texts(stored_columns.term(name))
            known = StoredColumn(name, texts, lambda own, chosen: self._count(self._name, having(own, chosen)))
            self._columns[name] = known
        return known


def _batches(items: Sequence[T]) -> Iterator[list[T]]:
    return (list(items[at : at + _BATCH]) for at in range(0, len(items), _BATCH))


def _with_value(point: Any, column: str) -> tuple[str, Floats, str | None]:
    return point.payload["id"], point.vector, point.payload["metadata"].get(column)


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:300])
