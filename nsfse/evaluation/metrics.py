"""Retrieval metrics on rankings, in percent, in plain numpy.

A ranking ("order") is a row of gallery row numbers, the best first; -1 pads a row that is shorter than the others.
The definitions follow docs/benchmarks.md: CIRR's hard, soft and subset recall, CIRCO's mAP@K, a hard-negative rate.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.integer]
Ranks = NDArray[np.int64]
Weights = NDArray[np.float64]
"""One weight a ranking; each of the P phrasings of a query weighs 1/P."""

MISS = int(np.iinfo(np.int64).max)
"""The rank of a right answer that the ranking does not hold: larger than any K."""


def ranks_of_targets(orders: Sequence[Rows] | Rows, targets: Sequence[Collection[int]]) -> Ranks:
    """Return the rank of the first right answer of each ranking.

    Args:
        orders: Rankings [Q, K], rows of the gallery, best first.
        targets: The right rows of each ranking.

    Returns:
        Ranks [Q] from 0; MISS where no answer is right.

    Raises:
        ValueError: The two do not have the same length.
    """
    pairs = zip(orders, targets, strict=True)
    return np.fromiter((_first(order, right) for order, right in pairs), np.int64, len(targets))


def recall_at_k(ranks: Ranks, k: int, weights: Weights | None = None) -> float:
    """Return R@k: the percentage of `ranks` [Q] (0-based) below k; nan of no queries."""
    return _percent(ranks < k, weights)


def ranks_in_subset(
    orders: Sequence[Rows] | Rows, subsets: Sequence[Collection[int]], targets: Sequence[Collection[int]]
) -> Ranks:
    """Return the rank of the first right answer among the members of its subset.

    A ranking of two stages orders only its head by S. Its members are to be scored by themselves:
    `ranks_of_targets` of that order is then their rank.

    Args:
        orders: Whole rankings [Q, N] by one score.
        subsets: The rows of each query's image set.
        targets: The right rows of each ranking.

    Returns:
        Ranks [Q] from 0 within the subset; MISS where no answer is right.
    """
    members = [order[np.isin(order, list(subset))] for order, subset in zip(orders, subsets, strict=True)]
    return ranks_of_targets(members, targets)


def recall_subset_at_k(
    orders: Sequence[Rows] | Rows,
    subsets: Sequence[Collection[int]],
    targets: Sequence[Collection[int]],
    k: int,
    weights: Weights | None = None,
) -> float:
    """Return CIRR's R_subset@k from whole rankings [Q, N] by one score (see ranks_in_subset)."""
    return recall_at_k(ranks_in_subset(orders, subsets, targets), k, weights)


def soft_recall(
    orders: Sequence[Rows] | Rows, softs: Sequence[Mapping[int, float]], k: int, weights: Weights | None = None
) -> float:
    """Return CIRR's soft recall: the best soft weight among the first k of each ranking, never below 0, averaged."""
    best = (
        max((soft[row] for row in order[:k].tolist() if row in soft), default=0.0)
        for order, soft in zip(orders, softs, strict=True)
    )
    return _percent(np.fromiter((max(0.0, value) for value in best), np.float64, len(softs)), weights)


def mean_average_precision_at_k(
    orders: Sequence[Rows] | Rows, targets: Sequence[Collection[int]], k: int, weights: Weights | None = None
) -> float:
    """Return CIRCO's mAP@k.

    The precision at each right answer in the first k is summed and divided by min(k, answers). An
    answer that is listed twice counts once, in the sum and in the divisor.

    Args:
        orders: Rankings [Q, K], rows of the gallery, best first.
        targets: The right rows of each ranking.
        k: How many of each ranking count.
        weights: Weights [Q] of the rankings; equal by default.

    Returns:
        Percent; nan without rankings.
    """
    values = (_average_precision(order[:k], right, k) for order, right in zip(orders, targets, strict=True))
    return _percent(np.fromiter(values, np.float64, len(targets)), weights)


def hard_negative_rate(
    orders: Sequence[Rows] | Rows, hard_negatives: Sequence[Collection[int]], weights: Weights | None = None
) -> float:
    """Return the percentage of all queries whose first answer is one of their hard negatives."""
    hits = (len(order) > 0 and int(order[0]) in hard for order, hard in zip(orders, hard_negatives, strict=True))
    return _percent(np.fromiter(hits, np.bool_, len(hard_negatives)), weights)


def negative_recall_at_k(
    orders: Sequence[Rows] | Rows, negatives: Sequence[Collection[int]], k: int, weights: Weights | None = None
) -> float:
    """Return PinPoint's NegRecall@k: the hard negatives among the first k, by min(k, negatives); 0 where none are."""
    pairs = zip(orders, negatives, strict=True)
    found = (np.isin(order[:k], list(wrong)).sum() / min(k, len(wrong)) if wrong else 0.0 for order, wrong in pairs)
    return _percent(np.fromiter(found, np.float64, len(negatives)), weights)


def without_rows(orders: Sequence[Rows] | Rows, removed: Sequence[Collection[int]]) -> list[Rows]:
    """Return each ranking without its rows of `removed`, in its order."""
    return [order[~np.isin(order, list(rows))] for order, rows in zip(orders, removed, strict=True)]


def phrasing_gap(recalls: Sequence[float]) -> float:
    """Return max - min of R@1 over phrasing positions, in points; 0 for a single position."""
    return max(recalls) - min(recalls)


def precisions_at_k(orders: Sequence[Rows] | Rows, targets: Sequence[Collection[int]], k: int) -> NDArray[np.float64]:
    """Return P@k of each ranking [Q], 0...1: right answers among its first k, by k, however short it is."""
    pairs = zip(orders, targets, strict=True)
    hits = (np.isin(order[:k], list(right)).sum() for order, right in pairs)
    return np.fromiter(hits, np.float64, len(targets)) / k


def mean_range(groups: Sequence[NDArray[np.float64]]) -> float | None:
    """Return the mean over queries of the range of their phrasings' values.

    This is PinPoint's linguistic sensitivity: queries that flip in opposite directions do not cancel.

    Args:
        groups: For each query the values of its phrasings, 0...1.

    Returns:
        Points. Queries of one phrasing do not count; None where there are no others.
    """
    ranges = [float(values.max() - values.min()) for values in groups if len(values) > 1]
    return 100 * float(np.mean(ranges)) if ranges else None


def auc(low: NDArray[Any], high: NDArray[Any]) -> float:
    """Return the share, 0...1, of pairs in which `high` is over `low`, equal ones counted half; nan without a pair."""
    if not len(low) or not len(high):
        return float("nan")
    order = np.sort(low)
    below, upto = np.searchsorted(order, high, "left"), np.searchsorted(order, high, "right")
    return float((below + upto).mean() / 2 / len(low))


def _first(order: Rows, right: Collection[int]) -> int:
    positions = np.flatnonzero(np.isin(order, list(right)))
    return int(positions[0]) if len(positions) else MISS


def _average_precision(order: Rows, right: Collection[int], k: int) -> float:
    if not right:
        return 0.0
    positions = np.flatnonzero(np.isin(order, list(right)))
    precisions = np.arange(1, len(positions) + 1) / (positions + 1)
    return float(precisions.sum()) / min(k, len(set(right)))


def _percent(values: NDArray[np.bool_] | NDArray[np.float64], weights: Weights | None) -> float:
    return float(np.average(values, weights=weights) * 100) if len(values) else float("nan")
