"""An index for galleries too large to read whole at each query: 32 bytes an image (faiss, PQ64x4fs).

It is a cache beside the gallery. Its candidates are scored by the gallery's own vectors, and rows
that it does not have are searched exactly. A stale or wrong index can miss images, but never
returns one that is gone, twice, or with another score. Its recall is measured when it is built.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.atomic_write import replacing
from nsfse_runtime.errors import OutputError
from nsfse_runtime.extras import need
from nsfse_runtime.regular_files import read_regular
from nsfse_runtime.search.two_stage import exact_search
from nsfse_runtime.types import Floats, Rows, VectorSet

VectorKeys = NDArray[np.uint64]
MIN_VECTORS = 1000
"""Smaller galleries are searched exactly: they have too few images to learn codes from."""
_VERSION = 1
_PARTS, _CENTROIDS = 64, 16
_MAX_TRAINING_VECTORS = 20_000
_BLOCK = 65_536
# Recall among the best RECALL_AT images is measured for _QUERIES queries; an index needs
# MIN_RECALL.
RECALL_AT, _QUERIES, MIN_RECALL = 100, 32, 0.99
_DEPTHS = (400, 1000, 2000, 4000)
# Rows that came after the index are searched exactly; with more than this share of them it is built
# again.
_MAX_NEW_SHARE = 0.01


class IndexHeader(msgspec.Struct, frozen=True):
    """The first line of an index file: `recall` among RECALL_AT images when its first `depth` are scored."""

    version: int
    fingerprint: str
    entries: Annotated[int, msgspec.Meta(ge=1)]
    dim: Annotated[int, msgspec.Meta(ge=1)]
    depth: Annotated[int, msgspec.Meta(ge=1)]
    recall: float


class Index:
    """Codes [M, parts/2] of the vectors `keys` [M], with the `centroids` of each part."""

    def __init__(self, header: IndexHeader, keys: VectorKeys, centroids: Floats, codes: NDArray[np.uint8]) -> None:
        """Raises MissingExtraError (faiss)."""
        self.header, self.keys, self._centroids, self._codes = header, keys, centroids, codes
        faiss = _faiss()
        self._plain = _plain_index(header.dim)
        faiss.copy_array_to_vector(centroids.ravel(), self._plain.pq.centroids)
        self._plain.is_trained = True
        self._plain.add_sa_codes(codes)
        self._fast = faiss.IndexPQFastScan(self._plain)

    def summary(self) -> dict[str, float]:
        """Return its entries, how many candidates are scored, and its recall."""
        return {"entries": self.header.entries, "depth": self.header.depth, "recall": self.header.recall}

    def nearest(self, query: Floats, depth: int) -> NDArray[np.int64]:
        """Return about the `depth` entries nearest to `query` [d], best first."""
        entries: NDArray[np.int64] = self._fast.search(query[None], min(depth, len(self.keys)))[1][0]
        return entries[entries >= 0]

    def save(self, path: Path) -> None:
        """Replace the file at `path` whole. Raises OutputError."""
        arrays = (self.keys.astype("<u8"), self._centroids.astype("<f4"), self._codes)
        body = msgspec.json.encode(self.header) + b"\n" + b"".join(array.tobytes() for array in arrays)
        try:
            with replacing(path, sole_writer=True) as part:  # not durable: what is torn is built again
                part.write_bytes(hashlib.sha256(body).digest() + body)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}; check the disk and the rights") from error

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "Index | None":
        """Read the file at `path`; None where it is absent, damaged, or of another version or bundle.

        It holds numbers only, of sizes that are checked: nothing in it reaches faiss's own file
        reader.
        """
        try:
            data = read_regular(path)
        except OSError:
            return None
        body = data[32:]
        if hashlib.sha256(body).digest() != data[:32]:
            return None
        head, _, rest = body.partition(b"\n")
        try:
            header = msgspec.json.decode(head, type=IndexHeader)
        except msgspec.MsgspecError:  # whole, but of another version
            return None
        if (header.version, header.fingerprint) != (_VERSION, fingerprint):
            return None
        sizes = (8 * header.entries, 4 * _CENTROIDS * header.dim, header.entries * ((_parts(header.dim) + 1) // 2))
        if len(rest) != sum(sizes):
            return None
        keys, centroids, codes = (rest[sum(sizes[:part]) : sum(sizes[: part + 1])] for part in range(3))
        return cls(
            header,
            np.frombuffer(keys, "<u8").astype(np.uint64),
            np.frombuffer(centroids, "<f4").astype(np.float32),
            np.frombuffer(codes, np.uint8).reshape(header.entries, -1),
        )


def build(vectors: Floats, keys: VectorKeys, fingerprint: str) -> Index:
    """Index the `vectors` [N, d] that `keys` [N] names, each once. Raises MissingExtraError (faiss)."""
    keys, first = np.unique(keys, return_index=True)
    dim = vectors.shape[1]
    random = np.random.default_rng(0)
    plain = _plain_index(dim)
    plain.train(vectors[np.sort(random.choice(first, min(_MAX_TRAINING_VECTORS, len(first)), replace=False))])
    blocks = range(0, len(first), _BLOCK)
    codes = np.concatenate([plain.sa_encode(vectors[first[start : start + _BLOCK]]) for start in blocks])
    centroids = _faiss().vector_to_array(plain.pq.centroids)
    header = IndexHeader(_VERSION, fingerprint, len(keys), dim, _DEPTHS[-1], 0.0)
    index = Index(header, keys, centroids, codes)
    depth, recall = _measure_recall(index, vectors, first, random)
    index.header = msgspec.structs.replace(header, depth=depth, recall=recall)
    return index


def _measure_recall(index: Index, vectors: Floats, first: Rows, random: np.random.Generator) -> tuple[int, float]:
    """Return the smallest depth of MIN_RECALL recall, or the largest there is, and its recall.

    The queries are blends of two images each, as a composed query is between a reference and a
    target.
    """
    references, targets = (vectors[random.choice(first, _QUERIES)] for _ in range(2))
    queries = references + 0.5 * targets
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    count = min(RECALL_AT, len(first))
    blocks = range(0, len(first), _BLOCK)
    scores = np.concatenate([queries @ vectors[first[start : start + _BLOCK]].T for start in blocks], 1)
    relevant = []
    for query, row in zip(queries, scores, strict=True):
        best = np.argpartition(row, len(row) - count)[len(row) - count :]
        relevant.append(np.isin(index.nearest(query, _DEPTHS[-1]), best))
    recalls = [float(np.mean([hits[:depth].sum() for hits in relevant])) / count for depth in _DEPTHS]
    # Queries unlike these may miss as much again.
    sufficient = [level for level, recall in enumerate(recalls) if recall >= (1 + MIN_RECALL) / 2]
    level = sufficient[0] if sufficient else len(_DEPTHS) - 1
    return _DEPTHS[level], round(recalls[level], 4)


class Candidates:
    """An index against one generation of the gallery: entries → its rows, and the rows that came later."""

    def __init__(self, index: Index, snapshot: VectorSet) -> None:
        self.index = index
        entry = np.minimum(np.searchsorted(index.keys, snapshot.vector_keys), len(index.keys) - 1)
        known = index.keys[entry] == snapshot.vector_keys
        rows = np.flatnonzero(known)
        self._rows = rows[np.argsort(entry[rows], kind="stable")]
        self._starts = np.searchsorted(entry[self._rows], np.arange(len(index.keys) + 1))
        self._new = np.flatnonzero(~known)
        self.images = len(snapshot)
        self._new_vectors = snapshot.vectors[self._new]
        self.stale = len(self._new) > _MAX_NEW_SHARE * len(snapshot) or len(rows) < len(index.keys) / 2

    def depth(self, k: int) -> int:
        """Return how many candidates to score for the best `k`, by the measured recall."""
        return int(self.index.header.depth * max(1, k / RECALL_AT))

    def rows(self, query: Floats, depth: int) -> Rows:
        """Return the rows, ascending, of the `depth` entries nearest to `query` [d], and the best that came later."""
        entries = self.index.nearest(query, depth)
        counts = self._starts[entries + 1] - self._starts[entries]
        begins = np.repeat(self._starts[entries] - np.cumsum(counts) + counts, counts)
        known = self._rows[begins + np.arange(counts.sum())]
        return np.sort(np.concatenate([known, self._newest(query, depth)]))

    def _newest(self, query: Floats, depth: int) -> Rows:
        if len(self._new) <= depth:
            return self._new
        return self._new[exact_search(self._new_vectors, query, depth)[0]]


def is_installed() -> bool:
    """Tell whether the extra `ann` is installed."""
    return find_spec("faiss") is not None


def index_path(gallery: Path) -> Path:
    """Return the path of the index of the gallery at this path."""
    return Path(f"{gallery}.ann")


def _parts(dim: int) -> int:
    """Return into how many equal parts a vector is cut, each of which becomes 4 bits."""
    return max(parts for parts in range(1, _PARTS + 1) if dim % parts == 0)


def _plain_index(dim: int) -> Any:
    faiss = _faiss()
    return faiss.IndexPQ(dim, _parts(dim), _CENTROIDS.bit_length() - 1, faiss.METRIC_INNER_PRODUCT)


def _faiss() -> Any:
    need("faiss", "ann")
    import faiss

    return faiss
