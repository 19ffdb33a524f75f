"""Features of the hits of a query, from what the search already knows; a confidence model reads them."""

import numpy as np

from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import ConfidenceModel, Floats, QueryFeatures, Reals, TargetFeatures


def hit_confidences(
    model: ConfidenceModel, query: QueryFeatures, reference: Floats, ranking: Ranking, targets: TargetFeatures
) -> Reals | None:
    """Return the confidence [M] of the re-ranked hits of `ranking`; None where nothing was re-ranked.

    `reference` [d] is the vector of the query's image, `targets` has the features of the hits.
    """
    features = hit_features(query, reference, ranking, targets, model.views)
    return None if features is None else model.confidence(features)


def hit_features(
    query: QueryFeatures, reference: Floats, ranking: Ranking, targets: TargetFeatures, views: int
) -> Reals | None:
    """Return the features of the re-ranked hits of `ranking`.

    Args:
        query: The composed query.
        reference: The vector [d] of the query's image.
        ranking: The ranking; its first M rows are re-ranked.
        targets: Features of its rows, [M, d] and [M, R, d] at least.
        views: V, how many of the last regions of an image are views of the whole.

    Returns:
        [M, 10 + V] in the order of confidence.FEATURES; None where nothing was re-ranked. A margin
        is x_k − t, of the opposite sign where κ_k < 0, so that it is how well a word is satisfied.
        The least margin is that of the words with at least half an even share. The last V are the
        products of a hit's views with those of the query.
    """
    pair, share = ranking.pair, np.abs(query.word_weights)
    if pair is None:
        return None
    count = len(pair.score)
    margins = pair.word_scores - pair.boundary
    is_heavy = share >= min(0.5 / len(share), share.max())  # the heaviest word does in any case
    least_margin = (np.sign(query.word_weights) * margins)[:, is_heavy].min(1)
    first_word = len(query.probes) - len(query.words)
    target_views = targets.regions[:count, targets.regions.shape[1] - views :]
    view_products = (target_views * query.probes[first_word - views : first_word]).sum(-1)
    columns = (
        pair.score,
        ranking.cosines[:count],
        pair.score - ranking.mean,
        margins @ query.word_weights,
        least_margin,
        np.minimum(least_margin, 0),
        targets.vectors[:count] @ reference,
        np.full(count, query.vector @ reference),
        np.full(count, np.minimum(query.word_weights, 0).sum()),
        np.full(count, share.max()),
        *view_products.T,
    )
    return np.stack(columns, 1).astype(np.float64)
