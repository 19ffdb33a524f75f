"""An index for galleries too large to read whole at each query: what may be near, 32 bytes an image (faiss, PQ64x4fs).

It lies beside the gallery as a cache and is never the truth. Its candidates are scored by the gallery's own vectors,
and rows that it does not know are searched exactly, so that a stale or a wrong index can miss images but never shows
one that is gone, twice, or with another score. How much it misses is measured when it is built.
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
from nsfse_runtime.search.two_stage import exact_search
from nsfse_runtime.types import Floats, Rows, VectorSet

Marks = NDArray[np.uint64]
LEAST = 1000
"""Fewer images than these are too few to learn codes from, and are searched exactly."""
_VERSION = 1
_PARTS, _CENTRES = 64, 16
_TRAINED_ON = 20_000
_BLOCK = 65_536
# Recall is measured over so many images for so many queries; an index is used where it is at least ENOUGH.
ASKED, _QUERIES, ENOUGH = 100, 32, 0.99
_DEPTHS = (400, 1000, 2000, 4000)
# Rows that came after the index are read whole at each query; more than this share, and it is built again.
_MOST_NEW = 0.01


class Facts(msgspec.Struct, frozen=True):
    """What an index says of itself: `recall` among ASKED images when its first `depth` are scored."""

    version: int
    fingerprint: str
    entries: Annotated[int, msgspec.Meta(ge=1)]
    dim: Annotated[int, msgspec.Meta(ge=1)]
    depth: Annotated[int, msgspec.Meta(ge=1)]
    recall: float


class Index:
    """Codes [M, parts/2] of the vectors `marks` [M], with the `centres` that they are made of."""

    def __init__(self, facts: Facts, marks: Marks, centres: Floats, codes: NDArray[np.uint8]) -> None:
        """Raises MissingExtraError (faiss)."""
        self.facts, self.marks, self._centres, self._codes = facts, marks, centres, codes
        faiss = _faiss()
        self._plain = _plain_index(facts.dim)
        faiss.copy_array_to_vector(centres.ravel(), self._plain.pq.centroids)
        self._plain.is_trained = True
        self._plain.add_sa_codes(codes)
        self._fast = faiss.IndexPQFastScan(self._plain)

    def summary(self) -> dict[str, float]:
        """Return what a report tells: entries, the depth that is looked at, and the recall that it has."""
        return {"entries": self.facts.entries, "depth": self.facts.depth, "recall": self.facts.recall}

    def nearest(self, query: Floats, depth: int) -> NDArray[np.int64]:
        """Return about the `depth` entries nearest to `query` [d], best first."""
        found: NDArray[np.int64] = self._fast.search(query[None], min(depth, len(self.marks)))[1][0]
        return found[found >= 0]

    def save(self, path: Path) -> None:
        """Replace the file at `path` whole. Raises OutputError."""
        arrays = (self.marks.astype("<u8"), self._centres.astype("<f4"), self._codes)
        body = msgspec.json.encode(self.facts) + b"\n" + b"".join(array.tobytes() for array in arrays)
        try:
            with replacing(path, sole_writer=True) as part:  # not durable: what is torn is built again
                part.write_bytes(hashlib.sha256(body).digest() + body)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}; check the disk and the rights") from error

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "Index | None":
        """Read the file at `path`; None where it is absent, damaged, or of another version or bundle.

        It holds numbers only, of sizes that are checked: nothing in it reaches faiss's own file reader.
        """
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body = data[32:]
        if hashlib.sha256(body).digest() != data[:32]:
            return None
        head, _, rest = body.partition(b"\n")
        try:
            facts = msgspec.json.decode(head, type=Facts)
        except msgspec.MsgspecError:  # whole, but of another version
            return None
        if (facts.version, facts.fingerprint) != (_VERSION, fingerprint):
            return None
        sizes = (8 * facts.entries, 4 * _CENTRES * facts.dim, facts.entries * ((_parts(facts.dim) + 1) // 2))
        if len(rest) != sum(sizes):
            return None
        marks, centres, codes = (rest[sum(sizes[:at]) : sum(sizes[: at + 1])] for at in range(3))
        return cls(
            facts,
            np.frombuffer(marks, "<u8").astype(np.uint64),
            np.frombuffer(centres, "<f4").astype(np.float32),
            np.frombuffer(codes, np.uint8).reshape(facts.entries, -1),
        )


def build(vectors: Floats, marks: Marks, fingerprint: str) -> Index:
    """Index the `vectors` [N, d] that `marks` [N] names, each once. Raises MissingExtraError (faiss)."""
    marks, first = np.unique(marks, return_index=True)
    dim = vectors.shape[1]
    random = np.random.default_rng(0)
    plain = _plain_index(dim)
    plain.train(vectors[np.sort(random.choice(first, min(_TRAINED_ON, len(first)), replace=False))])
    blocks = range(0, len(first), _BLOCK)
    codes = np.concatenate([plain.sa_encode(vectors[first[at : at + _BLOCK]]) for at in blocks])
    centres = _faiss().vector_to_array(plain.pq.centroids)
    facts = Facts(_VERSION, fingerprint, len(marks), dim, _DEPTHS[-1], 0.0)
    index = Index(facts, marks, centres, codes)
    depth, recall = _measured(index, vectors, first, random)
    index.facts = msgspec.structs.replace(facts, depth=depth, recall=recall)
    return index


def _measured(index: Index, vectors: Floats, first: Rows, random: np.random.Generator) -> tuple[int, float]:
    """Return the smallest depth of ENOUGH recall, or the largest there is, and its recall.

    The queries are blends of two images each, as a composed query lies between a reference and what is wanted.
    """
    one, two = (vectors[random.choice(first, _QUERIES)] for _ in range(2))
    queries = one + 0.5 * two
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    asked = min(ASKED, len(first))
    scores = np.concatenate([queries @ vectors[first[at : at + _BLOCK]].T for at in range(0, len(first), _BLOCK)], 1)
    found = []
    for query, row in zip(queries, scores, strict=True):
        wanted = np.argpartition(row, len(row) - asked)[len(row) - asked :]
        found.append(np.isin(index.nearest(query, _DEPTHS[-1]), wanted))
    recalls = [float(np.mean([each[:depth].sum() for each in found])) / asked for depth in _DEPTHS]
    # Half of what may be missed is kept for queries that are not like these.
    good = [at for at, recall in enumerate(recalls) if recall >= (1 + ENOUGH) / 2]
    at = good[0] if good else len(_DEPTHS) - 1
    return _DEPTHS[at], round(recalls[at], 4)


class Candidates:
    """An index against one generation of the gallery: entries → its rows, and the rows that came later."""

    def __init__(self, index: Index, snapshot: VectorSet) -> None:
        self.index = index
        place = np.minimum(np.searchsorted(index.marks, snapshot.vector_keys), len(index.marks) - 1)
        known = index.marks[place] == snapshot.vector_keys
        rows = np.flatnonzero(known)
        self._rows = rows[np.argsort(place[rows], kind="stable")]
        self._starts = np.searchsorted(place[self._rows], np.arange(len(index.marks) + 1))
        self._new = np.flatnonzero(~known)
        self.images = len(snapshot)
        self._new_vectors = snapshot.vectors[self._new]
        self.stale = len(self._new) > _MOST_NEW * len(snapshot) or len(rows) < len(index.marks) / 2

    def depth(self, k: int) -> int:
        """Return how many candidates hold the best `k` in as many cases as was measured."""
        return int(self.index.facts.depth * max(1, k / ASKED))

    def rows(self, query: Floats, depth: int) -> Rows:
        """Return the rows, ascending, of the `depth` entries nearest to `query` [d], and the best that came later."""
        entries = self.index.nearest(query, depth)
        counts = self._starts[entries + 1] - self._starts[entries]
        begins = np.repeat(self._starts[entries] - np.cumsum(counts) + counts, counts)
        found = self._rows[begins + np.arange(counts.sum())]
        return np.sort(np.concatenate([found, self._newest(query, depth)]))

    def _newest(self, query: Floats, depth: int) -> Rows:
        if len(self._new) <= depth:
            return self._new
        return self._new[exact_search(self._new_vectors, query, depth)[0]]


def present() -> bool:
    """Tell whether the extra `ann` is installed."""
    return find_spec("faiss") is not None


def file_of(gallery: Path) -> Path:
    """Return where the index of the gallery at this path lies."""
    return Path(f"{gallery}.ann")


def _parts(dim: int) -> int:
    """Return into how many equal parts a vector is cut, each of which becomes 4 bits."""
    return max(parts for parts in range(1, _PARTS + 1) if dim % parts == 0)


def _plain_index(dim: int) -> Any:
    faiss = _faiss()
    return faiss.IndexPQ(dim, _parts(dim), _CENTRES.bit_length() - 1, faiss.METRIC_INNER_PRODUCT)


def _faiss() -> Any:
    need("faiss", "ann")
    import faiss

    return faiss
