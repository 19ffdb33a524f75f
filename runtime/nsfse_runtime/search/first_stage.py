"""Stage 1 over one gallery: by plain products, by int8 codes, or by an index. Only the last can miss an image."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np

from nsfse_runtime.errors import OutputError
from nsfse_runtime.extras import need
from nsfse_runtime.search import ann, int8
from nsfse_runtime.search.int8 import Int8Index
from nsfse_runtime.search.two_stage import best_of, exact_search
from nsfse_runtime.types import Floats, Mask, Rows, VectorSet

SearchMode = Literal["auto", "exact", "ann"]
"""`auto` is an index above EXACT_UP_TO images where faiss is installed, else exact."""
EXACT_UP_TO = 200_000
# With fewer images the plain product takes a millisecond or two.
_MIN_INT8_IMAGES = 10_000
# Where a filter leaves at most so many rows, these are copied and searched exactly.
_FEW = 20_000
# For more candidates than these an index is no faster than reading all codes.
_MAX_DEPTH = 20_000


class FirstStage:
    """Searches the gallery at `path`, generation after generation; threads may share it."""

    def __init__(self, path: Path, fingerprint: str, search: SearchMode = "auto") -> None:
        """`fingerprint` is the bundle's. Raises MissingExtraError where `search` is ann and faiss is not installed."""
        if search == "ann":
            need("faiss", "ann")
        self._path, self._fingerprint, self._mode = ann.index_path(path), fingerprint, search
        self._index: ann.Index | None = None
        self._generation, self._queries = -1, 0
        self._int8: Int8Index | None = None
        self._candidates: ann.Candidates | None = None
        self._preparing = Lock()

    def __call__(self, snapshot: VectorSet, query: Floats, k: int, mask: Mask | None = None) -> tuple[Rows, Floats]:
        """Find the best `k` rows for `query` [d] that `mask` [N] allows, with their scores, as exact_search does.

        An index may miss some of them; filters, deletions and scores are exact with it, too.
        """
        vectors = snapshot.vectors
        allowed = len(vectors) if mask is None else int(np.count_nonzero(mask))
        if allowed <= min(_FEW, len(vectors) // 4):
            return exact_search(vectors, query, k, mask)
        int8_index, candidates = self._prepared(snapshot)
        rows = _by_index(candidates, query, k, mask, allowed / len(vectors)) if candidates else None
        if rows is not None:
            return best_of(vectors, query, rows, k)
        return int8_index.search(query, k, mask) if int8_index else exact_search(vectors, query, k, mask)

    def prepare_index(self, snapshot: VectorSet) -> ann.Index | None:
        """Load, or build and save, the index for `snapshot` if this gallery is searched by one."""
        if self._mode == "exact" or len(snapshot) < ann.MIN_VECTORS:
            return None
        if self._mode == "auto" and (len(snapshot) <= EXACT_UP_TO or not ann.is_installed()):
            return None
        if self._index is None:
            self._index = ann.Index.load(self._path, self._fingerprint)
        dim = snapshot.vectors.shape[1]
        if self._index is None or self._index.header.dim != dim or ann.Candidates(self._index, snapshot).stale:
            self._index = ann.build(snapshot.vectors, snapshot.vector_keys, self._fingerprint)
            # Where nothing may be written, each process builds its own.
            with suppress(OutputError):
                self._index.save(self._path)
        return self._index

    def _prepared(self, snapshot: VectorSet) -> tuple[Int8Index | None, ann.Candidates | None]:
        """Return what this generation is searched with."""
        with self._preparing:
            if self._generation != snapshot.generation:
                self._generation, self._queries, self._int8 = snapshot.generation, 0, None
                index = self.prepare_index(snapshot)
                used = index is not None and (self._mode == "ann" or index.header.recall >= ann.MIN_RECALL)
                self._candidates = ann.Candidates(index, snapshot) if index and used else None
            self._queries += 1
            # The first query of a process is often its last: it does not wait for the codes.
            if self._int8 is None and self._queries > 1 and self._uses_int8(snapshot):
                self._int8 = Int8Index(snapshot.vectors)
            return self._int8, self._candidates

    def _uses_int8(self, snapshot: VectorSet) -> bool:
        if self._candidates is not None or len(snapshot) < _MIN_INT8_IMAGES or snapshot.vectors.size > int8.MAX_BYTES:
            return False
        return find_spec("onnxruntime") is not None


def _by_index(candidates: ann.Candidates, query: Floats, k: int, mask: Mask | None, share: float) -> Rows | None:
    """Return candidates that `mask` allows, or None where searching everything is better."""
    depth = candidates.depth(k)
    if depth / share > _MAX_DEPTH:
        return None
    rows = candidates.rows(query, int(depth / share))
    if mask is not None:
        rows = rows[mask[rows]]
    # What the filter leaves may be far from the query: then the index finds too little of it.
    return rows if len(rows) >= min(depth, share * candidates.images) / 2 else None
