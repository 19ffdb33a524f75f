"""The numpy head, and its Gram form against aggregated region vectors. Needs numpy alone."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from nsfse.evaluation.reference_head import HeadConstants, boundary_margin, score_pairs
from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.search.two_stage import rank
from nsfse_runtime.types import QueryFeatures, TargetFeatures

HEAD = HeadConstants(t_c=0.15, t_v=0.2, gamma=1.5, attention_scale=20.0, w_global=0.8, w_cross=1.2, w_visual=0.6)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def features(seed=0, words=5, kept=3, count=7, regions=6, dim=8, dtype=np.float64):
    random = np.random.default_rng(seed)

    def rows(*shape):
        return unit(random.normal(size=(*shape, dim))).astype(dtype)

    weights = [random.dirichlet(np.ones(size)).astype(dtype) for size in (words, kept + words)]
    query = QueryFeatures(rows(1)[0], rows(words), rows(kept + words), *weights, tuple("abcdefghijkl"[:words]))
    return query, TargetFeatures(rows(count), rows(count, regions))


def softmax(values):
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def direct_similarity(rows, weights, regions, guides, t, head):
    """One similarity of one pair by the letter of docs/method.md §5: attended regions are summed as vectors."""
    near = rows @ regions.T
    relevance = np.where(near > 0, near, 0.1 * near)
    relevance = relevance / np.linalg.norm(relevance, axis=0)
    total = 0.0
    for row, weight, products, guide, share in zip(rows, weights, near, guides, relevance, strict=True):
        over = products > t
        cosine = 0.0
        if over.any():
            gathered = softmax(head.attention_scale * guide[over]) @ regions[over]
            cosine = row @ gathered / np.linalg.norm(gathered)
        mean = softmax(head.attention_scale * share) @ products
        over = products.max() - t
        total += weight * (cosine + mean + head.gamma * (max(0.0, over) if weight < 0 else min(0.0, over)))
    return total


def direct_views(rows, weights, views, head):
    """The views' similarity: each row has one product, with the same view of the image."""
    total = 0.0
    for row, weight, view in zip(rows, weights, views, strict=True):
        near = row @ view
        total += weight * (near + (near if near > head.t_v else 0.0) + head.gamma * min(0.0, near - head.t_v))
    return total


def direct_score(query, vector, regions, head):
    words, probes = query.words @ regions.T, query.probes @ regions.T
    asked = len(query.probes) - len(query.words)
    kept = asked - head.views
    guides = np.concatenate([probes[:kept], (words + probes[asked:]) / 2])
    others = np.r_[:kept, asked : len(query.probes)]
    cross = direct_similarity(query.words, query.word_weights, regions, words, head.t_c, head)
    visual = direct_similarity(
        query.probes[others], query.probe_weights[others], regions, guides, head.t_v, head
    ) + direct_views(
        query.probes[kept:asked], query.probe_weights[kept:asked], regions[len(regions) - head.views :], head
    )
    return head.w_global * query.vector @ vector + head.w_cross * cross + head.w_visual * visual


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
@pytest.mark.parametrize("t", [-1.0, 0.0, 0.2, 0.5, 1.0])
def test_the_gram_form_is_the_direct_form(dtype, tolerance, t):
    query, targets = features(dtype=dtype)
    head = replace(HEAD, t_c=t, t_v=t)
    wanted = [direct_score(query, *pair, head) for pair in zip(targets.vectors, targets.regions, strict=True)]
    found = score_pairs(query, targets, head)
    assert found.score.dtype == dtype
    np.testing.assert_allclose(found.score, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("views", [0, 2, 3])
@pytest.mark.parametrize("t", [-1.0, 0.0, 0.3])
def test_words_of_a_weight_under_zero_and_views_are_as_the_direct_form_has_them(views, t):
    query, targets = features()
    query = replace(query, word_weights=query.word_weights * [1, -1, 1, -1, 1])
    head = replace(HEAD, t_c=t, t_v=t, views=views)
    wanted = [direct_score(query, *pair, head) for pair in zip(targets.vectors, targets.regions, strict=True)]
    np.testing.assert_allclose(score_pairs(query, targets, head).score, wanted, atol=1e-12)


def test_what_must_not_be_there_costs_where_it_is_found():
    query, targets = features()
    unwanted = replace(query, word_weights=-query.word_weights)
    low = replace(HEAD, t_c=-1.0, w_visual=0.0)
    free = replace(low, gamma=0.0)
    found = score_pairs(unwanted, targets, low).score - score_pairs(unwanted, targets, free).score
    surplus = (score_pairs(query, targets, low).word_scores + 1.0) @ query.word_weights
    np.testing.assert_allclose(found, -HEAD.w_cross * low.gamma * surplus)


def test_words_are_scored_by_their_best_region_and_the_boundary_is_that_of_words():
    query, targets = features()
    found = score_pairs(query, targets, HEAD)
    assert found.boundary == HEAD.t_c
    np.testing.assert_allclose(found.word_scores, np.einsum("ld,krd->klr", query.words, targets.regions).max(2))


def test_a_mismatched_word_costs_and_gamma_is_its_price():
    query, targets = features()
    high = replace(HEAD, t_c=0.9, t_v=0.9)
    free = replace(high, gamma=0.0)
    shortfall = np.minimum(0, score_pairs(query, targets, high).word_scores - 0.9) @ query.word_weights
    cost = score_pairs(query, targets, high).score - score_pairs(query, targets, free).score
    assert (cost < HEAD.w_cross * high.gamma * shortfall).all()  # the probes' shortfall comes on top


def test_nothing_over_the_boundary_gathers_nothing():
    query, targets = features()
    alone = replace(HEAD, t_c=2.0, t_v=2.0, gamma=0.0, w_global=0.0)
    assert np.isfinite(score_pairs(query, targets, alone).score).all()


def test_no_candidates_have_no_scores():
    query, targets = features()
    found = score_pairs(query, targets.take([]), HEAD)
    assert found.score.shape == (0,) and found.word_scores.shape == (0, 5)


def test_one_word_and_one_candidate_score_as_among_others():
    query, targets = features(words=1, kept=1)
    whole, one = score_pairs(query, targets, HEAD), score_pairs(query, targets.take([4]), HEAD)
    np.testing.assert_allclose(one.score[0], whole.score[4], rtol=1e-12)


def test_the_margin_is_the_distance_of_the_nearest_product_to_its_boundary():
    query, targets = features()
    margin = boundary_margin(query, targets, HEAD)
    nudged = replace(HEAD, t_c=float((query.words @ targets.regions[2].T)[1, 3]))
    assert (margin > 0).all()
    assert boundary_margin(query, targets, nudged)[2] == pytest.approx(0, abs=1e-12)


class NumpyScorer:
    def score_pairs(self, query, targets):
        return score_pairs(query, targets, HEAD)


@pytest.mark.parametrize("k", [1, 10, 40])
def test_two_stages_over_everything_are_the_exhaustive_ranking(k):
    query, targets = features(count=40, dtype=np.float32)
    exhaustive = np.argsort(-score_pairs(query, targets, HEAD).score, kind="stable")
    found = rank(NumpyScorer(), query, targets.vectors, targets.take, k, 40)
    np.testing.assert_array_equal(found.rows, exhaustive[:k])
    assert not np.array_equal(exhaustive, np.argsort(-(targets.vectors @ query.vector), kind="stable"))


def test_a_manifest_without_a_constant_is_refused():
    class Manifest:
        name, blocks = "shop", ()
        head = asdict(HEAD)

    assert HeadConstants.of(Manifest()) == HEAD
    del Manifest.head["views"]  # a bundle of before there were views
    assert HeadConstants.of(Manifest()) == HEAD
    del Manifest.head["t_v"]
    with pytest.raises(IntegrityError, match="t_v"):
        HeadConstants.of(Manifest())
