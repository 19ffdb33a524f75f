"""Fit from where on a word is called matched or mismatched, so that either is true nine times in ten [O].

A word's margin is its correspondence less the boundary t_c, turned round where it names what must not be there. Which
hits fulfil a word is known from the attributes of their images, on queries that no weight was trained on.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nsfse.data import EvalQuery, EvaluationProtocol, HasAttributes, WordLabel
from nsfse.evaluation.abstention import HITS, RERANK
from nsfse.evaluation.evaluate import BATCH
from nsfse.evaluation.features import EncodedImages
from nsfse.evaluation.ranker import ProtocolRanker
from nsfse_runtime.types import Reals, Scorer

PRECISION = 0.9
LEAST_WORDS = 50  # fewer verdicts of one kind say nothing of its precision


def word_margins(
    scorer: Scorer,
    source: HasAttributes,
    protocol: EvaluationProtocol,
    phrasings: Sequence[tuple[EvalQuery, int]],
    encoded: EncodedImages,
) -> tuple[Reals, NDArray[np.bool_]]:
    """Return the margins [N] of labelled words on the first hits, and whether the image fulfils each [N].

    The hits are those of the whole gallery and of the gallery without the right answers.

    Args:
        scorer: The model.
        source: It knows the attributes of the images.
        protocol: Whose gallery is searched.
        phrasings: Queries, each with the position of one of its phrasings; those without `word_labels` are left out.
        encoded: Features of the images.
    """
    search = ProtocolRanker(scorer, protocol, encoded, RERANK)
    labelled = [(query, position) for query, position in phrasings if query.word_labels]
    margins: list[Reals] = [np.empty(0)]
    fulfilled: list[NDArray[np.bool_]] = [np.empty(0, np.bool_)]
    for start in range(0, len(labelled), BATCH):
        chunk = labelled[start : start + BATCH]
        for (query, _), composed in zip(chunk, search.composed(chunk), strict=True):
            if composed is None:
                continue
            for without in ((), query.targets):
                ranking = search.ranking(composed, query.reference, HITS, without)
                hits = [protocol.gallery[row] for row in ranking.rows]
                pair = ranking.pair or scorer.score_pairs(composed, search.targets(hits))
                signed = (pair.word_scores - pair.boundary) * np.where(composed.word_weights < 0, -1, 1)
                known = [source.attributes(hit) for hit in hits]
                for label, position in _named(query, composed.tokens):
                    rows = [row for row, values in enumerate(known) if label.attribute_key in values]
                    margins.append(signed[rows, position].astype(np.float64))
                    fulfilled.append(np.array([known[row][label.attribute_key] in label.values for row in rows], bool))
    return np.concatenate(margins), np.concatenate(fulfilled)


def _named(query: EvalQuery, tokens: Sequence[str]) -> list[tuple[WordLabel, int]]:
    """Return each label with the positions of its words."""
    return [
        (label, position)
        for position, token in enumerate(tokens)
        for label in query.word_labels
        if token.lower() in label.words
    ]


def fit_word_bounds(margins: Reals, fulfilled: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Return (low, high): a word is mismatched under `low` ≤ 0, matched from `high` ≥ 0 on, and unsure between.

    Each is the nearest to 0 at which PRECISION of the verdicts are true. None where too few are known.
    """
    high = _least(margins, fulfilled)
    low = _least(-margins, ~fulfilled)
    return None if high is None or low is None else (0.0 - low, high)


def _least(margins: Reals, right: NDArray[np.bool_]) -> float | None:
    """Return the least bound ≥ 0 from which on a share PRECISION is `right`; None without LEAST_WORDS there."""
    margins, right = margins[margins >= 0], right[margins >= 0]
    order, counts = np.argsort(-margins, kind="stable"), np.arange(1, len(margins) + 1)
    precision = np.cumsum(right[order]) / counts
    enough = np.flatnonzero((precision >= PRECISION) & (counts >= LEAST_WORDS))
    return float(margins[order[enough[-1]]]) if len(enough) else None
