"""Two stages: search over all vectors, then the whole score over the best; ties go to the lower row.

Scores tie where rounding alone can separate them (TIE). The same image in two rows may have two
scores that differ in the last bit, by the processor's kernels and by its batch. That must not
decide an order.

The result of stage 1 does not depend on how it was found. A matrix product, int8 codes or an index
may narrow the gallery down. `best_of` then scores what is left, row by row and always in the same
order of additions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nsfse_runtime.types import Floats, Mask, PairScores, QueryFeatures, RankingMode, Rows, Scorer, TargetFeatures

TIE = 1e-6
"""Scores tie with the best of them where they are within TIE · max(1, its size) of it."""
# Regions are fetched and scored so many images at a time, which bounds the memory of an exhaustive
# ranking.
_PAIR_CHUNK = 512
# Copying a row costs about as much as multiplying so many in place.
_COPY_COST = 4


@dataclass(frozen=True, slots=True)
class Ranking:
    """The `k` best rows of a gallery with their scores.

    Attributes:
        rows: Rows [k], best first.
        scores: Scores [k]: S of the re-ranked rows, then stage 1's inner products. The two do not
            compare.
        pair: The whole score of the first M rows, those re-ranked; None where none was.
        cosines: Stage 1's inner products [k] of all rows.
        mean: Mean of S over all that were re-ranked, returned or not; 0 where none was.
    """

    rows: Rows
    scores: Floats
    pair: PairScores | None
    cosines: Floats
    mean: float

    def window(self, start: int, stop: int) -> "Ranking":
        """Return the places from `start` to `stop` of a ranking whose rows were re-ranked all, or none."""
        places = slice(start, stop)
        pair = self.pair and select(self.pair, np.arange(len(self.pair.score))[places])
        return Ranking(self.rows[places], self.scores[places], pair, self.cosines[places], self.mean)


def pairs_scored(mode: RankingMode, wanted: int, images: int) -> int:
    """Return how many candidates stage 2 scores where `wanted` are to be re-ranked: by its mode none or all of them."""
    return {RankingMode.ONE_STAGE: 0, RankingMode.TWO_STAGE: wanted, RankingMode.ALL_PAIRS: images}[mode]


def exact_search(vectors: Floats, query: Floats, k: int, mask: Mask | None = None) -> tuple[Rows, Floats]:
    """Find the `k` rows of `vectors` [N, d] with the largest inner product with `query` [d] → rows [k], scores [k].

    Args:
        vectors: Rows of unit length [N, d].
        query: The query's vector [d].
        k: How many to find; fewer are found where fewer may be.
        mask: Which rows [N] may be found; None for all.

    Returns:
        Rows [k] and scores [k], best first; ties (TIE) come in the order of rows.
    """
    if not len(vectors):
        return np.empty(0, np.intp), np.empty(0, np.float32)
    rows = None if mask is None else np.flatnonzero(mask)
    if rows is None or len(rows) * _COPY_COST > len(vectors):
        scores = vectors @ query if rows is None else (vectors @ query)[rows]
    else:
        scores = vectors[rows] @ query
    if (k := min(k, len(scores))) < 1:
        return np.empty(0, np.intp), np.empty(0, np.float32)
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= last - slack(query, last))
    return best_of(vectors, query, candidates if rows is None else rows[candidates], k)


def best_of(vectors: Floats, query: Floats, rows: Rows, k: int) -> tuple[Rows, Floats]:
    """Return the `k` best of `rows` and their scores, each of which depends on its own row alone."""
    dense = 2 * len(rows) > len(vectors)
    scores = np.vecdot(vectors, query)[rows] if dense else np.vecdot(vectors[rows], query)
    order, scores = best_first(scores, rows)
    return rows[order[:k]], scores[:k]


def best_first(scores: Floats, rows: Rows) -> tuple[Rows, Floats]:
    """Return the positions [n] of `scores` [n], best first and ties by `rows` [n], and the scores [n] in that order.

    The first of a tie is never tied with a better score: a chain of small steps is no tie of its
    two ends.

    Args:
        scores: Scores [n], in any order.
        rows: The row [n] of each score.

    Returns:
        Positions [n] and scores [n]; scores that tie (TIE) are returned as the greatest of them.
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order].astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN is refused elsewhere
        ends = np.searchsorted(-falling, TIE * np.maximum(1, np.abs(falling)) - falling, side="right")
    if np.array_equal(ends, np.arange(1, len(ends) + 1)):  # no ties
        return order, scores[order]
    starts, start, ends = [], 0, ends.tolist()
    while start < len(ends):
        starts.append(start)
        start = max(ends[start], start + 1)
    tie = np.repeat(np.arange(len(starts)), np.diff([*starts, len(ends)]))
    return order[np.lexsort((rows[order], tie))], scores[order[starts]][tie]


def slack(query: Floats, score: float) -> float:
    """Return how far below `score`, the least that is wanted, a row's product with `query` [d] may be and still tie."""
    return rounding(query) + 2 * TIE * max(1.0, abs(float(score)))


def rounding(query: Floats) -> float:
    """Return how far two float32 inner products of `query` and a unit row can differ, in any order of additions."""
    return 2 * len(query) * float(np.finfo(np.float32).eps * np.linalg.norm(query))


def rank(
    scorer: Scorer,
    query: QueryFeatures,
    vectors: Floats,
    fetch: Callable[[Rows], TargetFeatures],
    k: int,
    rerank: int,
    mask: Mask | None = None,
) -> Ranking:
    """Rank the gallery `vectors` [N, d]: stage 1, then the first `rerank` of it again by the whole score S.

    Args:
        scorer: Scores pairs of a query and images.
        query: The composed query.
        vectors: The gallery's vectors [N, d].
        fetch: Returns the features of rows.
        k: How many rows to return.
        rerank: How many candidates to re-rank; 0 is stage 1 alone, N scores every pair.
        mask: Which rows [N] may be found; None for all.

    Returns:
        The `k` best rows; those not re-ranked follow in stage 1's order.
    """
    rows, scores = exact_search(vectors, query.vector, max(k, rerank), mask)
    return rerank_rows(lambda first: score_rows(scorer, [query], first, fetch)[0], rows, scores, k, rerank)


def rerank_rows(score: Callable[[Rows], PairScores], rows: Rows, scores: Floats, k: int, rerank: int) -> Ranking:
    """Do the second stage: order the first `rerank` of stage 1's `rows` and `scores` by S; return `k`.

    `score` returns the S of rows, which ascend.
    """
    first = rows[:rerank]
    if not len(first):
        return Ranking(rows[:k], scores[:k], None, scores[:k], 0.0)
    by_row = np.argsort(first)
    return ordered(rows, scores, by_row, score(first[by_row]), k)


def ordered(rows: Rows, scores: Floats, by_row: Rows, pair: PairScores, k: int) -> Ranking:
    """Order stage 1's `rows` by the scores S of the first M of them; return `k`.

    `pair` holds the scores of those M in the order of rows, as `by_row` [M] sorts them; ties (TIE)
    keep that order.
    """
    first = rows[: len(by_row)][by_row]
    order, descending = best_first(pair.score, first)
    best = PairScores(descending[:k], pair.word_scores[order[:k]], pair.boundary)
    rest = slice(len(first), max(k, len(first)))
    ranked = np.concatenate([first[order], rows[rest]])[:k]
    ranked_scores = np.concatenate([best.score, scores[rest]])[:k].astype(np.float32)
    cosines = np.concatenate([scores[by_row[order]], scores[rest]])[:k]
    return Ranking(ranked, ranked_scores, best, cosines, float(pair.score.mean()))


def select(pair: PairScores, order: Rows) -> PairScores:
    """Return the scores of the candidates `order` [k], in that order."""
    return PairScores(pair.score[order], pair.word_scores[order], pair.boundary)


def score_rows(
    scorer: Scorer, queries: Sequence[QueryFeatures], rows: Rows, fetch: Callable[[Rows], TargetFeatures]
) -> list[PairScores]:
    """Score each of `queries` against the images of `rows` [K], a bounded number at a time, each fetched once."""
    chunks: list[list[PairScores]] = [[] for _ in queries]
    for start in range(0, max(len(rows), 1), _PAIR_CHUNK):
        targets = fetch(rows[start : start + _PAIR_CHUNK])
        for query, parts in zip(queries, chunks, strict=True):
            parts.append(scorer.score_pairs(query, targets))
    return [
        PairScores(
            np.concatenate([part.score for part in parts]),
            np.concatenate([part.word_scores for part in parts]),
            parts[0].boundary,
        )
        for parts in chunks
    ]
