"""A gallery on the device: both stages run there; the query goes in, scores and rows come out."""

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
from nsfse_runtime.search.two_stage import best_first, select, slack
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

MAX_REGION_BYTES = 8 * 2**30
"""Bytes of regions that are copied to the device; those of a larger gallery are read from its file for each query."""
MOST_PAIRS = 4096
"""Candidates that stage 2 scores at once on the device; a query for more is answered from the file."""
_CHUNK = 1024
# Rows searched beyond those wanted: a device orders ties as its kernels round.
_SPARE = 32


@dataclass(frozen=True, slots=True)
class DeviceHits:
    """What stage 1 found on the device.

    Attributes:
        rows: The rows [k], best first.
        scores: Their scores [k].
        order: Row i of `rows` is `candidates[order[i]]`, [k].
        candidates: The M rows that were looked at.
        vectors: Their vectors [M, d], on the device.
        regions: Their regions [M, R, d], on the device; None where the device does not hold
            regions.
    """

    rows: Rows
    scores: Floats
    order: Rows
    candidates: Rows
    vectors: Any
    regions: Any


class DeviceGallery:
    """One generation of a gallery in the memory of the scorer's device, its regions in int8 as in the file."""

    def __init__(
        self,
        snapshot: VectorSet,
        read: Callable[[Rows], TargetFeatures],
        scorer: OnnxScorer,
        max_region_bytes: int = MAX_REGION_BYTES,
    ) -> None:
        """Copy `snapshot` there; `read` gives the features of rows. Raises UsageError where it does not fit."""
        self.snapshot, self._read, self._scorer = snapshot, read, scorer
        manifest = scorer.bundle.manifest
        size = len(snapshot) * manifest.regions * (manifest.dim + 4)
        self._inputs = {"vectors": to_device(snapshot.vectors, scorer.device)}
        if manifest.mode is RankingMode.TWO_STAGE and size <= max_region_bytes:
            self._inputs |= {name: to_device(value, scorer.device) for name, value in self._packed().items()}
        self._graph = Session(search_graph(regions="codes" in self._inputs), scorer.device)

    def _packed(self) -> dict[str, Any]:
        rows = np.arange(len(self.snapshot))
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        codes, factors = zip(*(pack(self._read(chunk).regions) for chunk in chunks), strict=True)
        return {"codes": np.concatenate(codes), "factors": np.concatenate(factors)}

    def search(self, query: Floats, k: int, mask: Mask) -> DeviceHits:
        """Find the `k` rows that `mask` [N] allows with the largest inner product with `query` [d].

        Scores and the order of ties are those of exact_search, computed on the host from the rows
        found on the device.
        """
        allowed = int(mask.sum())
        if (k := min(k, allowed)) < 1:
            none = np.empty(0, np.intp)
            return DeviceHits(none, np.empty(0, np.float32), none, none, None, None)
        depth = k + _SPARE
        while True:
            hits = self._nearest(query, k, mask, min(depth, allowed))
            if depth >= min(allowed, MOST_PAIRS) or not self._cuts_a_tie(hits, query):
                return hits
            depth *= 4

    def _nearest(self, query: Floats, k: int, mask: Mask, depth: int) -> DeviceHits:
        inputs = {**self._inputs, "query": query, "mask": mask, "k": np.array([depth], np.int64)}
        outputs = self._graph.run_with_io_binding(inputs, on_device=("found_vectors", "found_regions"))
        rows: Rows = outputs["rows"].astype(np.intp)
        order, scores = best_first(np.vecdot(self.snapshot.vectors[rows], query), rows)
        order = order[:k]
        return DeviceHits(rows[order], scores[:k], order, rows, outputs["found_vectors"], outputs.get("found_regions"))

    def _cuts_a_tie(self, hits: DeviceHits, query: Floats) -> bool:
        """Tell whether rows that were not looked at may tie with the last that is wanted."""
        worst = np.vecdot(self.snapshot.vectors[hits.candidates], query).min()
        return bool(worst >= hits.scores[-1] - slack(query, hits.scores[-1]))

    def pairs(self, queries: Sequence[QueryFeatures], hits: DeviceHits) -> list[PairScores]:
        """Return the whole score S of all that stage 1 found, one or more, for each of `queries`."""
        regions = self._read(hits.candidates).regions if hits.regions is None else hits.regions
        scored = (self._scorer.score_on_device(query, hits.vectors, regions) for query in queries)
        return [select(pair, hits.order) for pair in scored]


class DeviceCache:
    """Holds the newest generation of a gallery on its scorer's device; threads may share it."""

    def __init__(self, scorer: OnnxScorer) -> None:
        self._scorer, self._loading = scorer, threading.Lock()
        self._cached: DeviceGallery | None = None

    def gallery(self, snapshot: VectorSet, read: Callable[[Rows], TargetFeatures]) -> DeviceGallery:
        """Return `snapshot` on the device, copied there when it is new; `read` gives the features of rows."""
        with self._loading:
            if self._cached is None or self._cached.snapshot is not snapshot:
                self._cached = None  # its memory is free before the next generation takes its own
                self._cached = DeviceGallery(snapshot, read, self._scorer)
            return self._cached


def device_cache(scorer: Scorer, resident: bool | None) -> DeviceCache | None:
    """Return the cache of a gallery on the scorer's device; None where it stays on the host.

    `resident` says whether it is copied; None: where the scorer runs on a GPU. Raises UsageError
    for a scorer that has no device for it.
    """
    if not isinstance(scorer, OnnxScorer) or scorer.device.tensorrt:
        if resident:
            raise UsageError("only a bundle in ONNX Runtime keeps a gallery on its device; leave resident out")
        return None
    copied = scorer.device.memory != "cpu" if resident is None else resident
    return DeviceCache(scorer) if copied else None
