"""Scores of what an engine found, computed again as a file's search computes them: in float32, ties by id."""

from collections.abc import Sequence

import numpy as np

from nsfse_runtime.search.two_stage import best_of
from nsfse_runtime.stores.protocol import Found
from nsfse_runtime.types import Floats

SPARE = 50
"""So many images beyond those wanted does an engine find: it rounds, and orders ties in its own way."""


def rescored(
    images: Sequence[tuple[str, Floats]], query: Floats, k: int, total: int, notes: tuple[str, ...] = ()
) -> Found:
    """Return the `k` best of `images`, ids with their vectors [d], by the inner product with `query` [d]."""
    ordered = sorted(images, key=lambda image: image[0])
    vectors = np.array([vector for _, vector in ordered], np.float32).reshape(len(ordered), len(query))
    best, scores = best_of(vectors, query, np.arange(len(ordered)), k)
    return Found(tuple(ordered[row][0] for row in best), scores, total, notes)
