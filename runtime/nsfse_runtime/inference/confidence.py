"""Is a hit a match? One calibrated number for each hit, from what the search already knows (docs/method.md §10)."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.inference.bundle import Manifest
from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import Floats, QueryFeatures, Scorer, TargetFeatures

Reals = NDArray[np.float64]

FEATURES = (
    "score",
    "cosine",
    "over mean",
    "words",
    "least word",
    "word missed",
    "like the reference",
    "query like it",
    "unwanted",
    "greatest word",
)
"""What `hit_features` has of a hit, in this order; then one for each view of the whole image."""
REACH = 4.0  # standard deviations from the mean: what lies farther out says no more


class Decision(msgspec.Struct, frozen=True):
    """A logistic regression on the F features of a hit and the products of any two of them.

    `centre` and `spread` [F] standardise the features, `weights` [F + F(F+1)/2] and `bias` are those of the regression.
    A hit whose confidence reaches `threshold` matches.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float

    def __post_init__(self) -> None:
        count = len(self.centre)
        if count < len(FEATURES) or len(self.spread) != count or len(self.weights) != count + count * (count + 1) // 2:
            raise ValueError(f"it has {count} means, {len(self.spread)} spreads and {len(self.weights)} weights")
        if not all(spread > 0 for spread in self.spread):
            raise ValueError("a spread is not over 0")

    @classmethod
    def of(cls, manifest: Manifest) -> "Decision | None":
        """Read it from a bundle's manifest; None where it has none. Raises IntegrityError where it is no decision."""
        if not manifest.decision:
            return None
        try:
            found = msgspec.convert(manifest.decision, cls)
            if found.views != manifest.head.get("views", 0):
                raise msgspec.ValidationError(f"it looks at {found.views} views")
        except msgspec.ValidationError as error:
            raise IntegrityError(
                f"the manifest of {manifest.name} has a decision that cannot be read ({error}); export it again"
            ) from error
        return found

    @property
    def views(self) -> int:
        """Return how many views of an image it looks at."""
        return len(self.centre) - len(FEATURES)

    def confidence(self, features: Reals) -> Reals:
        """Return how likely each of K hits is right, 0...1, from their `features` [K, F]."""
        terms = products(standardised(features, np.array(self.centre), np.array(self.spread)))
        return logistic(terms @ np.array(self.weights) + self.bias)

    def confidences(
        self, query: QueryFeatures, reference: Floats, ranking: Ranking, targets: TargetFeatures
    ) -> Reals | None:
        """Return the confidence [M] of the re-ranked hits of `ranking`; None where nothing was re-ranked.

        `reference` [d] is the vector of the query's image, `targets` has the features of the hits.
        """
        features = hit_features(query, reference, ranking, targets, self.views)
        return None if features is None else self.confidence(features)


def standardised(features: Reals, centre: Reals, spread: Reals) -> Reals:
    """Return `features` [N, F] in standard deviations `spread` [F] from `centre` [F], at most REACH of them."""
    return np.clip((features - centre) / spread, -REACH, REACH)


def products(rows: Reals) -> Reals:
    """Return `rows` [N, F] and the products of any two of their columns, [N, F + F(F+1)/2]."""
    one, other = np.triu_indices(rows.shape[1])
    return np.concatenate([rows, rows[:, one] * rows[:, other]], 1)


def logistic(logits: Reals) -> Reals:
    """Return 1 / (1 + exp(−logits)), without overflow."""
    found: Reals = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return found


def decision_of(scorer: Scorer) -> Decision | None:
    """Return a scorer's `decision`, an attribute that a scorer need not have."""
    found: Decision | None = getattr(scorer, "decision", None)
    return found


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
