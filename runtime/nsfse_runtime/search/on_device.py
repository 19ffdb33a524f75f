"""A gallery on the device: stage 1 and stage 2 stay there, the query goes in, scores and rows come out."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsfse_runtime.errors import UsageError
from nsfse_runtime.inference.onnx_graphs import search_graph
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.onnx_session import Session, to_device
from nsfse_runtime.inference.region_codec import pack
from nsfse_runtime.search.two_stage import best_first, slack, taken
from nsfse_runtime.types import (
    Floats,
    Mask,
    PairScores,
    QueryFeatures,
    RankingMode,
    Rows,
    Scorer,
    TargetFeatures,
    VectorSet,
)

MOST_REGIONS = 8 * 2**30
"""Bytes of regions that are kept on the device; a gallery with more keeps them in its file and sends K a query."""
MOST_PAIRS = 4096
"""Candidates that stage 2 scores at once on the device; who asks for more is served from the file."""
_CHUNK = 1024
# So many more than are wanted are looked at: a device orders ties as its kernels round.
_SPARE = 32


@dataclass(frozen=True, slots=True)
class Found:
    """Stage 1's `rows` [k] and `scores` [k], best first, of M rows `seen` [M] on the device: row i is `seen[at[i]]`.

    `vectors` [M, d] and `regions` [M, R, d] are there; `regions` is None where the device does not keep them.
    """

    rows: Rows
    scores: Floats
    at: Rows
    seen: Rows
    vectors: Any
    regions: Any


class ResidentGallery:
    """One generation of a gallery in the memory of the scorer's device, its regions as the file has them."""

    def __init__(
        self, snapshot: VectorSet, read: Callable[[Rows], TargetFeatures], scorer: OnnxScorer, most: int = MOST_REGIONS
    ) -> None:
        """Copy `snapshot` there; `read` gives the features of rows. Raises UsageError where it does not fit."""
        self.snapshot, self._read, self._scorer = snapshot, read, scorer
        manifest = scorer.bundle.manifest
        size = len(snapshot) * manifest.regions * (manifest.dim + 4)
        self._inputs = {"vectors": to_device(snapshot.vectors, scorer.device)}
        if manifest.mode is RankingMode.TWO_STAGE and size <= most:
            self._inputs |= {name: to_device(value, scorer.device) for name, value in self._packed().items()}
        self._graph = Session(search_graph(regions="codes" in self._inputs), scorer.device)

    def _packed(self) -> dict[str, Any]:
        rows = np.arange(len(self.snapshot))
        parts = [rows[at : at + _CHUNK] for at in range(0, len(rows), _CHUNK)]
        codes, factors = zip(*(pack(self._read(part).regions) for part in parts), strict=True)
        return {"codes": np.concatenate(codes), "factors": np.concatenate(factors)}

    def search(self, query: Floats, k: int, mask: Mask) -> Found:
        """Find the `k` rows that `mask` [N] allows with the largest inner product with `query` [d].

        Scores and the order of ties are those of search.exact_search, computed here from the rows found there.
        """
        allowed = int(mask.sum())
        if (k := min(k, allowed)) < 1:
            none = np.empty(0, np.intp)
            return Found(none, np.empty(0, np.float32), none, none, None, None)
        depth = k + _SPARE
        while True:
            found = self._nearest(query, k, mask, min(depth, allowed))
            if depth >= min(allowed, MOST_PAIRS) or not self._cuts_a_tie(found, query):
                return found
            depth *= 4

    def _nearest(self, query: Floats, k: int, mask: Mask, depth: int) -> Found:
        given = {**self._inputs, "query": query, "mask": mask, "k": np.array([depth], np.int64)}
        out = self._graph.run_with_io_binding(given, on_device=("found_vectors", "found_regions"))
        seen: Rows = out["rows"].astype(np.intp)
        order, scores = best_first(np.vecdot(self.snapshot.vectors[seen], query), seen)
        at = order[:k]
        return Found(seen[at], scores[:k], at, seen, out["found_vectors"], out.get("found_regions"))

    def _cuts_a_tie(self, found: Found, query: Floats) -> bool:
        """Tell whether rows that were not seen may tie with the last that is wanted."""
        least = np.vecdot(self.snapshot.vectors[found.seen], query).min()
        return bool(least >= found.scores[-1] - slack(query, found.scores[-1]))

    def pairs(self, queries: Sequence[QueryFeatures], found: Found) -> list[PairScores]:
        """Return the whole score S of all that stage 1 found, one or more, for each of `queries`."""
        regions = self._read(found.seen).regions if found.regions is None else found.regions
        every = (self._scorer.score_on_device(query, found.vectors, regions) for query in queries)
        return [taken(pair, found.at) for pair in every]


class Shelf:
    """Keeps a gallery's newest generation beside its scorer; may be shared by threads."""

    def __init__(self, scorer: OnnxScorer) -> None:
        self._scorer, self._loading = scorer, threading.Lock()
        self._kept: ResidentGallery | None = None

    def gallery(self, snapshot: VectorSet, read: Callable[[Rows], TargetFeatures]) -> ResidentGallery:
        """Return `snapshot` on the device, copied there when it is new; `read` gives the features of rows."""
        with self._loading:
            if self._kept is None or self._kept.snapshot is not snapshot:
                self._kept = None  # its memory is free before the next generation takes its own
                self._kept = ResidentGallery(snapshot, read, self._scorer)
            return self._kept


def shelf(scorer: Scorer, asked: bool | None) -> Shelf | None:
    """Return a shelf where a gallery is to lie with its scorer: as `asked`, by default on a GPU. Raises UsageError."""
    if not isinstance(scorer, OnnxScorer) or scorer.device.tensorrt:
        if asked:
            raise UsageError("only a bundle in ONNX Runtime keeps a gallery on its device; leave resident out")
        return None
    stays = scorer.device.memory != "cpu" if asked is None else asked
    return Shelf(scorer) if stays else None
