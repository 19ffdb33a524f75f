"""Whether a model looks at the garment: first hits that have the requested colour on their background alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nsfse.evaluation.metrics import Weights
from nsfse.evaluation.results import QueryRanking

__all__ = ["background_watch"]


def background_watch(
    rankings: Sequence[QueryRanking],
    row_of: Mapping[str, int],
    targets: Sequence[frozenset[int]],
    weights: Weights,
) -> dict[str, Any]:
    """Return how often a wrong first hit of a colour query has the colour on its background alone.

    Args:
        rankings: Every phrasing of every query.
        row_of: Rows of the gallery by id.
        targets: The right rows of each ranking.
        weights: Weights [Q] of the rankings.

    Returns:
        `wrong`, the number of colour queries whose first hit is wrong; `percent` of them with the colour on the
        background alone; `by_chance`, the percentage if wrong hits were drawn evenly. The two are None where `wrong`
        is 0. Empty where the set knows no backgrounds.
    """
    known = [number for number, ranking in enumerate(rankings) if ranking.query.background_only is not None]
    if not known:
        return {}
    found, chance, counted = [], [], []
    for number in known:
        ranking, right = rankings[number], targets[number]
        first = int(ranking.rows[0])
        if first in right:
            continue
        on_background = {row_of[item] for item in ranking.query.background_only or () if item in row_of}
        possible = {*row_of.values()} - right - {row_of.get(ranking.query.reference, -1)}
        found.append(first in on_background)
        chance.append(len(on_background & possible) / len(possible))
        counted.append(weights[number])
    if not sum(counted):
        return {"wrong": 0, "percent": None, "by_chance": None}
    percent, by_chance = (round(100 * float(np.average(part, weights=counted)), 4) for part in (found, chance))
    return {"wrong": round(float(sum(counted))), "percent": percent, "by_chance": by_chance}
