"""Rankings → the metrics of a protocol, in percent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nsfse.data import EvaluationProtocol
from nsfse.evaluation import metrics
from nsfse.evaluation.background import background_watch
from nsfse.evaluation.results import ProtocolResult, QueryRanking

__all__ = ["category_means", "score_rankings", "split_category"]

SUBSET_KS = (1, 2, 3)
"""The K of R_subset@K."""


def score_rankings(protocol: EvaluationProtocol, rankings: Sequence[QueryRanking]) -> dict[str, Any]:
    """Return the metrics of one protocol.

    The phrasings of a query share its weight equally. `phrasing_gap` compares the positions that every query has;
    it is None where that is one. A target that is listed twice counts once.

    Args:
        protocol: The protocol, whose gallery the rankings are of.
        rankings: One ranking for each phrasing of each query, a query's phrasings in a row.

    Returns:
        Metric → percent, rounded to four digits; `queries` is a count; None where a metric does not apply.
    """
    row_of = {item: row for row, item in enumerate(protocol.gallery)}
    weights = np.array([1 / len(ranking.query.texts) for ranking in rankings])
    scores: dict[str, Any] = {"queries": round(float(weights.sum()))}
    if not rankings or not any(ranking.query.targets for ranking in rankings):
        return scores
    targets = [_rows(ranking.query.targets, row_of) for ranking in rankings]
    orders = [ranking.rows for ranking in rankings]
    recalled = [_rows(r.query.targets[:1], row_of) for r in rankings] if protocol.first_target_only else targets
    ranks = metrics.ranks_of_targets(orders, recalled)
    scores |= {f"R@{k}": metrics.recall_at_k(ranks, k, weights) for k in protocol.ks}
    if not protocol.map_ks and any(len(target_rows) > 1 for target_rows in targets):
        scores["mAP@10"] = metrics.mean_average_precision_at_k(orders, targets, 10, weights)
    hard_negatives = [_rows(ranking.query.hard_negatives, row_of) for ranking in rankings]
    scores["hard_negative_rate"] = None
    if any(ranking.query.hard_negatives for ranking in rankings):
        scores["hard_negative_rate"] = metrics.hard_negative_rate(orders, hard_negatives, weights)
    scores |= _scores_at(protocol.map_ks, orders, targets, hard_negatives, weights)
    scores["phrasing_gap"] = _phrasing_gap(rankings, ranks)
    scores |= _phrasing_sensitivity(rankings, ranks, targets)
    if any(ranking.query.subset for ranking in rankings):
        scores |= _cirr_scores(rankings, targets, weights, scores)
    if any(ranking.query.soft for ranking in rankings):
        scores |= _soft_recalls(protocol, rankings, row_of, weights)
    parts: dict[str, Any] = {
        "kinds": _scores_by_kind(rankings, ranks, hard_negatives, weights),
        "aspects": _map_by_aspect(rankings, orders, targets, weights),
        "old_value_named": _scores_of(
            [number for number, ranking in enumerate(rankings) if ranking.position in ranking.query.old_value_named],
            *(rankings, ranks, hard_negatives, weights),
        ),
        "background": background_watch(rankings, row_of, targets, weights),
    }
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in scores.items()}
    return rounded | {name: part for name, part in parts.items() if part}


def category_means(results: Sequence[ProtocolResult], categories: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return unweighted means over categories, FashionIQ's custom.

    Args:
        results: Results of protocols; those without a category are left out.
        categories: All categories.

    Returns:
        Protocol without its category → mean R@10 and R@50. They are None where a category is
        `missing`: over the others they would be another figure.
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
    shared_positions = min(len(ranking.query.texts) for ranking in rankings)
    if shared_positions < 2:
        return None
    positions = np.array([ranking.position for ranking in rankings])
    return metrics.phrasing_gap([metrics.recall_at_k(ranks[positions == p], 1) for p in range(shared_positions)])


def _phrasing_sensitivity(
    rankings: Sequence[QueryRanking], ranks: metrics.Ranks, targets: Sequence[frozenset[int]]
) -> dict[str, float | None]:
    """Return the range of R@1 and of P@10 over a query's phrasings, the mean over queries with several."""
    members: dict[str | int, list[int]] = {}
    for number, ranking in enumerate(rankings):
        members.setdefault(ranking.query.edit or id(ranking.query), []).append(number)
    groups = list(members.values())
    hits = (ranks < 1).astype(np.float64)
    precisions = metrics.precisions_at_k([ranking.rows for ranking in rankings], targets, 10)
    return {
        "phrasing_sensitivity_R@1": metrics.mean_range([hits[group] for group in groups]),
        "phrasing_sensitivity_P@10": metrics.mean_range([precisions[group] for group in groups]),
    }


def _scores_at(
    ks: Sequence[int],
    orders: Sequence[metrics.Rows],
    targets: Sequence[frozenset[int]],
    hard_negatives: Sequence[frozenset[int]],
    weights: metrics.Weights,
) -> dict[str, float]:
    """Return mAP@K and, where there are hard negatives, P@K, NegRecall@K and mAP@K without them (PinPoint)."""
    scores = {f"mAP@{k}": metrics.mean_average_precision_at_k(orders, targets, k, weights) for k in ks}
    if not any(hard_negatives):
        return scores
    cleaned = metrics.without_rows(orders, hard_negatives)
    for k in ks:
        scores[f"P@{k}"] = 100 * float(np.average(metrics.precisions_at_k(orders, targets, k), weights=weights))
        scores[f"NegRecall@{k}"] = metrics.negative_recall_at_k(orders, hard_negatives, k, weights)
        scores[f"mAP@{k}_noNeg"] = metrics.mean_average_precision_at_k(cleaned, targets, k, weights)
    return scores


def _cirr_scores(
    rankings: Sequence[QueryRanking],
    targets: Sequence[frozenset[int]],
    weights: metrics.Weights,
    scores: Mapping[str, float],
) -> dict[str, float]:
    """Return R_subset@1, 2, 3 and CIRR's headline."""
    ranks = metrics.ranks_of_targets([ranking.subset for ranking in rankings], targets)
    subset_scores = {f"R_subset@{k}": metrics.recall_at_k(ranks, k, weights) for k in SUBSET_KS}
    if "R@5" in scores:
        subset_scores["headline"] = (scores["R@5"] + subset_scores["R_subset@1"]) / 2
    return subset_scores


def _soft_recalls(
    protocol: EvaluationProtocol, rankings: Sequence[QueryRanking], row_of: Mapping[str, int], weights: metrics.Weights
) -> dict[str, float]:
    """Return the soft recall of the ranking and, where there are image sets, that of their members (CoVR)."""
    softs = [{row_of[item]: w for item, w in ranking.query.soft if item in row_of} for ranking in rankings]
    orders, subsets = [ranking.rows for ranking in rankings], [ranking.subset for ranking in rankings]
    recalls = {f"soft_R@{k}": metrics.soft_recall(orders, softs, k, weights) for k in protocol.ks}
    if any(ranking.query.subset for ranking in rankings):
        recalls |= {f"soft_R_subset@{k}": metrics.soft_recall(subsets, softs, k, weights) for k in SUBSET_KS}
    return recalls


def _scores_by_kind(
    rankings: Sequence[QueryRanking],
    ranks: metrics.Ranks,
    hard_negatives: Sequence[frozenset[int]],
    weights: metrics.Weights,
) -> dict[str, dict[str, float | None]]:
    """Return kind of query → its scores (_scores_of)."""
    by_kind: dict[str, dict[str, float | None]] = {}
    for kind in sorted({ranking.query.kind for ranking in rankings} - {""}):
        members = [number for number, ranking in enumerate(rankings) if ranking.query.kind == kind]
        by_kind[kind] = _scores_of(members, rankings, ranks, hard_negatives, weights)
    return by_kind


def _map_by_aspect(
    rankings: Sequence[QueryRanking],
    orders: Sequence[metrics.Rows],
    targets: Sequence[frozenset[int]],
    weights: metrics.Weights,
) -> dict[str, dict[str, float]]:
    """Return aspect → how many queries have it, and their mAP@10, as CIRCO's authors count it."""
    by_aspect: dict[str, dict[str, float]] = {}
    for aspect in sorted({aspect for ranking in rankings for aspect in ranking.query.aspects}):
        members = [number for number, ranking in enumerate(rankings) if aspect in ranking.query.aspects]
        own_orders, own_targets = [orders[number] for number in members], [targets[number] for number in members]
        value = metrics.mean_average_precision_at_k(own_orders, own_targets, 10, weights[members])
        by_aspect[aspect] = {"queries": round(float(weights[members].sum())), "mAP@10": round(value, 4)}
    return by_aspect


def _scores_of(
    members: Sequence[int],
    rankings: Sequence[QueryRanking],
    ranks: metrics.Ranks,
    hard_negatives: Sequence[frozenset[int]],
    weights: metrics.Weights,
) -> dict[str, float | None]:
    """Return count, R@1, R@10 and hard-negative rate (None without hard negatives) of some rankings; {} of none."""
    if not members:
        return {}
    member_weights = weights[members]
    recalls = {f"R@{k}": round(metrics.recall_at_k(ranks[members], k, member_weights), 4) for k in (1, 10)}
    negatives = [hard_negatives[number] for number in members]
    orders = [rankings[number].rows for number in members]
    rate = metrics.hard_negative_rate(orders, negatives, member_weights) if any(negatives) else None
    return {
        "queries": round(float(member_weights.sum())),
        **recalls,
        "hard_negative_rate": None if rate is None else round(rate, 4),
    }
