"""From rankings to a score that says what it is a score of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsfse.data import EvalQuery, EvaluationProtocol, gallery_digest
from nsfse.evaluation import metrics
from nsfse.evaluation.query_counts import Noted

__all__ = ["ProtocolResult", "QueryRanking", "category_means", "score_rankings", "split_category"]

NAMES_SHOWN = 20
"""How many names of missing images a score carries; `nsfse data check` lists them all."""
SUBSET_KS = (1, 2, 3)
"""The K of R_subset@K."""


@dataclass(frozen=True, slots=True)
class QueryRanking:
    """One phrasing of one query, ranked: `rows` are rows of the protocol's gallery, the best first."""

    query: EvalQuery
    position: int
    rows: NDArray[np.int32] = field(repr=False)
    subset: NDArray[np.int32] = field(repr=False, default_factory=lambda: np.empty(0, np.int32))
    """The members of the query's image set among them, each ranked by its own score, the best first."""


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """A score with all that it depends on, and the rankings behind it."""

    protocol: EvaluationProtocol
    mode: str
    rerank: int
    scores: Mapping[str, Any]
    """Percent: R@K, hard_negative_rate, phrasing_gap ...; `queries` a count; None where it does not apply."""
    dropped: int
    """Queries left out: their reference, or every right answer, is missing."""
    unreadable: int
    """Texts that the model cannot read (empty, no known word): ranked by the image alone."""
    rankings: tuple[QueryRanking, ...] = field(repr=False)
    left_out: tuple[Noted, ...] = ()
    """Why the `dropped` queries are left out."""
    odd: tuple[Noted, ...] = ()
    """What is odd about queries that are scored."""
    texts: Mapping[str, int] | None = None
    """How many texts were read, hold unknown words, are longer than the model reads (see counting.text_counts)."""

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
            "incomplete": self._incomplete(),
            "odd_queries": [noted.to_json() for noted in self.odd],
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
            "left_out": [noted.to_json() for noted in self.left_out],
            "missing": list(protocol.missing_ids[:NAMES_SHOWN]),
        }


def score_rankings(protocol: EvaluationProtocol, rankings: Sequence[QueryRanking]) -> dict[str, Any]:
    """Return the protocol's metrics in percent; a query's phrasings share its weight equally.

    `phrasing_gap` compares the positions that every query has, and is None where that is one. A right answer that
    is listed twice counts once.
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
    scores["phrasing_gap"] = _phrasing_gap(rankings, ranks)
    scores |= _sensitivity(rankings, ranks, targets)
    if any(ranked.query.subset for ranked in rankings):
        scores |= _cirr(rankings, targets, weights, scores)
    if any(ranked.query.soft for ranked in rankings):
        scores |= _soft(protocol, rankings, row_of, weights)
    kinds = _by_kind(rankings, ranks, hard, weights)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in scores.items()}
    return rounded | ({"kinds": kinds} if kinds else {})


def category_means(results: Sequence[ProtocolResult], categories: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return protocol without its category → unweighted mean R@10 and R@50 over all `categories` (FashionIQ's custom).

    The means are None where a category is `missing`: over the others they would be another figure.
    """
    groups: dict[str, dict[str, ProtocolResult]] = {}
    for result in results:
        group, category = split_category(result.protocol.name, categories)
        if category and "R@10" in result.scores:
            groups.setdefault(group, {})[category] = result
    return {group: _category_mean(members, categories) for group, members in groups.items()}


def split_category(protocol: str, categories: Sequence[str]) -> tuple[str, str]:
    """Return a protocol's name without its category, and the category; an empty one where it has none."""
    parts = protocol.split("-")
    category = next((part for part in parts if part in categories), "")
    return "-".join(part for part in parts if part != category), category


def _category_mean(members: Mapping[str, ProtocolResult], categories: Sequence[str]) -> dict[str, Any]:
    missing = [category for category in categories if category not in members]
    means: dict[str, Any] = dict.fromkeys(("R@10", "R@50"))
    if not missing:
        means = {key: round(math.fsum(r.scores[key] for r in members.values()) / len(members), 4) for key in means}
    return {**means, "categories": len(members), "expected": len(categories), "missing": missing}


def _rows(items: Sequence[str], row_of: Mapping[str, int]) -> frozenset[int]:
    return frozenset(row_of[item] for item in items if item in row_of)


def _phrasing_gap(rankings: Sequence[QueryRanking], ranks: metrics.Ranks) -> float | None:
    shared = min(len(ranked.query.texts) for ranked in rankings)
    if shared < 2:
        return None
    positions = np.array([ranked.position for ranked in rankings])
    return metrics.phrasing_gap([metrics.recall_at_k(ranks[positions == p], 1) for p in range(shared)])


def _sensitivity(
    rankings: Sequence[QueryRanking], ranks: metrics.Ranks, targets: Sequence[frozenset[int]]
) -> dict[str, float | None]:
    """Return how far R@1 and P@10 of one query lie apart over its phrasings, the mean over queries of several."""
    starts = [at for at, ranked in enumerate(rankings) if ranked.position == 0]
    groups = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(rankings)], strict=True)]
    hits = (ranks < 1).astype(np.float64)
    precisions = metrics.precisions_at_k([ranked.rows for ranked in rankings], targets, 10)
    return {
        "phrasing_sensitivity_R@1": metrics.mean_range([hits[group] for group in groups]),
        "phrasing_sensitivity_P@10": metrics.mean_range([precisions[group] for group in groups]),
    }


def _cirr(
    rankings: Sequence[QueryRanking],
    targets: Sequence[frozenset[int]],
    weights: metrics.Weights,
    scores: Mapping[str, float],
) -> dict[str, float]:
    """Return R_subset@1, 2, 3 and CIRR's headline."""
    ranks = metrics.ranks_of_targets([ranked.subset for ranked in rankings], targets)
    found = {f"R_subset@{k}": metrics.recall_at_k(ranks, k, weights) for k in SUBSET_KS}
    if "R@5" in scores:
        found["headline"] = (scores["R@5"] + found["R_subset@1"]) / 2
    return found


def _soft(
    protocol: EvaluationProtocol, rankings: Sequence[QueryRanking], row_of: Mapping[str, int], weights: metrics.Weights
) -> dict[str, float]:
    """Return the soft recall of the ranking and, where there are image sets, that of their members (CoVR)."""
    softs = [{row_of[item]: w for item, w in ranked.query.soft if item in row_of} for ranked in rankings]
    orders, subsets = [ranked.rows for ranked in rankings], [ranked.subset for ranked in rankings]
    found = {f"soft_R@{k}": metrics.soft_recall(orders, softs, k, weights) for k in protocol.ks}
    if any(ranked.query.subset for ranked in rankings):
        found |= {f"soft_R_subset@{k}": metrics.soft_recall(subsets, softs, k, weights) for k in SUBSET_KS}
    return found


def _by_kind(
    rankings: Sequence[QueryRanking], ranks: metrics.Ranks, hard: Sequence[frozenset[int]], weights: metrics.Weights
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
