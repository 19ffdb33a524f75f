"""The result of a query: hits, and the evidence of each word for each of them."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.json_schema import SCHEMA_VERSION
from nsfse_runtime.retrieval.hit_features import hit_confidences
from nsfse_runtime.retrieval.query import ComposedQuery
from nsfse_runtime.retrieval.text_warnings import TextReading
from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import ConfidenceModel, Floats, PairScores, Scorer, TargetFeatures


class WordEvidence(msgspec.Struct, frozen=True):
    """A word of the texts against an image: `score` is its best correspondence, `matched` when that is as it should.

    Attributes:
        word: The word as written.
        score: Its greatest correspondence with the image.
        matched: Whether `score` is over the boundary, or under it where `weight` is under 0. None
            where it is too near to be sure (Decision.word_bounds).
        weight: The word's share (κ) of the texts; where small, the verdict says little. Under 0 the
            word names what must not be there ("no stripes").
        regions: Its heatmap, where wanted: its correspondence with each cell of the image's grid,
            less the boundary, row by row (see query.heatmaps).
    """

    word: str
    score: float
    matched: bool | None
    weight: float
    regions: tuple[float, ...] | None = None


class Hit(msgspec.Struct, frozen=True):
    """An image found. `confidence`, 0 to 1, is how likely it is right; `is_match` whether that reaches the threshold.

    A hit on which the heaviest word of a text is mismatched is no match, and its confidence is
    under the threshold. Where a text was not read or not followed as a whole (see
    TextReading.whole) both are None.

    `metadata` has its columns, or those of `fields`. `duplicates` are the ids of images that were
    folded into it, with `fold_duplicates`.

    Both are None, too, for hits after the first `rerank` where the query has a confidence.
    `confidence` is also None where the model has none, nothing was re-ranked, or the query is not
    one image and one text. `is_match` then says whether the words of every text, by their weights,
    are over the boundary. Where no words are looked at `is_match` is None and `evidence` empty.
    """

    id: str
    path: str
    score: float
    is_match: bool | None
    evidence: tuple[WordEvidence, ...]
    confidence: float | None = None
    metadata: dict[str, str] = {}
    duplicates: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Hits, best first, and where the time went, in ms: decode, image, text, stage1, stage2, total.

    Attributes:
        schema_version: The version of this form.
        hits: The images found, best first: those from `offset` on.
        total: How many images fit the filter, those of the query left out; with `group_by` how many
            groups.
        has_match: Whether any of the `k` images found is a match by its confidence, those left out
            for `min_confidence` among them. None where no image has a confidence.
        threshold: The confidence from which on a hit is a match; None where none has one.
        timings_ms: Milliseconds by step.
        grid: (rows, columns) of the evidence's `regions`; None where there are none.
        references: With `heatmaps`, the words' evidence in each reference image, in their order.
        texts: How each text was read, those of `negative_texts` last.
        notes: The same as sentences.
    """

    schema_version: int = SCHEMA_VERSION
    hits: tuple[Hit, ...]
    total: int = 0
    has_match: bool | None = None
    threshold: float | None = None
    timings_ms: dict[str, float]
    grid: tuple[int, int] | None = None
    references: tuple[tuple[WordEvidence, ...], ...] = ()
    texts: tuple[TextReading, ...] = ()
    notes: tuple[str, ...] = ()


def build_hits(
    ids: Sequence[str],
    folder: str,
    query: ComposedQuery,
    ranking: Ranking,
    pair: PairScores,
    confidence: ConfidenceModel | None,
    targets: TargetFeatures | None,
    grid: tuple[int, int] | None = None,
    *,
    whole: bool = True,
) -> tuple[Hit, ...]:
    """Return the hits of `ranking`.

    Args:
        ids: The N ids of the gallery.
        folder: Where its images are.
        query: What was searched for.
        ranking: K rows, best first.
        pair: The words' scores of all K.
        confidence: The model of a match's confidence; None where there is none.
        targets: Features of the hits, which `confidence` and `grid` need.
        grid: (rows, columns) of the cells of a heatmap; None for no heatmaps.
        whole: Whether the texts were read as a whole; else no hit has a confidence or is called a
            match.
    """
    misses = query.misses_heaviest_word(pair)
    matches = query.satisfies_all_texts(pair) & ~misses
    confidences = heatmaps = None
    if confidence and targets and query.reference is not None and whole:
        confidences = hit_confidences(confidence, query.parts[0], query.reference, ranking, targets)
        if confidences is not None:
            below = np.nextafter(confidence.threshold, 0)
            confidences = np.where(misses, np.minimum(confidences, below), confidences)
            matches = confidences >= confidence.threshold
    bounds = _bounds(confidence)
    if grid and targets and query.tokens:
        heatmaps = _heatmaps(query, pair, targets, grid)
    return tuple(
        Hit(
            id=ids[row],
            path=str(Path(folder, ids[row])),
            score=float(ranking.scores[position]),
            is_match=bool(matches[position]) if query.tokens and whole else None,
            evidence=_evidence(query, pair, position, bounds, None if heatmaps is None else heatmaps[position]),
            confidence=None if confidences is None else float(confidences[position]),
        )
        for position, row in enumerate(ranking.rows)
    )


def reference_evidence(
    scorer: Scorer, query: ComposedQuery, grid: tuple[int, int] | None
) -> tuple[tuple[WordEvidence, ...], ...]:
    """Return the words' evidence in each of m reference images, as in a hit.

    Args:
        scorer: The model.
        query: What was searched for.
        grid: (rows, columns) of the cells of a heatmap.

    Returns:
        m times the evidence of all words; nothing without references, words or a grid.
    """
    if query.images is None or grid is None or not query.tokens:
        return ()
    pair = query.combined([scorer.score_pairs(part, query.images) for part in query.queries])
    found = _heatmaps(query, pair, query.images, grid)
    bounds = _bounds(scorer.info.confidence if query.reference is not None else None)
    return tuple(_evidence(query, pair, row, bounds, found[row]) for row in range(len(query.images)))


def _bounds(confidence: ConfidenceModel | None) -> tuple[float, float]:
    return (confidence and confidence.word_bounds) or (0.0, 0.0)


def _heatmaps(query: ComposedQuery, pair: PairScores, targets: TargetFeatures, grid: tuple[int, int]) -> Floats:
    """Return the words' heatmaps in K images, [K, L, R], less the boundary."""
    less: Floats = query.heatmaps(targets.regions[:, : grid[0] * grid[1]], grid[1]) - pair.boundary
    return less


def _evidence(
    query: ComposedQuery,
    pair: PairScores,
    position: int,
    bounds: tuple[float, float],
    heatmap: NDArray[np.floating] | None,
) -> tuple[WordEvidence, ...]:
    words = zip(query.tokens, pair.word_scores[position], query.word_weights, strict=True)
    return tuple(
        WordEvidence(
            word,
            float(score),
            _is_matched(float(score - pair.boundary), bounds, wanted=bool(kappa >= 0)),
            float(kappa),
            None if heatmap is None else tuple(map(float, heatmap[number])),
        )
        for number, (word, score, kappa) in enumerate(words)
    )


def _is_matched(over: float, bounds: tuple[float, float], *, wanted: bool) -> bool | None:
    """Return the verdict on a word whose score is `over` the boundary; one not wanted is matched under it."""
    low, high = bounds
    if wanted:
        return True if over >= high else False if over < low else None
    return True if over < -high else False if over >= -low else None
