import math

import numpy as np
import pytest

from nsfse.evaluation.metrics import (
    MISS,
    auc,
    hard_negative_rate,
    mean_average_precision_at_k,
    phrasing_gap,
    ranks_in_subset,
    ranks_of_targets,
    recall_at_k,
    soft_recall,
)


def brute_force_rank(order, right):
    return min((order.index(row) for row in right if row in order), default=MISS)


def test_ranks_agree_with_brute_force_on_random_rankings():
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(40)[:25] for _ in range(200)])
    targets = [set(rng.choice(40, size=rng.integers(1, 5), replace=False).tolist()) for _ in range(200)]
    expected = [brute_force_rank(order.tolist(), right) for order, right in zip(orders, targets, strict=True)]
    assert ranks_of_targets(orders, targets).tolist() == expected


def test_rankings_may_have_different_lengths():
    orders = [np.array([4, 2]), np.array([7, 1, 0, 2]), np.array([], np.int32)]
    assert ranks_of_targets(orders, [{2}, {2}, {2}]).tolist() == [1, 3, MISS]
    assert hard_negative_rate(orders, [{4}, {1}, {4}]) == pytest.approx(100 / 3)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ranks_of_targets(np.array([[1, 2]]), [{1}, {2}])


def test_no_right_answer_is_a_miss_and_not_a_hit_of_padding():
    assert ranks_of_targets(np.array([[3, -1, -1]]), [set()]).tolist() == [MISS]
    assert mean_average_precision_at_k(np.array([[3, 1]]), [set()], 2) == 0.0


def test_subset_order_follows_the_whole_ranking():
    order = np.array([[9, 5, 8, 3, 7, 1]])
    assert ranks_in_subset(order, [{1, 3, 5}], [{3}]).tolist() == [1]
    assert ranks_in_subset(order, [{1, 3, 5}], [{9}]).tolist() == [MISS]


def test_recall_grows_with_k_and_ends_where_all_is_found():
    ranks = np.array([0, 4, 9, 30])
    assert [recall_at_k(ranks, k) for k in (1, 5, 10, 31)] == [25.0, 50.0, 75.0, 100.0]


def test_soft_recall_is_never_negative():
    assert soft_recall(np.array([[0, 1]]), [{0: -1.0, 1: -0.5}], 2) == 0.0


def test_no_queries_give_nan_and_not_a_perfect_score():
    assert math.isnan(recall_at_k(np.array([], np.int64), 1))


def test_one_position_has_no_gap():
    assert phrasing_gap([31.0]) == 0.0


def test_auc_is_the_share_of_pairs_in_order():
    low, high = np.array([0.1, 0.4, 0.5]), np.array([0.3, 0.5, 0.9])
    pairs = [(b > a) + (b == a) / 2 for a in low for b in high]
    assert auc(low, high) == pytest.approx(sum(pairs) / 9)
    assert math.isnan(auc(low[:0], high))
