"""Near-duplicates among the candidates of stage 1 folded into the best of them (docs/queries.md §11)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nsfse_runtime.retrieval.candidates import Candidates
from nsfse_runtime.types import Floats

_ROUNDING = 1e-5  # an image's product with its own copy may be so far below 1


def fold_duplicates(search: Callable[[int], Candidates], depth: int, least: float) -> Candidates:
    """Find `depth` candidates none of which is a near-duplicate of a better one.

    Whether a candidate is folded depends on better ones alone: a deeper search has the same first candidates.

    Args:
        search: Does stage 1 to a depth.
        depth: How many candidates to find; fewer are found where there are fewer.
        least: The cosine of two images' vectors from which on they are near-duplicates.

    Returns:
        The candidates, with the `duplicates` of each that were met.
    """
    searched = depth
    while True:
        found = search(searched)
        copied_by = _originals(found.vectors(found.rows), least - _ROUNDING)
        kept = np.flatnonzero(copied_by == np.arange(len(copied_by)))
        if len(kept) >= depth or len(found.rows) < searched:
            break
        searched *= 2
    kept = kept[:depth]
    duplicates = {
        int(found.rows[place]): tuple(found.ids[row] for row in found.rows[copied_by == place][1:])
        for place in kept[np.bincount(copied_by, minlength=len(copied_by))[kept] > 1]
    }
    return replace(found, rows=found.rows[kept], scores=found.scores[kept], duplicates=duplicates)


def _originals(vectors: Floats, least: float) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return for each of `vectors` [n, d] the place [n] of the first it is a near-duplicate of: its own for the first.

    Only vectors that are no near-duplicates themselves have any.
    """
    places = np.arange(len(vectors))
    for place in range(len(vectors)):
        if places[place] == place:
            later = places[place + 1 :]
            copies = vectors[place + 1 :] @ vectors[place] >= least
            later[copies & (later == np.arange(place + 1, len(vectors)))] = place
    return places
