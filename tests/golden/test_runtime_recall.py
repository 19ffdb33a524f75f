"""Recall, worked by hand on one small gallery.

Gallery rows 0-6. Three queries, the reference already taken out of the ranking:

    query  ranking (best first)   right answers   subset     soft weights
    A      3 1 4 0 5 2            4, 2            1 2 5      4: 1.0   1: 0.5
    B      6 5 0 1 2 3            6               0 3 6      6: 1.0   5: -1.0
    C      2 4 6 5 1 0            3 (not ranked)  0 4 1      2: -1.0  6: 0.2

First right answers stand at places 3, 1 and nowhere.
"""

import numpy as np
import pytest

from nsfse.evaluation.metrics import (
    MISS,
    hard_negative_rate,
    mean_average_precision_at_k,
    mean_range,
    phrasing_gap,
    precisions_at_k,
    ranks_in_subset,
    ranks_of_targets,
    recall_at_k,
    recall_subset_at_k,
    soft_recall,
)

ORDERS = np.array([[3, 1, 4, 0, 5, 2], [6, 5, 0, 1, 2, 3], [2, 4, 6, 5, 1, 0]])
TARGETS = [{4, 2}, {6}, {3}]
SUBSETS = [{1, 2, 5}, {0, 3, 6}, {0, 4, 1}]
SOFT = [{4: 1.0, 1: 0.5}, {6: 1.0, 5: -1.0}, {2: -1.0, 6: 0.2}]


def test_ranks():
    assert ranks_of_targets(ORDERS, TARGETS).tolist() == [2, 0, MISS]


@pytest.mark.parametrize(("k", "percent"), [(1, 100 / 3), (2, 100 / 3), (3, 200 / 3), (6, 200 / 3)])
def test_recall(k, percent):
    assert recall_at_k(ranks_of_targets(ORDERS, TARGETS), k) == pytest.approx(percent)


def test_subset_recall():
    # A keeps 1 5 2: its right answer 2 is third. B keeps 6 0 3: first. C keeps 4 1 0: none.
    assert ranks_in_subset(ORDERS, SUBSETS, TARGETS).tolist() == [2, 0, MISS]
    recalls = [recall_subset_at_k(ORDERS, SUBSETS, TARGETS, k) for k in (1, 2, 3)]
    assert recalls == pytest.approx([100 / 3, 100 / 3, 200 / 3])


@pytest.mark.parametrize(
    ("k", "percent"),
    [
        (1, (0 + 1 + 0) / 3 * 100),  # C has -1 at the top: never below 0
        (2, (0.5 + 1 + 0) / 3 * 100),  # B keeps 1 though -1 stands second
        (3, (1 + 1 + 0.2) / 3 * 100),
    ],
)
def test_soft_recall(k, percent):
    assert soft_recall(ORDERS, SOFT, k) == pytest.approx(percent)


def test_mean_average_precision():
    # A at 3: one of two right answers, at place 3: (1/3) / min(3, 2) = 1/6. B: 1. C: 0.
    assert mean_average_precision_at_k(ORDERS, TARGETS, 3) == pytest.approx((1 / 6 + 1) / 3 * 100)
    # A at 6: places 3 and 6: (1/3 + 2/6) / 2 = 1/3.
    assert mean_average_precision_at_k(ORDERS, TARGETS, 6) == pytest.approx((1 / 3 + 1) / 3 * 100)
    # k = 1 with two right answers: the best possible is one, so the divisor is 1.
    assert mean_average_precision_at_k(ORDERS[:1], [{3, 4}], 1) == pytest.approx(100)


def test_an_answer_that_is_listed_twice_counts_once():
    # CIRCO's and SEARLE's divisor would be min(6, 3): (1/3 + 2/6) / 3.
    assert mean_average_precision_at_k(ORDERS[:1], [[4, 2, 4]], 6) == pytest.approx(100 / 3)


def test_precision():
    # A at 3: one right of three. Of ten, as many are counted as the ranking has; the divisor stays ten.
    assert precisions_at_k(ORDERS, TARGETS, 3).tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    assert precisions_at_k(ORDERS, TARGETS, 10).tolist() == pytest.approx([0.2, 0.1, 0])


def test_queries_that_flip_in_opposite_directions_do_not_cancel():
    # Two queries of two phrasings: one is found by the first alone, one by the second alone. R@1 by position is 50, 50.
    assert phrasing_gap([50.0, 50.0]) == 0.0
    assert mean_range([np.array([1.0, 0.0]), np.array([0.0, 1.0])]) == pytest.approx(100)
    # PinPoint's ling_sens_range of P@10, six phrasings and one: (0.4 - 0.1); a query told once is not of the mean.
    six = np.array([0.4, 0.3, 0.1, 0.2, 0.4, 0.4])
    assert mean_range([six, np.array([0.9])]) == pytest.approx(30)
    assert mean_range([six, np.array([0.5, 0.5])]) == pytest.approx(15)
    assert mean_range([np.array([0.9])]) is None


def test_hard_negatives_count_over_all_queries():
    assert hard_negative_rate(ORDERS, [{3}, set(), {4}]) == pytest.approx(100 / 3)


def test_phrasing_gap():
    assert phrasing_gap([40.0, 25.5, 38.0]) == pytest.approx(14.5)


def test_weights_share_a_query_among_its_phrasings():
    # A told twice (found at 1, missed) counts as half; B told once (found) as one: (0.5 + 1) / 2.
    assert recall_at_k(np.array([0, MISS, 0]), 1, np.array([0.5, 0.5, 1.0])) == pytest.approx(75)
