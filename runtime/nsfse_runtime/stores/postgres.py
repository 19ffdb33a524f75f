"""PostgresStore: a gallery in PostgreSQL with pgvector 0.8 or newer, for many writers and readers."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np

from nsfse_runtime.errors import IntegrityError, NotFoundError, VersionError
from nsfse_runtime.escaping import printable
from nsfse_runtime.extras import need
from nsfse_runtime.gallery.columns import known_column
from nsfse_runtime.gallery.filters import Where, evaluate
from nsfse_runtime.stores import postgres_tables as sql
from nsfse_runtime.stores.postgres_connections import PostgresConnections
from nsfse_runtime.stores.postgres_filter import EVERYTHING, Condition, having
from nsfse_runtime.stores.protocol import (
    Found,
    Link,
    Record,
    StoreFacts,
    StoreInfo,
    check_fingerprint,
    check_length,
    check_name,
    check_records,
    features_crc,
    in_order,
)
from nsfse_runtime.stores.rescoring import SPARE, rescored
from nsfse_runtime.stores.stored_columns import StoredColumn
from nsfse_runtime.types import Floats

FEW = 10_000
"""So many images are searched exactly, and counted; beyond, the index searches and the planner estimates."""


class PostgresStore:
    """A gallery in a schema of its own in a PostgreSQL database. Each thread has a connection of its own.

    Writers take turns, so that none ever meets a deadlock or an error of another. A batch is one transaction.
    """

    def __init__(self, url: str, create: StoreFacts | None = None) -> None:
        """Open the gallery at `url`: postgresql://USER@HOST/DATABASE?gallery=NAME, and what libpq takes else.

        Args:
            url: Where it is; a password is better kept in PGPASSFILE.
            create: Make the gallery where there is none, with these facts.

        Raises:
            NotFoundError: There is no such gallery, and `create` is None.
            VersionError: pgvector is too old, or the gallery is of a newer format or of another model than `create`.
            InputError: The server cannot be reached.
            UsageError: The name is none.
            MissingExtraError: psycopg is not installed.
        """
        need("psycopg", "postgres")
        need("pgvector", "postgres")
        conninfo, self._name, self.url = _parse(url)
        self._connections = PostgresConnections(conninfo, self._name, self.url)
        self._run = self._connections.run
        self._columns: dict[str, StoredColumn] = {}
        if not self._exists():
            if create is None:
                raise NotFoundError(f"no gallery at {self.url}; make it with: nsfse index URL FOLDER -b BUNDLE")
            self._create(create)
        meta = dict(self._run(sql.META))
        if meta["format"] != sql.FORMAT:
            raise VersionError(f"{self.url} has format {meta['format']}, this nsfse reads {sql.FORMAT}; upgrade nsfse")
        self._facts = StoreFacts(
            meta["fingerprint"], int(meta["dim"]), int(meta["regions"]), meta["bundle"], meta["folder"]
        )
        if create is not None:
            check_fingerprint(self.url, self._facts.fingerprint, create.fingerprint)

    def _exists(self) -> bool:
        return bool(self._run(sql.EXISTS, (f"{self._name}.meta",))[0][0])

    def _create(self, facts: StoreFacts) -> None:
        with self._writing() as connection:
            if self._exists():  # another process has just made it
                return
            for statement in sql.CREATE:
                connection.execute(statement.format(schema=self._name, dim=facts.dim))
            values = {"format": sql.FORMAT, "fingerprint": facts.fingerprint, "dim": str(facts.dim)}
            values |= {"regions": str(facts.regions), "bundle": facts.bundle, "folder": facts.folder}
            connection.cursor().executemany(sql.PUT_META, list(values.items()))
        self.close()  # a new connection knows the type of vectors

    def shards(self) -> dict[str, str]:
        """Return what `put_shard` has noted, by name."""
        return dict(self._run(sql.SHARDS))

    def put_shard(self, name: str, facts: str) -> None:
        """Note `facts` of a shard."""
        with self._writing() as connection:
            connection.execute(sql.PUT_SHARD, (f"shard:{name}", facts))

    def build_index(self) -> None:
        """Make the index of vectors where it is not there; writers wait meanwhile."""
        with self._writing() as connection:
            connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
            connection.execute(sql.CREATE_INDEX.format(dim=self._facts.dim))
        self._run("ANALYZE images")

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """Commit what is written inside as one, or nothing of it, as the only writer of this gallery."""
        with self._connections.translated() as connection, connection.transaction():
            connection.execute(sql.LOCK, (f"nsfse {self._name}",))
            yield connection

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See one committed state in what this thread reads inside."""
        self._run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield
        finally:
            self._run("COMMIT")

    def close(self) -> None:
        """Close the connections of all threads; a later use opens them again."""
        self._connections.close()

    # What is there

    def info(self) -> StoreInfo:
        """Return what the store holds and promises."""
        images, distinct, is_replica, version = self._run(sql.INFO)[0]
        return StoreInfo(
            url=self.url,
            engine=f"{' '.join(version.split()[:2])}, pgvector {self._connections.version}",
            facts=self._facts,
            images=images,
            distinct=distinct,
            search="approximate",
            consistency="snapshot",
            writers="many",
            total="estimated",
            batches="whole",
            writable=not is_replica,
        )

    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns of metadata, sorted."""
        return tuple(row[0] for row in self._run(sql.COLUMNS))

    def known(self, sha256: Sequence[bytes]) -> set[bytes]:
        """Return those of `sha256` whose features the store has."""
        return {row[0] for row in self._run(sql.KNOWN, (list(sha256),))}

    def ids(self, prefix: str = "", after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` ids, sorted, that begin with `prefix` and come after `after`."""
        return [row[0] for row in self._run(sql.IDS, (after, prefix, limit))]

    def fetch(self, ids: Sequence[str], regions: bool = True) -> list[Record]:
        """Return images in the order of `ids`. Raises NotFoundError, or IntegrityError for what has rotted."""
        rows = self._run(sql.FETCH if regions else sql.FETCH_BARE, (list(ids),))
        records = {}
        for name, sha256, vector, metadata, data, crc in rows:
            records[name] = Record(name, sha256, vector.to_numpy(), data, metadata)
            if regions and features_crc(records[name]) != crc:
                raise IntegrityError(printable(f"{self.url}: the regions of {name} have changed by themselves"))
        return in_order(self.url, ids, records)

    # Writing

    def upsert(self, records: Sequence[Record]) -> None:
        """Write all of `records` or none; one whose id is there takes its place."""
        from psycopg.types.json import Jsonb

        check_records(records)
        for record in records:
            check_length(self.url, record, self._facts.dim)
        images = {record.id: record for record in records}
        contents = {record.sha256: record for record in images.values()}
        with self._writing() as connection, connection.cursor() as cursor:
            # No other writer is there, so what is deleted or not known here cannot be in the way of COPY.
            replaced = {row[0] for row in cursor.execute(sql.DELETE, (list(images),))}
            known = {row[0] for row in cursor.execute(sql.KNOWN, (list(contents),))}
            new = [(key, one.regions, features_crc(one)) for key, one in contents.items() if key not in known]
            _copy(cursor, sql.COPY_CONTENTS, ("bytea", "bytea", "int8"), new)
            rows = [(one.id, one.sha256, Jsonb(dict(one.metadata)), one.vector) for one in images.values()]
            _copy(cursor, sql.COPY_IMAGES, ("text", "bytea", "jsonb", "vector"), rows)
            self._put_values(cursor, (record.metadata for record in images.values()))
            cursor.execute(sql.DELETE_UNUSED, (list(replaced - contents.keys()),))

    def link(self, links: Sequence[Link]) -> None:
        """Write names for known features, all or none. Raises NotFoundError for features that are not there."""
        from psycopg.types.json import Jsonb

        check_records(links)
        with self._writing() as connection, connection.cursor() as cursor:
            contents = {link.sha256 for link in links}
            known = {row[0] for row in cursor.execute(sql.KNOWN, (list(contents),))}
            if missing := contents - known:
                raise NotFoundError(f"{self.url} has no features of the file with the SHA-256 {min(missing).hex()}")
            replaced = cursor.execute(sql.CONTENTS_OF, ([link.id for link in links],)).fetchall()
            cursor.executemany(sql.LINK_IMAGE, [(link.id, Jsonb(dict(link.metadata)), link.sha256) for link in links])
            self._put_values(cursor, (link.metadata for link in links))
            cursor.execute(sql.DELETE_UNUSED, (list({row[0] for row in replaced} - contents),))

    def _put_values(self, cursor: Any, metadata: Iterable[Mapping[str, str]]) -> None:
        pairs = {pair for values in metadata for pair in values.items()}
        if pairs:
            cursor.execute(sql.PUT_VALUES, ([name for name, _ in pairs], [value for _, value in pairs]))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete images, and features that no image has any more; return how many images there were."""
        with self._writing() as connection:
            contents = [row[0] for row in connection.execute(sql.DELETE, (list(ids),))]
            connection.execute(sql.DELETE_UNUSED, (list(set(contents)),))
            return len(contents)

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

        Filters that leave few images are searched exactly, through the index of metadata and not that of vectors.
        """
        condition, notes = evaluate(where, EVERYTHING, self._column, having)
        if without:
            condition &= Condition("sha256 <> ALL(%s)", (list(without),))
        if group_by is not None:
            name = known_column(group_by, self.columns(), self.url)
            parameters = (name, name, vector, *condition.parameters, k + SPARE)
            rows = self._run(sql.GROUPS.format(where=condition.sql), parameters)
            return rescored([(row[0], row[1].to_numpy()) for row in rows], vector, k, rows[0][2] if rows else 0, notes)
        total = self._total(condition, filtered=bool(where))
        limit = min(k + SPARE, total) if total <= FEW else k + SPARE
        if not k or not limit:
            return Found((), np.empty(0, np.float32), total, notes)
        rows = []
        if not exact and total > FEW:
            nearest = sql.NEAREST.format(where=condition.sql, dim=self._facts.dim)
            rows = self._run(nearest, (*condition.parameters, vector, limit))
        if len(rows) < limit:  # also where the index gave up before it found enough that fit
            rows = self._run(sql.EXACT.format(where=condition.sql), (*condition.parameters, vector, limit))
        return rescored([(row[0], row[1].to_numpy()) for row in rows], vector, k, total, notes)

    def _total(self, condition: Condition, filtered: bool = True) -> int:
        """Return how many images fit: counted up to FEW, and beyond as the planner estimates."""
        if not filtered and (estimate := self._estimate(condition)) > 2 * FEW:
            return estimate
        count = self._run(sql.COUNT.format(where=condition.sql), (*condition.parameters, FEW + 1))[0][0]
        return int(count) if count <= FEW else max(int(count), self._estimate(condition))

    def _estimate(self, condition: Condition) -> int:
        plan = self._run(sql.ESTIMATE.format(where=condition.sql), condition.parameters)[0][0]
        return int((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]["Plan Rows"])

    def _column(self, name: str) -> StoredColumn:
        name = known_column(name, self.columns(), self.url)
        count = self._run(sql.COUNT_VALUES, (name,))[0][0]
        known = self._columns.get(name)
        if known is None or len(known.values) != count + 1:  # values are only ever added
            rows = self._run(sql.VALUES, (name,))
            values = [row[0] for row in rows]
            known = StoredColumn(name, values, lambda own, chosen: self._total(having(own, chosen)))
            self._columns[name] = known
        return known


def _copy(cursor: Any, statement: str, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)


def _parse(url: str) -> tuple[str, str, str]:
    """Return what libpq takes, the gallery's name, and the URL without a password. Raises UsageError."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    name = options.pop("gallery", "gallery")
    check_name(name)
    options.setdefault("connect_timeout", "10")
    conninfo = urlunsplit(parts._replace(scheme="postgresql", query=urlencode(options)))
    user, at, host = parts.netloc.rpartition("@")
    shown = f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}?gallery={name}"
    return conninfo, name, shown
