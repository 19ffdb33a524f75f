"""What stage 1 found for one query: rows, scores, and where their features and metadata are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nsfse_runtime.types import Floats, PairScores, QueryFeatures, Rows, TargetFeatures


@dataclass(frozen=True, slots=True)
class Candidates:
    """What stage 1 found for one query.

    Attributes:
        folder: The folder of the images, "" where there is none.
        ids: Ids by row; a row is a number within these candidates, in the order of ids.
        rows: The rows [n] that were found, best first.
        scores: Their inner products [n] with the query.
        total: How many images might have been found.
        notes: What a user should know of the filter.
        targets: Returns the features of rows.
        vectors: Returns the vectors [n, d] of rows.
        metadata: Returns the columns and values of a row.
        pairs: Scores all of `rows` on the device, in their order; None where the features are on the host.
        duplicates: The ids of those near-duplicates of a row that were folded into it.
    """

    folder: str
    ids: Sequence[str]
    rows: Rows
    scores: Floats
    total: int
    notes: tuple[str, ...]
    targets: Callable[[Rows], TargetFeatures]
    vectors: Callable[[Rows], Floats]
    metadata: Callable[[int], dict[str, str]]
    pairs: Callable[[Sequence[QueryFeatures]], list[PairScores]] | None = None
    duplicates: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


def remembering(read: Callable[[Rows], TargetFeatures]) -> Callable[[Rows], TargetFeatures]:
    """Return `read` that need not read again what its last call has read: hits are among the candidates before."""
    last_rows, last = np.empty(0, np.intp), None

    def targets(rows: Rows) -> TargetFeatures:
        nonlocal last_rows, last
        if last is not None and len(rows) <= len(last_rows):
            places = np.minimum(np.searchsorted(last_rows, rows), len(last_rows) - 1)
            if np.array_equal(last_rows[places], rows):
                return last.take(places)
        found = read(rows)
        if (np.diff(rows) > 0).all():
            last_rows, last = rows, found
        return found

    return targets
