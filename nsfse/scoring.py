"""From rankings to a score that says what it is a score of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsfse.data import Protocol, Triplet, gallery_digest
from nsfse_runtime import metrics

__all__ = ["ProtocolResult", "Ranked", "category_means", "score_rankings"]

NAMES_SHOWN = 20
"""How many names of missing pictures a score carries; `nsfse data check` lists them all."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One phrasing of one query, ranked: `rows` are rows of the protocol's gallery, the best first."""

    query: Triplet
    position: int
    rows: NDArray[np.int32] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """A score with all that it depends on, and the rankings behind it."""

    protocol: Protocol
    mode: str
    rerank: int
    scores: Mapping[str, Any]
    """Percent: R@K, hard_negative_rate, phrasing_spread ...; `queries` a count; None where it does not apply."""
    dropped: int
    """Queries left out: their reference, or every right answer, is missing."""
    unreadable: int
    """Texts that the model cannot read (empty, no known word): ranked by the picture alone."""
    rankings: tuple[Ranked, ...] = field(repr=False)

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
            "incomplete": self._incomplete(),
        }

    def _incomplete(self) -> dict[str, Any] | None:
        protocol = self.protocol
        lacking = max(protocol.missing, len(protocol.missing_ids))
        if not lacking and not self.dropped:
            return None
        found = len(protocol.gallery)
        return {
            "gallery_expected": found + lacking,
            "gallery_found": found,
            "queries_dropped": self.dropped,
            "missing": list(protocol.missing_ids[:NAMES_SHOWN]),
        }


def score_rankings(protocol: Protocol, rankings: Sequence[Ranked]) -> dict[str, Any]:
    """Return the protocol's metrics in percent; a query's phrasings share its weight equally.

    `phrasing_spread` compares the positions that every query has, and is None where that is one.
    """
    row_of = {item: row for row, item in enumerate(protocol.gallery)}
    weights = np.array([1 / len(ranked.query.texts) for ranked in rankings])
    scores: dict[str, Any] = {"queries": round(float(weights.sum()))}
    if not rankings or not any(ranked.query.targets for ranked in rankings):
        return scores
    targets = [_rows(ranked.query.targets, row_of) for ranked in rankings]
    orders = [ranked.rows for ranked in rankings]
    ranks = metrics.ranks_of_targets(orders, targets)
    scores |= {f"R@{k}": metrics.recall_at_k(ranks, k, weights) for k in protocol.ks}
    if any(len(right) > 1 for right in targets):
        scores["mAP@10"] = metrics.mean_average_precision_at_k(orders, targets, 10, weights)
    hard = [_rows(ranked.query.hard_negatives, row_of) for ranked in rankings]
    scores["hard_negative_rate"] = None
    if any(ranked.query.hard_negatives for ranked in rankings):
        scores["hard_negative_rate"] = metrics.hard_negative_rate(orders, hard, weights)
    scores["phrasing_spread"] = _spread(rankings, ranks)
    if any(ranked.query.subset for ranked in rankings):
        scores |= _cirr(protocol, rankings, orders, targets, row_of, scores)
    kinds = _by_kind(rankings, ranks, hard, weights)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in scores.items()}
    return rounded | ({"kinds": kinds} if kinds else {})


def category_means(results: Sequence[ProtocolResult]) -> dict[str, dict[str, float]]:
    """Return protocol without its category → unweighted mean R@10 and R@50 (FashionIQ's custom)."""
    groups: dict[str, list[ProtocolResult]] = {}
    for result in results:
        if "R@10" in result.scores:
            groups.setdefault(result.protocol.name.rpartition("-")[0], []).append(result)
    return {
        group: {
            **{key: round(math.fsum(r.scores[key] for r in members) / len(members), 4) for key in ("R@10", "R@50")},
            "categories": len(members),
        }
        for group, members in groups.items()
    }


def _rows(items: Sequence[str], row_of: Mapping[str, int]) -> frozenset[int]:
    return frozenset(row_of[item] for item in items if item in row_of)


def _spread(rankings: Sequence[Ranked], ranks: metrics.Ranks) -> float | None:
    shared = min(len(ranked.query.texts) for ranked in rankings)
    if shared < 2:
        return None
    positions = np.array([ranked.position for ranked in rankings])
    return metrics.phrasing_spread([metrics.recall_at_k(ranks[positions == p], 1) for p in range(shared)])


def _cirr(
    protocol: Protocol,
    rankings: Sequence[Ranked],
    orders: Sequence[NDArray[np.int32]],
    targets: Sequence[frozenset[int]],
    row_of: Mapping[str, int],
    scores: Mapping[str, float],
) -> dict[str, float]:
    """Return R_subset@1, 2, 3, CIRR's headline and, where the captions have soft targets, soft recall."""
    subsets = [_rows(ranked.query.subset, row_of) for ranked in rankings]
    ranks = metrics.ranks_in_subset(orders, subsets, targets)
    found = {f"R_subset@{k}": metrics.recall_at_k(ranks, k) for k in (1, 2, 3)}
    found["headline"] = (scores["R@5"] + found["R_subset@1"]) / 2
    softs = [{row_of[item]: w for item, w in ranked.query.soft if item in row_of} for ranked in rankings]
    return found | {f"soft_R@{k}": metrics.soft_recall(orders, softs, k) for k in protocol.ks}


def _by_kind(
    rankings: Sequence[Ranked], ranks: metrics.Ranks, hard: Sequence[frozenset[int]], weights: metrics.Weights
) -> dict[str, dict[str, float | None]]:
    """Return kind of query → how many, R@1 and R@10, and how often a hard negative comes first, where there are any."""
    found: dict[str, dict[str, float | None]] = {}
    for kind in sorted({ranked.query.kind for ranked in rankings} - {""}):
        rows = [at for at, ranked in enumerate(rankings) if ranked.query.kind == kind]
        share = weights[rows]
        recalls = {f"R@{k}": round(metrics.recall_at_k(ranks[rows], k, share), 4) for k in (1, 10)}
        near = [hard[at] for at in rows]
        rate = metrics.hard_negative_rate([rankings[at].rows for at in rows], near, share) if any(near) else None
        found[kind] = {
            "queries": round(float(share.sum())),
            **recalls,
            "hard_negative_rate": None if rate is None else round(rate, 4),
        }
    return found
