"""MilvusStore: a gallery in Milvus, for many writers and readers and very many images."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice, takewhile
from typing import Any

import numpy as np

from nsfse_runtime.errors import NotFoundError, NsfseError
from nsfse_runtime.extras import need
from nsfse_runtime.gallery.columns import known_column
from nsfse_runtime.gallery.filters import Where, evaluate
from nsfse_runtime.stores import milvus_tables as tables
from nsfse_runtime.stores import stored_columns
from nsfse_runtime.stores.addresses import parse
from nsfse_runtime.stores.groups import best_of_groups_in_pages
from nsfse_runtime.stores.milvus_connection import Freshness, MilvusConnection
from nsfse_runtime.stores.milvus_tables import EVERYTHING, Condition, having, literal, one_of, read_row, row_of
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
from nsfse_runtime.stores.rescoring import SPARE, rescored
from nsfse_runtime.stores.stored_columns import StoredColumn
from nsfse_runtime.types import Floats

FEW = 1000
"""So many images that fit are searched exactly, here; beyond, Milvus's index searches."""
_BATCH = 500  # ids or images in one call
_PAGE = 4096  # images that one call reads
_MOST = 16_384  # that one search of Milvus finds
_MOST_EFFORT = 32_768
_FIELDS = ["id", "sha256", "vector", "metadata"]
_SHARDS = "shards"  # in the place of a column's term: what was noted of shards
_SLOW = 600.0  # seconds, for what loads or builds


class MilvusStore:
    """A gallery in two collections of Milvus (see milvus_tables). Threads share its connection.

    It promises no snapshot and no whole batches: a batch that was interrupted is there in part, and is written again.
    """

    def __init__(self, url: str, create: StoreFacts | None = None) -> None:
        """Open the gallery at `url` (see stores.addresses).

        Args:
            url: Where it is; a password is better kept in MILVUS_PASSWORD.
            create: Make the gallery where there is none, with these facts.

        Raises:
            NotFoundError: There is no such gallery, and `create` is None.
            VersionError: It is of a newer format or of another model than `create`, or no gallery of nsfse.
            InputError: The server cannot be reached.
            UsageError: The URL or the name is none, or the features are too long.
            MissingExtraError: pymilvus is not installed.
        """
        need("pymilvus", "milvus")
        address = parse(url, tables.PORT)
        self._name, self.url = address.name, address.shown
        self._values, self._written = tables.values_of(self._name), set[str]()
        self._connection, self._freshness = MilvusConnection(address), Freshness()
        self._call = self._connection.call
        self._columns: dict[str, StoredColumn] = {}
        if not self._exists():
            if create is None:
                raise NotFoundError(f"no gallery at {self.url}; make it with: nsfse gallery copy FILE URL")
            self._create(create)
        self._facts = tables.read_facts(self.url, self._call("describe_collection", self._name).get("description", ""))
        if create is not None:
            check_fingerprint(self.url, self._facts.fingerprint, create.fingerprint)
        for collection in (self._values, self._name):
            self._call("load_collection", collection, timeout=_SLOW)

    def _exists(self) -> bool:
        return bool(self._call("has_collection", self._name))

    def _create(self, facts: StoreFacts) -> None:
        for options in tables.schemas(self._name, facts):
            try:
                self._call("create_collection", **options, timeout=_SLOW)
            except NsfseError:  # another process may just have made it, for another model
                if not self._exists():
                    raise

    def shards(self) -> dict[str, str]:
        """Return what `put_shard` has noted, by name."""
        return dict(json.loads(text) for text in self._texts(_SHARDS))

    def put_shard(self, name: str, facts: str) -> None:
        """Note `facts` of a shard."""
        value = _value(stored_columns.term("\0shards", name), _SHARDS, json.dumps([name, facts]))
        with self._writing():
            self._upsert(self._values, [value])

    def build_index(self) -> None:
        """Let Milvus store all that was written. It builds its index of what is stored, by and by."""
        for collection in (self._values, self._name):
            self._call("flush", collection, timeout=_SLOW)

    def reading(self) -> AbstractContextManager[None]:
        """Promise nothing: what is read inside may change."""
        return nullcontext()

    def close(self) -> None:
        """Close the connection; a later use opens it again."""
        self._connection.close()

    # What is there

    def info(self) -> StoreInfo:
        """Return what the store holds and promises."""
        return StoreInfo(
            url=self.url,
            engine=f"Milvus {self._call('get_server_version')}",
            facts=self._facts,
            images=self._count(EVERYTHING),
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
        """Return up to `limit` ids, sorted, that begin with `prefix` and come after `after`."""
        start = f"id > {literal(after)}" if after >= prefix else f"id >= {literal(prefix)}"
        rows = chain.from_iterable(self._pages(self._name, "id", Condition(start), ["id"], limit))
        return list(islice(takewhile(lambda name: name.startswith(prefix), (row["id"] for row in rows)), limit))

    def fetch(self, ids: Sequence[str], regions: bool = True) -> list[Record]:
        """Return images in the order of `ids`. Raises NotFoundError, or IntegrityError for what has rotted."""
        names, fields = list(dict.fromkeys(ids)), [*_FIELDS, *(["regions", "crc"] if regions else [])]
        records = {}
        for at in range(0, len(names), _BATCH):
            for row in self._query(self._name, one_of("id", names[at : at + _BATCH]), fields):
                records[row["id"]] = read_row(self.url, row)
        return in_order(self.url, ids, records)

    # Reading

    def _query(self, collection: str, condition: Condition, fields: Sequence[str], **options: Any) -> list[Any]:
        return list(
            self._call(
                "query",
                collection,
                filter=condition.text,
                output_fields=list(fields),
                consistency_level=self._freshness.level,
                **options,
            )
        )

    def _pages(
        self, collection: str, key: str, condition: Condition, fields: Sequence[str], limit: int | None = None
    ) -> Iterator[list[Any]]:
        """Yield all that fits in the order of its primary `key`, which is one of `fields`, some at a time."""
        size = _PAGE if limit is None else min(limit, _PAGE)
        where = condition
        # A page may be shorter than `size` and not the last: so says reduce_stop_for_best, which keeps the order.
        while page := self._query(collection, where, fields, limit=size, reduce_stop_for_best=True):
            yield page
            where = condition & Condition(f"{key} > {literal(page[-1][key])}")

    def _count(self, condition: Condition) -> int:
        return int(self._query(self._name, condition, ["count(*)"])[0]["count(*)"])

    def _names(self, sha256: Sequence[bytes]) -> dict[bytes, str]:
        """Return the id of an image by the SHA-256 of its file, for those of `sha256` that are there."""
        hashes, names = sorted({each.hex() for each in sha256}), {}
        for at in range(0, len(hashes), _BATCH):
            condition = one_of("sha256", hashes[at : at + _BATCH])
            for row in self._query(self._name, condition, ["id", "sha256"]):  # all at once: a page more would wait
                names[bytes.fromhex(row["sha256"])] = str(row["id"])
        return names

    def _texts(self, column: str) -> list[str]:
        pages = self._pages(self._values, "term", one_of("column", [column]), ["term", "text"])
        return sorted(row["text"] for row in chain.from_iterable(pages))

    # Writing

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._freshness.renew()

    def upsert(self, records: Sequence[Record]) -> None:
        """Write `records`; one whose id is there takes its place."""
        check_records(records)
        for record in records:
            check_length(self.url, record, self._facts.dim)
        rows = {record.id: row_of(record) for record in records}
        with self._writing():
            self._write_values([record.metadata for record in records])
            self._upsert(self._name, list(rows.values()))

    def _write_values(self, metadata: Sequence[Mapping[str, str]]) -> None:
        """Say what terms mean before an image has them. Meanings are only ever added."""
        new = {each: means for each, means in stored_columns.dictionary(metadata).items() if each not in self._written}
        self._upsert(self._values, [_value(each, column, text) for each, (column, text) in new.items()])
        self._written.update(new)

    def _upsert(self, collection: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for at in range(0, len(rows), _BATCH):
            self._call("upsert", collection, rows[at : at + _BATCH])

    def link(self, links: Sequence[Link]) -> None:
        """Write names for known features. Raises NotFoundError for features that are not there, and writes none."""
        check_records(links)
        self.upsert(with_features(self, links, self._names))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete images and their features; return how many images there were."""
        names, deleted = sorted(set(ids)), 0
        with self._writing():
            for at in range(0, len(names), _BATCH):
                condition = one_of("id", names[at : at + _BATCH])
                if there := len(self._query(self._name, condition, ["id"])):
                    self._call("delete", self._name, filter=condition.text)
                    deleted += there
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

        What Milvus finds is scored again here. Where it finds too few, all that fit are read.
        """
        condition, notes = evaluate(where, EVERYTHING, self._column, having)
        if without:
            condition &= ~one_of("sha256", [each.hex() for each in without])
        if group_by is not None:
            name = known_column(group_by, self.columns(), self.url)
            pages = self._pages(self._name, "id", condition, ["id", "vector", "metadata"])
            images = best_of_groups_in_pages(
                ([(row["id"], row["vector"], json.loads(row["metadata"]).get(name)) for row in page] for page in pages),
                vector,
            )
            return rescored(images, vector, k, len(images), notes)
        total = self._count(condition)
        limit = min(k + SPARE, total) if k else 0
        near = [] if exact or total <= FEW or limit > _MOST else self._nearest(condition, vector, limit)
        images = near if len(near) >= limit else self._best(condition, vector, limit)
        return rescored(images, vector, k, total, notes)

    def _nearest(self, condition: Condition, query: Floats, limit: int) -> list[tuple[str, Floats]]:
        """Return what Milvus's index finds; behind a filter it must look at more to find as much."""
        effort = (8 if condition.text else 4) * limit
        (found,) = self._call(
            "search",
            self._name,
            [query.tolist()],
            filter=condition.text,
            limit=limit,
            output_fields=["id", "vector"],
            search_params={"metric_type": "IP", "params": {"ef": min(max(200, effort), _MOST_EFFORT)}},
            consistency_level=self._freshness.level,
        )
        return [(hit["entity"]["id"], np.array(hit["entity"]["vector"], np.float32)) for hit in found]

    def _best(self, condition: Condition, query: Floats, limit: int) -> list[tuple[str, Floats]]:
        """Return the `limit` best of all that fit, each of which is read."""
        best: dict[str, Floats] = {}
        for page in self._pages(self._name, "id", condition, ["id", "vector"]):
            best |= {row["id"]: np.array(row["vector"], np.float32) for row in page}
            best = {name: best[name] for name in rescored(list(best.items()), query, limit, 0).ids}
        return list(best.items())

    def _column(self, name: str) -> StoredColumn:
        name = known_column(name, self.columns(), self.url)
        values = one_of("column", [stored_columns.term(name)])
        count = self._query(self._values, values, ["count(*)"])[0]["count(*)"]
        known = self._columns.get(name)
        if known is None or len(known.values) != count + 1:  # values are only ever added
            texts = self._texts(stored_columns.term(name))
            known = StoredColumn(name, texts, lambda own, chosen: self._count(having(own, chosen)))
            self._columns[name] = known
        return known


def _value(term: str, column: str, text: str) -> dict[str, Any]:
    return {"term": term, "column": column, "text": text, "nothing": [0.0, 0.0]}
