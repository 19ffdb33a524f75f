"""Abstention: does the model say so where nothing matches? [O]

Every query is ranked twice: in the whole gallery, and in the gallery emptied of its right answers. A confidence ought
to be higher in the former. Nothing here needs torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.features import EncodedImages
from nsfse.evaluation.metrics import auc
from nsfse.evaluation.ranker import ProtocolRanker
from nsfse_runtime.inference.confidence import FEATURES
from nsfse_runtime.retrieval.hit_features import hit_features
from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import QueryFeatures, Reals, Scorer

__all__ = ["FALSE_ALARMS", "HITS", "RERANK", "CalibrationSample", "Phrasings", "compose_samples", "score_abstention"]

HITS, RERANK = 10, 100  # the defaults of Retriever.query
FALSE_ALARMS = 0.1
"""Share of complete galleries of which it may be said, at most, that nothing in them matches."""
MOST_QUERIES = 1000
"""Queries that are ranked twice, spread evenly over a protocol's, in one phrasing after another."""
BATCH = 64
COVERAGES = 10

Phrasings = Sequence[tuple[EvalQuery, int]]
"""Queries, each with the position of one of its phrasings."""


@dataclass(frozen=True)
class CalibrationSample:
    """One query's hits in a whole gallery and in the same without its right answers.

    `complete` [K, F] and `without` [M, F] are the features of the first hits (see inference/confidence.py), `right` [K]
    says which of the former are right.
    """

    complete: Reals
    right: NDArray[np.bool_]
    without: Reals


def compose_samples(
    scorer: Scorer,
    protocol: EvaluationProtocol,
    phrasings: Phrasings,
    encoded: EncodedImages,
    *,
    unanswered: bool = False,
    rerank: int = RERANK,
) -> Iterator[CalibrationSample]:
    """Rank the protocol's gallery for each of `phrasings` as serving does, with and without the right answers.

    A query's own reference is no hit. Queries that serving would refuse are left out. So are those that the gallery
    cannot answer, unless `unanswered`: then they are ranked once, for there is nothing to take away.
    """
    search = ProtocolRanker(scorer, protocol, encoded, rerank)
    gallery = frozenset(protocol.gallery)
    boundaries = scorer.info.boundaries
    views = boundaries.views if boundaries else 0

    def features(query: QueryFeatures, reference: str, ranking: Ranking) -> Reals:
        targets = search.targets([protocol.gallery[row] for row in ranking.rows])
        rows = hit_features(query, search.targets([reference]).vectors[0], ranking, targets, views)
        return np.empty((0, len(FEATURES) + views)) if rows is None else rows

    for start in range(0, len(phrasings), BATCH):
        chunk = phrasings[start : start + BATCH]
        for (query, _), composed in zip(chunk, search.composed(chunk), strict=True):
            answers = gallery.intersection(query.targets) - {query.reference}
            if composed is None or not (answers or unanswered):
                continue
            whole = features(composed, query.reference, ranking := search.ranking(composed, query.reference, HITS))
            right = np.array([protocol.gallery[row] in answers for row in ranking.rows], np.bool_)
            rest = search.ranking(composed, query.reference, HITS, answers) if answers else None
            without = whole[:0] if rest is None else features(composed, query.reference, rest)
            yield CalibrationSample(whole, right, without)


def score_abstention(
    scorer: Scorer, protocol: EvaluationProtocol, queries: Sequence[EvalQuery], encoded: EncodedImages, rerank: int
) -> dict[str, Any] | None:
    """Score how well the confidence tells whole galleries from emptied ones; a query's own reference is no hit.

    Args:
        scorer: The model.
        protocol: Whose gallery is searched.
        queries: Its queries that can be scored; those of one image and one text are taken.
        encoded: Features of the images.
        rerank: How many candidates stage 2 scores.

    Returns:
        The scores as evaluate's JSON has them (docs/benchmarks.md); None without a confidence or without queries.
    """
    confidence = scorer.info.confidence
    simple = [query for query in queries if query.is_simple and query.reference and query.targets]
    if confidence is None or not simple or not rerank:
        return None
    chosen = [simple[at] for at in np.linspace(0, len(simple), min(MOST_QUERIES, len(simple)), False, dtype=int)]
    phrasings = [(query, number % len(query.texts)) for number, query in enumerate(chosen)]
    without_reference = replace(protocol, remove_reference=True)
    samples = [*compose_samples(scorer, without_reference, phrasings, encoded, rerank=rerank)]
    samples = [sample for sample in samples if len(sample.complete)]
    if not samples:
        return None
    complete = [confidence.confidence(sample.complete) for sample in samples]
    emptied = [confidence.confidence(sample.without) for sample in samples]
    best, rest = (np.array([each.max(initial=0.0) for each in lists]) for lists in (complete, emptied))
    first = np.array([each[0] if len(each) else 0.0 for each in (*complete, *emptied)])
    right = np.array([*(sample.right[0] for sample in samples), *[False] * len(samples)])
    return summary(best, rest, confidence.threshold) | risk_coverage(first, right)


def summary(complete: Reals, emptied: Reals, threshold: float) -> dict[str, Any]:
    """Return how well the best confidence tells `complete` [N] galleries from `emptied` [N] ones, in percent."""
    fixed = float(np.quantile(complete, FALSE_ALARMS))
    return {
        "queries": len(complete),
        "auroc": _percent(auc(emptied, complete)),
        "no_match@10": _percent((emptied < fixed).mean()),
        "threshold": threshold,
        "no_match": _percent((emptied < threshold).mean()),
        "false_alarms": _percent((complete < threshold).mean()),
    }


def risk_coverage(confidence: Reals, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the risk at each coverage, and its mean over all of them (AURC), in percent.

    Lists are answered in the order of the `confidence` [N] of their first hit; risk is the share of answered ones whose
    first hit is not `right` [N]. Lists of one confidence are answered together.
    """
    order = np.argsort(-confidence, kind="stable")
    _, ends, counts = np.unique(-confidence[order], return_index=True, return_counts=True)
    last = np.repeat(ends + counts, counts)
    risks = 1 - np.cumsum(right[order])[last - 1] / last
    steps = [max(1, round(len(risks) * step / COVERAGES)) for step in range(1, COVERAGES + 1)]
    points = [{"coverage": _percent(count / len(risks)), "risk": _percent(risks[count - 1])} for count in steps]
    return {"aurc": _percent(risks.mean()), "risk_coverage": points}


def _percent(share: float) -> float:
    return round(100 * float(share), 4)
