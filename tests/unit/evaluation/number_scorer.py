"""A scorer small enough to read: an image is one number, a text names the numbers it wants, the best first."""

import numpy as np

from nsfse_runtime.errors import TextError
from nsfse_runtime.types import PairScores, QueryFeatures, TargetFeatures
from tests.galleries import PLAIN_INFO


class NumberScorer:
    """Image n (all pixels n) has the n-th unit vector; the text "3 1" ranks 3 first, then 1, all others tie.

    A text with "swap" makes stage 2 turn the order round; one without a number cannot be read.
    """

    fingerprint = "numbers"
    image_size = (2, 3)
    info = PLAIN_INFO
    tokenizer = None

    def __init__(self, count=16):
        self.count = count
        self.batches = []

    def encode_images(self, pixels):
        self.batches.append(len(pixels))
        vectors = np.eye(self.count, dtype=np.float32)[pixels[:, 0, 0, 0]]
        return TargetFeatures(vectors, vectors[:, None])

    def sentence(self, texts):
        return np.stack([self._wish(text) for text in texts])

    def compose(self, references, texts):
        assert len(references) == len(texts)
        return [self._query(text) for text in texts]

    def score_pairs(self, query, targets):
        sign = -1 if "swap" in query.tokens else 1
        score = sign * targets.regions[:, 0] @ query.vector
        return PairScores(score, score[:, None], 0.0)

    def _wish(self, text):
        numbers = [int(word) for word in text.split() if word.isdigit()]
        if not numbers:
            raise TextError(f"no known word in {text!r}")
        wish = np.zeros(self.count, np.float32)
        wish[numbers] = 1 - 0.01 * np.arange(len(numbers), dtype=np.float32)
        return wish

    def _query(self, text):
        ones = np.ones((1, 1), np.float32)
        return QueryFeatures(self._wish(text), ones, ones, ones[0], ones[0], tuple(text.split()))


def number_images(ids):
    """Draw the images "0", "1", ... of NumberScorer: [B, 2, 3, 3]."""
    return np.stack([np.full((2, 3, 3), int(item), np.uint8) for item in ids])
