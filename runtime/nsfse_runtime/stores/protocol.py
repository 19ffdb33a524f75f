"""GalleryStore: what a gallery does wherever it is kept, in ids of images and not in rows (docs/stores.md)."""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

from nsfse_runtime.errors import InputError, NotFoundError, UsageError, VersionError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.filters import Where
from nsfse_runtime.image_names import leads_out
from nsfse_runtime.types import Floats

REGION_FORMAT = 2
"""The format of `Record.regions` (see nsfse_runtime.inference.region_codec)."""
Metadata = Mapping[str, str]
_TRIES = 10
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,50}")


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a gallery.

    Attributes:
        id: Its name, unique in the gallery.
        sha256: The SHA-256 of its file, 32 bytes; images with the same bytes share their features.
        vector: Its stage-1 vector [d], float32.
        regions: Its regions [R, d], encoded in REGION_FORMAT; empty where they were not wanted.
        metadata: Its columns and values.
    """

    id: str
    sha256: bytes
    vector: Floats
    regions: bytes
    metadata: Metadata = field(default_factory=dict)


class Link(NamedTuple):
    """A name for an image whose features the store has: `id`, the `sha256` of its file, its `metadata`."""

    id: str
    sha256: bytes
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        ids: Ids, best first; scores that tie (search.two_stage.TIE) come in the order of ids.
        scores: Their inner products with the query, float32, as search.two_stage.best_of returns them.
        total: How many images might have been found. A store may estimate a large number (see StoreInfo).
        notes: What a user should know of the filter (see gallery.filters).
    """

    ids: tuple[str, ...]
    scores: Floats
    total: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What is fixed when a store is made.

    Attributes:
        fingerprint: The model whose features it holds.
        dim: d, the length of a vector.
        regions: R, how many regions an image has.
        bundle: The folder of the model's bundle, "" where it is none.
        folder: The folder of the images, "" where there is none.
    """

    fingerprint: str
    dim: int
    regions: int
    bundle: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds, and what it promises.

    Attributes:
        url: Where it is, without a password.
        engine: What keeps it, with its version.
        facts: What is fixed since it was made.
        images: N, how many ids there are.
        distinct: How many of them differ in their bytes; None where the store does not count it.
        search: Whether stage 1 is exact, or may miss an image. Filters, deletions and scores are exact in any case.
        consistency: What a query sees: one committed state (snapshot), or states up to some time old (bounded).
        writers: Whether one process may write at a time, or many.
        total: Whether `Found.total` is counted, or estimated where it is large.
        batches: Whether a batch is written whole or not at all, or an interrupted one is there in part until it is
            written again.
        writable: Whether it may be written here: a replica may not.
    """

    url: str
    engine: str
    facts: StoreFacts
    images: int
    distinct: int | None
    search: Literal["exact", "approximate"]
    consistency: Literal["snapshot", "bounded"]
    writers: Literal["one", "many"]
    total: Literal["counted", "estimated"]
    batches: Literal["whole", "repeated"]
    writable: bool = True


class GalleryStore(Protocol):
    """A gallery, wherever it is kept. Threads may share it.

    Any method may raise InputError (the store cannot be reached), OutputError (it cannot be written) or IntegrityError
    (what it holds is damaged). Writing is idempotent: what was interrupted is repeated. What a method has written, the
    next call of any method of this object sees.
    """

    @property
    def url(self) -> str:
        """Return where it is, without a password, for messages."""

    def info(self) -> StoreInfo:
        """Return what the store holds and promises."""

    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns of metadata, sorted."""

    def known(self, sha256: Sequence[bytes]) -> set[bytes]:
        """Return those of `sha256` whose features the store has: they need no encoding."""

    def upsert(self, records: Sequence[Record]) -> None:
        """Write all of `records` or none (see StoreInfo.batches); one whose id is there takes its place."""

    def link(self, links: Sequence[Link]) -> None:
        """Write names for known features, all or none. Raises NotFoundError for features that are not there."""

    def delete(self, ids: Sequence[str]) -> int:
        """Delete images, and features that no image has any more; return how many images there were."""

    def reading(self) -> AbstractContextManager[None]:
        """See one committed state in what is read inside, where the store promises snapshots."""

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
        """Find the images with the largest inner product with `vector`.

        Args:
            vector: The query's vector [d].
            k: How many to find; fewer are found only where fewer fit.
            where: A filter on metadata (docs/queries.md §9).
            without: SHA-256 of files that must not be found.
            group_by: A column, of each value of which only the best image is found.
            exact: Whether the search must miss no image.

        Raises:
            UsageError: `where` is no filter, or a column is unknown.
        """

    def fetch(self, ids: Sequence[str], regions: bool = True) -> list[Record]:
        """Return images in the order of `ids`. Raises NotFoundError where one is not there."""

    def ids(self, prefix: str = "", after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` ids, sorted, that begin with `prefix` and come after `after`."""

    def shards(self) -> dict[str, str]:
        """Return what `put_shard` has noted, by name."""

    def put_shard(self, name: str, facts: str) -> None:
        """Note `facts` of a shard that was indexed whole, in the place of earlier ones."""

    def build_index(self) -> None:
        """Make the index of stage 1 where the store has one that is not there yet: after much was written."""

    def close(self) -> None:
        """Close the connections; a later use opens them again."""


def all_ids(store: GalleryStore, prefix: str = "") -> Iterator[str]:
    """Yield all ids of a store that begin with `prefix`, sorted."""
    after = ""
    while ids := store.ids(prefix, after):
        yield from ids
        after = ids[-1]


def check_fingerprint(url: str, own: str, other: str) -> None:
    """Raise VersionError where a store at `url` with features of the model `own` is used with the model `other`."""
    if own != other:
        raise VersionError(
            f"{url} holds features of another bundle ({own[:12]}, not {other[:12]}); "
            "name its own bundle, or index into a new gallery"
        )


def check_records(records: Sequence[Record | Link]) -> None:
    """Raise InputError for an id or metadata that not every store can hold."""
    for record in records:
        texts = "".join((record.id, *record.metadata, *record.metadata.values()))
        try:
            texts.encode()
        except UnicodeEncodeError:
            raise InputError(printable(f"{record.id[:200]} or its metadata is not UTF-8; rename it")) from None
        if not record.id or leads_out(record.id) or "\0" in texts:
            raise InputError(printable(f"{record.id[:200]!r} cannot be an id: it is empty, leads out or holds a null"))


def check_length(url: str, record: Record, dim: int) -> None:
    """Raise UsageError where the vector of `record` is not of the length of the store's at `url`."""
    if len(record.vector) != dim:
        raise UsageError(f"{url} holds vectors of {dim} numbers, not of {len(record.vector)}; use its own model")


def check_name(name: str) -> None:
    """Raise UsageError where `name` cannot be the name of a gallery in a database."""
    if not _NAME.fullmatch(name) or name == "public" or name.startswith("pg_"):
        raise UsageError(f"{name!r} is no name of a gallery; use small letters, digits and _: gallery=shoes")


def features_crc(record: Record) -> int:
    """Return the CRC-32 of the hash and the regions of an image."""
    return zlib.crc32(record.regions, zlib.crc32(record.sha256))


def in_order(url: str, ids: Sequence[str], records: Mapping[str, Record]) -> list[Record]:
    """Return `records` in the order of `ids`. Raises NotFoundError where the store at `url` has not all of them."""
    if missing := next((name for name in ids if name not in records), None):
        raise NotFoundError(printable(f"{url} has no image {missing[:200]}"))
    return [records[name] for name in ids]


def with_features(
    store: GalleryStore, links: Sequence[Link], names: Callable[[Sequence[bytes]], Mapping[bytes, str]]
) -> list[Record]:
    """Return the images of `links` with the features of images of `store`, which others may write meanwhile.

    Args:
        store: A store that keeps features with each image.
        links: Names for known features.
        names: Returns the id of an image by the SHA-256 of its file, for those of a list that the store has.

    Raises:
        NotFoundError: No image has the features.
    """
    wanted = list({link.sha256 for link in links})
    for _ in range(_TRIES):
        found = names(wanted)
        if missing := next((sha256 for sha256 in wanted if sha256 not in found), None):
            raise NotFoundError(f"{store.url} has no features of the file with the SHA-256 {missing.hex()}")
        with suppress(NotFoundError):  # deleted since
            known = {record.sha256: record for record in store.fetch(list(found.values()))}
            if known.keys() >= set(wanted):
                return [replace(known[link.sha256], id=link.id, metadata=link.metadata) for link in links]
    raise InputError(f"{store.url} was changed while it was read; try again")
