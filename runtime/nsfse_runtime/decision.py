"""Is a hit a match? One calibrated number for each hit, from what the search already knows (docs/method.md §10)."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.bundle import Manifest
from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.features import QueryFeatures, Scorer
from nsfse_runtime.search import Ranking

Reals = NDArray[np.float64]

FEATURES = ("score", "cosine", "over mean", "words", "least word", "word missed")
"""What `hit_features` has of a hit, in this order; decisions of before weigh the first five of them."""
LEAST_FEATURES = 5


class Decision(msgspec.Struct, frozen=True):
    """A logistic regression on `FEATURES`: `weights` and `bias`. A hit whose confidence reaches `threshold` matches."""

    weights: tuple[float, ...]
    bias: float
    threshold: float

    def __post_init__(self) -> None:
        if not LEAST_FEATURES <= len(self.weights) <= len(FEATURES):
            raise ValueError(f"it has {len(self.weights)} weights, not {LEAST_FEATURES} to {len(FEATURES)}")

    @classmethod
    def of(cls, manifest: Manifest) -> "Decision | None":
        """Read it from a bundle's manifest; None where it has none. Raises IntegrityError where it is no decision."""
        if not manifest.decision:
            return None
        try:
            return msgspec.convert(manifest.decision, cls)
        except msgspec.ValidationError as error:
            raise IntegrityError(
                f"the manifest of {manifest.name} has a decision that cannot be read ({error}); export it again"
            ) from error

    def confidence(self, features: Reals) -> Reals:
        """Return how likely each of K hits is right, 0...1, from their `features` [K, 6]."""
        return logistic(features[:, : len(self.weights)] @ np.array(self.weights) + self.bias)

    def confidences(self, query: QueryFeatures, ranking: Ranking) -> Reals | None:
        """Return the confidence [M] of the re-ranked hits of `ranking`; None where nothing was re-ranked."""
        features = hit_features(query, ranking)
        return None if features is None else self.confidence(features)


def logistic(logits: Reals) -> Reals:
    """Return 1 / (1 + exp(−logits)), without overflow."""
    found: Reals = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return found


def decision_of(scorer: Scorer) -> Decision | None:
    """Return a scorer's `decision`, an attribute that a scorer need not have."""
    found: Decision | None = getattr(scorer, "decision", None)
    return found


def hit_features(query: QueryFeatures, ranking: Ranking) -> Reals | None:
    """Return the features [M, 6] of the re-ranked hits of `ranking`; None where nothing was re-ranked.

    S; stage 1's cosine; how far S is over its mean in the re-ranked list; the words' margin Σ_k κ_k(x_k − t); the least
    margin, sign(κ_k)(x_k − t), of the words that have at least half an even share; and the same again where it is under
    0. A word with κ_k < 0 names what must not be there, so that a margin is how well the word is fulfilled.
    """
    pair, share = ranking.pair, np.abs(query.word_weights)
    if pair is None:
        return None
    margins = pair.word_scores - pair.boundary
    speaks = share >= min(0.5 / len(share), share.max())  # the weightiest word does in any case
    least = (np.sign(query.word_weights) * margins)[:, speaks].min(1)
    columns = (
        pair.score,
        ranking.cosines[: len(pair.score)],
        pair.score - ranking.mean,
        margins @ query.word_weights,
        least,
        np.minimum(least, 0),
    )
    return np.stack(columns, 1).astype(np.float64)
