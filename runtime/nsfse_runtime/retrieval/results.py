"""What a query's answer is made of: hits, and the evidence of each word for each of them."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from nsfse_runtime import SCHEMA_VERSION
from nsfse_runtime.retrieval.hit_features import hit_confidences
from nsfse_runtime.retrieval.query import Asked
from nsfse_runtime.retrieval.text_warnings import TextReading
from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import ConfidenceModel, PairScores, TargetFeatures


class WordEvidence(msgspec.Struct, frozen=True):
    """A word of the texts against an image: `score` is its best correspondence, `matched` when that is as it should.

    `weight` is the word's share (κ) of what the texts say: where small, the verdict says little. Under 0 the word names
    what must not be there ("no stripes"): it is then `matched` where its correspondence is under the boundary.
    `regions` has, where heatmaps were asked for, how much the word is in each cell of the image's grid, less the
    boundary, row by row (see queries.heatmaps).
    """

    word: str
    score: float
    matched: bool
    weight: float
    regions: tuple[float, ...] | None = None


class Hit(msgspec.Struct, frozen=True):
    """An image found. `confidence`, 0 to 1, is how likely it is right; `is_match` whether that reaches the threshold.

    A hit on which the heaviest word of a text is mismatched is no match, and its confidence is under the threshold.
    Where a text was not read or not followed as a whole (see TextReading.whole) both are None.

    Where the model has no decision, nothing was re-ranked, or the query is not one image and one text, `confidence`
    is None and `is_match` says whether the words of every text as a whole, by their weights, are over the boundary.
    Where no words are looked at `is_match` is None and `evidence` empty.
    """

    id: str
    path: str
    score: float
    is_match: bool | None
    evidence: tuple[WordEvidence, ...]
    confidence: float | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Hits, best first, and where the time went, in ms: decode, image, text, stage1, stage2, total.

    `has_match` says whether any of the `k` images found is a match by its confidence, those left out for
    `min_confidence` among them: where it is False, nothing here matches. None where no image has a confidence.
    `threshold` is the confidence from which on a hit is a match, None where none has one. `grid` is (rows, columns) of
    the evidence's `regions`, None where there are none. `texts` say how each text was read, those of `negative_texts`
    last, and `notes` the same as sentences.
    """

    schema_version: int = SCHEMA_VERSION
    hits: tuple[Hit, ...]
    has_match: bool | None = None
    threshold: float | None = None
    timings_ms: dict[str, float]
    grid: tuple[int, int] | None = None
    texts: tuple[TextReading, ...] = ()
    notes: tuple[str, ...] = ()


def hits_of(
    ids: Sequence[str],
    folder: str,
    asked: Asked,
    ranking: Ranking,
    pair: PairScores,
    decision: ConfidenceModel | None,
    targets: TargetFeatures | None,
    grid: tuple[int, int] | None = None,
    *,
    whole: bool = True,
) -> tuple[Hit, ...]:
    """Return the hits of `ranking`, with the words' scores `pair` of all of them.

    `ids` [N] are those of the gallery, whose files lie in `folder`. `targets` are the hits' features, which a
    `decision` and the heatmaps of a `grid` of (rows, columns) need. Where the texts were not read as a `whole`, no
    hit has a confidence or is called a match.
    """
    struck = asked.struck(pair)
    matches = asked.fulfilled(pair) & ~struck
    confidences = heatmaps = None
    if decision and targets and asked.reference is not None and whole:
        confidences = hit_confidences(decision, asked.parts[0], asked.reference, ranking, targets)
        if confidences is not None:
            below = np.nextafter(decision.threshold, 0)
            confidences = np.where(struck, np.minimum(confidences, below), confidences)
            matches = confidences >= decision.threshold
    if grid and targets and asked.tokens:
        heatmaps = asked.heatmaps(targets.regions[:, : grid[0] * grid[1]], grid[1]) - pair.boundary
    return tuple(
        Hit(
            id=ids[row],
            path=str(Path(folder, ids[row])),
            score=float(ranking.scores[at]),
            is_match=bool(matches[at]) if asked.tokens and whole else None,
            evidence=_evidence(asked, pair, at, None if heatmaps is None else heatmaps[at]),
            confidence=None if confidences is None else float(confidences[at]),
        )
        for at, row in enumerate(ranking.rows)
    )


def _evidence(asked: Asked, pair: PairScores, at: int, heatmaps: np.ndarray | None) -> tuple[WordEvidence, ...]:
    words = zip(asked.tokens, pair.word_scores[at], asked.word_weights, strict=True)
    return tuple(
        WordEvidence(
            word,
            float(score),
            bool((score >= pair.boundary) == (kappa >= 0)),
            float(kappa),
            None if heatmaps is None else tuple(map(float, heatmaps[number])),
        )
        for number, (word, score, kappa) in enumerate(words)
    )
