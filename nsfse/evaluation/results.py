"""What an evaluation returns: rankings, scores with the protocol they hold for, and examples behind them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsfse.data import EvalQuery, EvaluationProtocol, Source, gallery_digest
from nsfse.evaluation.query_counts import QueryNote
from nsfse_runtime.json_schema import SCHEMA_VERSION
from nsfse_runtime.retrieval.results import Hit

__all__ = ["Diagnosis", "Evaluation", "ProtocolResult", "QueryExample", "QueryRanking", "ScoreHistogram"]

NAMES_SHOWN = 20
"""How many names of missing images a score carries; `nsfse data check` lists them all."""
Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QueryRanking:
    """One phrasing of one query, ranked.

    Attributes:
        query: The query.
        position: Which of its phrasings was ranked.
        rows: Rows of the protocol's gallery [k], best first.
        subset: Members of the query's image set [m], each ranked by its own score, best first.
    """

    query: EvalQuery
    position: int
    rows: NDArray[np.int32] = field(repr=False)
    subset: NDArray[np.int32] = field(repr=False, default_factory=lambda: np.empty(0, np.int32))


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """The scores of one protocol in one mode, all that they depend on, and the rankings behind them.

    Attributes:
        protocol: The protocol that was scored.
        mode: `composed`, `image-only` or `text-only`.
        rerank: How many candidates stage 2 scored.
        scores: Percent (R@K, hard_negative_rate, phrasing_gap ...), `queries` a count; None where not applicable.
        dropped: Queries left out because their reference or every target is missing.
        unreadable: Texts without a known word, which are ranked by the image alone.
        rankings: One ranking for each phrasing of each scored query.
        left_out: Why the `dropped` queries are left out.
        odd: What is odd about queries that are scored.
        abstention: Whether the confidence tells galleries emptied of right answers (abstention.py); None without one.
        texts: Counts of texts read, with unknown words, and longer than the model reads (query_counts.text_counts).
    """

    protocol: EvaluationProtocol
    mode: str
    rerank: int
    scores: Mapping[str, Any]
    dropped: int
    unreadable: int
    rankings: tuple[QueryRanking, ...] = field(repr=False)
    left_out: tuple[QueryNote, ...] = ()
    odd: tuple[QueryNote, ...] = ()
    texts: Mapping[str, int] | None = None
    abstention: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the scores, and beside them the protocol they hold for."""
        protocol = self.protocol
        return {
            **self.scores,
            "protocol": {
                "name": protocol.name,
                "version": protocol.version,
                "gallery_size": len(protocol.gallery),
                "gallery_sha256": gallery_digest(protocol.gallery),
                "remove_reference": protocol.remove_reference,
                "ties": "gallery order",
                "note": protocol.note,
            },
            "mode": self.mode,
            "rerank": self.rerank if self.mode == "composed" else 0,
            "unreadable_texts": self.unreadable,
            "texts": None if self.texts is None else dict(self.texts),
            "abstention": None if self.abstention is None else dict(self.abstention),
            "incomplete": self._incomplete(),
            "odd_queries": [note.to_json() for note in self.odd],
        }

    def _incomplete(self) -> dict[str, Any] | None:
        protocol = self.protocol
        absent = max(protocol.missing, len(protocol.missing_ids))
        if not absent and not self.dropped:
            return None
        present = len(protocol.gallery)
        return {
            "gallery_expected": present + absent,
            "gallery_found": present,
            "queries_dropped": self.dropped,
            "left_out": [note.to_json() for note in self.left_out],
            "missing": list(protocol.missing_ids[:NAMES_SHOWN]),
        }


@dataclass(frozen=True, slots=True)
class QueryExample:
    """A query with its first hits.

    Attributes:
        query: The query.
        position: Which of its phrasings was ranked.
        rank: Rank of the first target, from 0; None where the ranking does not reach it.
        hits: The first hits, best first.
        missed: The first target, where it is not among `hits`.
    """

    query: EvalQuery
    position: int
    rank: int | None
    hits: tuple[Hit, ...]
    missed: Hit | None


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """How the correspondences of one kind are distributed about their boundary, in percent of all by bin.

    Attributes:
        boundary: The boundary t.
        edges: Edges of the bins [B+1].
        matched: Correspondences with targets [B].
        mismatched: Correspondences with other images [B].
        near: Correspondences with hard negatives [B]; None without any.
        missed: Percentage of `matched` under the boundary.
        alarms: Percentage of `mismatched` over the boundary.
    """

    boundary: float
    edges: Reals = field(repr=False)
    matched: Reals = field(repr=False)
    mismatched: Reals = field(repr=False)
    near: Reals | None = field(repr=False)
    missed: float
    alarms: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One protocol's worst and best queries, and the distribution of its correspondences.

    `words` and `probes` are None for a model that compares neither.
    """

    result: ProtocolResult
    worst: tuple[QueryExample, ...]
    best: tuple[QueryExample, ...]
    words: ScoreHistogram | None
    probes: ScoreHistogram | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of one or several protocols and modes with one model.

    Attributes:
        fingerprint: The model's fingerprint.
        results: One result for each protocol and mode.
        summary: FashionIQ's means over categories, by protocol.
        skipped: Protocols without a query that can be scored.
        files: Files that were written: test-server files, a page.
        reasons: Why each of `skipped` is not scored.
        diagnoses: Examples and histograms of each protocol in the first mode, where wanted.
        source: Where the protocols' images come from.
    """

    fingerprint: str
    results: tuple[ProtocolResult, ...]
    summary: dict[str, dict[str, Any]]
    skipped: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    diagnoses: tuple[Diagnosis, ...] = field(default=(), repr=False)
    source: Source | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the documented form: scores by protocol, the first mode under `protocols`, others under `modes`."""
        modes: dict[str, dict[str, Any]] = {}
        for result in self.results:
            modes.setdefault(result.mode, {})[result.protocol.name] = result.to_json()
        first, *others = modes
        return {
            "schema_version": SCHEMA_VERSION,
            "protocols": modes[first],
            "modes": {mode: modes[mode] for mode in others},
            "summary": self.summary,
            "skipped": list(self.skipped),
            "not_scored": {name: {"queries": 0, "reason": reason} for name, reason in self.reasons.items()},
            "model": {"fingerprint": self.fingerprint},
            "files": [str(path) for path in self.files],
        }
