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
