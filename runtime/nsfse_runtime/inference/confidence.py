"""Confidence of a hit: a logistic regression on its features, fitted after training (docs/method.md §10)."""

import msgspec
import numpy as np

from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.inference.manifest import Manifest
from nsfse_runtime.types import Reals

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
"""The features of a hit (retrieval/hit_features.py), in this order; then one for each view of the whole image."""
CLIP_SIGMA = 4.0  # standard deviations from the mean: features farther out are clipped


class Decision(msgspec.Struct, frozen=True):
    """A logistic regression on the F features of a hit and the products of any two of them.

    Attributes:
        mean: Means of the features [F]; `centre` in a bundle.
        std: Their standard deviations [F]; `spread` in a bundle.
        weights: Those of the regression [F + F(F+1)/2].
        bias: That of the regression.
        threshold: The confidence from which on a hit is a match.
        word_bounds: (low, high) over the boundary: a word is matched from `high` on, mismatched
            under `low`, and nothing is said between; None where none were fitted, for (0, 0).
    """

    mean: tuple[float, ...] = msgspec.field(name="centre")
    std: tuple[float, ...] = msgspec.field(name="spread")
    weights: tuple[float, ...]
    bias: float
    threshold: float
    word_bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        count = len(self.mean)
        if count < len(FEATURES) or len(self.std) != count or len(self.weights) != count + count * (count + 1) // 2:
            raise ValueError(
                f"it has {count} means, {len(self.std)} standard deviations and {len(self.weights)} weights"
            )
        if self.word_bounds and not self.word_bounds[0] <= 0 <= self.word_bounds[1]:
            raise ValueError(f"its word bounds are {self.word_bounds}, not on both sides of 0")
        if not all(std > 0 for std in self.std):
            raise ValueError("a standard deviation is not over 0")

    @classmethod
    def of(cls, manifest: Manifest) -> "Decision | None":
        """Read it from a bundle's manifest; None where it has none. Raises IntegrityError where it is no decision."""
        if not manifest.decision:
            return None
        try:
            decision = msgspec.convert(manifest.decision, cls)
            if decision.views != manifest.head.get("views", 0):
                raise msgspec.ValidationError(f"it is made for {decision.views} views")
        except msgspec.ValidationError as error:
            raise IntegrityError(
                f"the manifest of {manifest.name} has a decision that cannot be read ({error}); export it again"
            ) from error
        return decision

    @property
    def views(self) -> int:
        """Return how many views of an image it looks at."""
        return len(self.mean) - len(FEATURES)

    def confidence(self, features: Reals) -> Reals:
        """Return how likely each of K hits is right, 0...1, from their `features` [K, F]."""
        terms = products(standardised(features, np.array(self.mean), np.array(self.std)))
        return logistic(terms @ np.array(self.weights) + self.bias)


def standardised(features: Reals, mean: Reals, std: Reals) -> Reals:
    """Return `features` [N, F] in standard deviations `std` [F] from `mean` [F], at most CLIP_SIGMA of them."""
    return np.clip((features - mean) / std, -CLIP_SIGMA, CLIP_SIGMA)


def products(rows: Reals) -> Reals:
    """Return `rows` [N, F] and the products of any two of their columns, [N, F + F(F+1)/2]."""
    left, right = np.triu_indices(rows.shape[1])
    return np.concatenate([rows, rows[:, left] * rows[:, right]], 1)


def logistic(logits: Reals) -> Reals:
    """Return 1 / (1 + exp(−logits)), without overflow."""
    probabilities: Reals = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return probabilities
