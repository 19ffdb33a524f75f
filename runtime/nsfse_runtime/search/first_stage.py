"""How stage 1 looks through one gallery: plainly, by int8 codes, or by an index. Only the last can miss an image."""

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

Search = Literal["auto", "exact", "ann"]
"""By an index above EXACT_UP_TO images where faiss is there, else exactly; always exactly; always by an index."""
EXACT_UP_TO = 200_000
# Below so many images the plain product takes a millisecond or two.
_CODES_FROM = 10_000
# What a filter leaves is searched exactly up to so many rows, which are copied first.
_FEW = 20_000
# Asked for more candidates than this, an index is no faster than reading all codes.
_DEEPEST = 20_000


class Stage1:
    """Searches the gallery at `path`, generation after generation; threads may share it."""

    def __init__(self, path: Path, fingerprint: str, search: Search = "auto") -> None:
        """`fingerprint` is the bundle's. Raises MissingExtraError: an index is asked for, and there is no faiss."""
        if search == "ann":
            need("faiss", "ann")
        self._path, self._fingerprint, self._search = ann.file_of(path), fingerprint, search
        self._index: ann.Index | None = None
        self._generation, self._asked = -1, 0
        self._codes: Int8Index | None = None
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
        coded, candidates = self._prepared(snapshot)
        rows = _by_index(candidates, query, k, mask, allowed / len(vectors)) if candidates else None
        if rows is not None:
            return best_of(vectors, query, rows, k)
        return coded.search(query, k, mask) if coded else exact_search(vectors, query, k, mask)

    def prepare_index(self, snapshot: VectorSet) -> ann.Index | None:
        """Load, or build and save, the index for `snapshot` if this gallery is searched by one."""
        if self._search == "exact" or len(snapshot) < ann.LEAST:
            return None
        if self._search == "auto" and (len(snapshot) <= EXACT_UP_TO or not ann.present()):
            return None
        if self._index is None:
            self._index = ann.Index.load(self._path, self._fingerprint)
        dim = snapshot.vectors.shape[1]
        if self._index is None or self._index.facts.dim != dim or ann.Candidates(self._index, snapshot).stale:
            self._index = ann.build(snapshot.vectors, snapshot.vector_keys, self._fingerprint)
            # Where nothing may be written, each process builds its own.
            with suppress(OutputError):
                self._index.save(self._path)
        return self._index

    def _prepared(self, snapshot: VectorSet) -> tuple[Int8Index | None, ann.Candidates | None]:
        """Return what this generation is searched with."""
        with self._preparing:
            if self._generation != snapshot.generation:
                self._generation, self._asked, self._codes = snapshot.generation, 0, None
                index = self.prepare_index(snapshot)
                used = index is not None and (self._search == "ann" or index.facts.recall >= ann.ENOUGH)
                self._candidates = ann.Candidates(index, snapshot) if index and used else None
            self._asked += 1
            # The first query of a process is often its last: it does not wait for codes.
            if self._codes is None and self._asked > 1 and self._coded(snapshot):
                self._codes = Int8Index(snapshot.vectors)
            return self._codes, self._candidates

    def _coded(self, snapshot: VectorSet) -> bool:
        if self._candidates is not None or len(snapshot) < _CODES_FROM or snapshot.vectors.size > int8.MOST_BYTES:
            return False
        return find_spec("onnxruntime") is not None


def _by_index(candidates: ann.Candidates, query: Floats, k: int, mask: Mask | None, share: float) -> Rows | None:
    """Return candidates that `mask` allows, or None where reading everything is better."""
    depth = candidates.depth(k)
    if depth / share > _DEEPEST:
        return None
    rows = candidates.rows(query, int(depth / share))
    if mask is not None:
        rows = rows[mask[rows]]
    # What the filter leaves may lie far from the query: then the index has seen too little of it.
    return rows if len(rows) >= min(depth, share * candidates.images) / 2 else None
