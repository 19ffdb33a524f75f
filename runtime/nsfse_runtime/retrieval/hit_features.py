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
    """Return the features [M, 10 + V] of the re-ranked hits of `ranking`; None where nothing was re-ranked.

    S; stage 1's cosine; how far S is over its mean in the re-ranked list; the words' margin Σ_k κ_k(x_k − t); the least
    margin, sign(κ_k)(x_k − t), of the words that have at least half an even share; and the same again where it is under
    0. A word with κ_k < 0 names what must not be there, so that a margin is how well the word is fulfilled. Then the
    cosine of the hit's vector with `reference` [d], the vector of the query's image, and of the query's with it;
    Σ_k min(κ_k, 0) and max_k |κ_k|; and the product of each of the `views` V last regions of the hit's `targets`
    [M, d], [M, R, d] with what the query keeps of it.
    """
    pair, share = ranking.pair, np.abs(query.word_weights)
    if pair is None:
        return None
    count = len(pair.score)
    margins = pair.word_scores - pair.boundary
    speaks = share >= min(0.5 / len(share), share.max())  # the weightiest word does in any case
    least = (np.sign(query.word_weights) * margins)[:, speaks].min(1)
    kept = len(query.probes) - len(query.words)
    viewed = (targets.regions[:count, targets.regions.shape[1] - views :] * query.probes[kept - views : kept]).sum(-1)
    columns = (
        pair.score,
        ranking.cosines[:count],
        pair.score - ranking.mean,
        margins @ query.word_weights,
        least,
        np.minimum(least, 0),
        targets.vectors[:count] @ reference,
        np.full(count, query.vector @ reference),
        np.full(count, np.minimum(query.word_weights, 0).sum()),
        np.full(count, share.max()),
        *viewed.T,
    )
    return np.stack(columns, 1).astype(np.float64)
