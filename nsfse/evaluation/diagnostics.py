"""The details of a score: the worst and best queries with their hits, and histograms of correspondences.

Works on what `nsfse.evaluation.evaluate` ranked and encoded, for a run and a bundle alike. Nothing here needs torch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nsfse.data import EvalQuery
from nsfse.evaluation import metrics
from nsfse.evaluation.features import EncodedImages
from nsfse.evaluation.ranker import BALANCES, Mode, ProtocolRanker
from nsfse.evaluation.reference_head import correspondences
from nsfse.evaluation.results import Diagnosis, ProtocolResult, QueryExample, QueryRanking, Reals, ScoreHistogram
from nsfse_runtime.errors import NsfseError
from nsfse_runtime.retrieval.query import ComposedQuery
from nsfse_runtime.retrieval.results import Hit, build_hits
from nsfse_runtime.retrieval.text_warnings import readings
from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import Scorer, no_evidence

__all__ = ["HITS", "diagnose"]

EXAMPLES, HITS = 6, 6
"""How many of the worst and of the best queries are shown, with how many hits."""
SAMPLED, TARGETS, OTHERS, BINS = 200, 4, 8, 44
"""Queries whose correspondences are sampled, targets and other images of each, and bins of a histogram."""
SEED = 0


def diagnose(scorer: Scorer, result: ProtocolResult, encoded: EncodedImages) -> Diagnosis:
    """Find the worst and best queries of one protocol, and the histograms of its correspondences.

    Args:
        scorer: The model that was scored.
        result: What `evaluate` returned for the protocol.
        encoded: The features of the protocol's images, by the same model.

    Returns:
        Examples with their hits, and histograms of word and probe correspondences.
    """
    diagnostics = _Diagnostics(scorer, result, encoded)
    worst, best = diagnostics.extremes()
    words, probes = diagnostics.histograms()
    return Diagnosis(result, tuple(diagnostics.examples(worst)), tuple(diagnostics.examples(best)), words, probes)


class _Diagnostics:
    """One protocol with its ranker, and the gallery rows of each query's targets."""

    def __init__(self, scorer: Scorer, result: ProtocolResult, encoded: EncodedImages) -> None:
        self._scorer, self._result, self._gallery = scorer, result, result.protocol.gallery
        self._ranker = ProtocolRanker(scorer, result.protocol, encoded, result.rerank)
        self._row_of = {item: row for row, item in enumerate(self._gallery)}
        self._mode: Mode = result.mode  # type: ignore[assignment]
        self._rankings = [ranking for ranking in result.rankings if self._target_rows(ranking.query)]

    def _target_rows(self, query: EvalQuery) -> frozenset[int]:
        """Return the gallery rows of a query's targets that may be hits."""
        removed = query.reference_ids if self._result.protocol.remove_reference else ()
        targets = [item for item in query.targets if item not in removed]
        return frozenset(self._row_of[item] for item in targets if item in self._row_of)

    def extremes(self) -> tuple[list[tuple[QueryRanking, int]], list[tuple[QueryRanking, int]]]:
        """Return the worst and the best rankings, each with the rank of its first target.

        The rank decides, then average precision, then a seeded random order. A query is once in either.
        """
        orders = [ranking.rows for ranking in self._rankings]
        targets = [self._target_rows(ranking.query) for ranking in self._rankings]
        ranks = metrics.ranks_of_targets(orders, targets).tolist()
        random = np.random.default_rng(SEED).permutation(len(orders)).tolist()
        precision = [metrics.mean_average_precision_at_k([o], [t], 10) for o, t in zip(orders, targets, strict=True)]
        best = sorted(range(len(orders)), key=lambda number: (ranks[number], -precision[number], random[number]))
        worst = sorted(range(len(orders)), key=lambda number: (-ranks[number], precision[number], random[number]))
        return (
            [(self._rankings[number], ranks[number]) for number in self._first_per_query(worst) if ranks[number] > 0],
            [(self._rankings[number], ranks[number]) for number in self._first_per_query(best) if ranks[number] == 0],
        )

    def _first_per_query(self, order: Sequence[int]) -> list[int]:
        """Return the first EXAMPLES of `order` that are phrasings of different queries."""
        first: dict[int, int] = {}
        for number in order:
            first.setdefault(id(self._rankings[number].query), number)
        return list(first.values())[:EXAMPLES]

    def examples(self, chosen: Sequence[tuple[QueryRanking, int]]) -> Iterator[QueryExample]:
        """Rank chosen queries again for what their ranking lacks: scores, matches, evidence."""
        phrasings = [(ranking.query, ranking.position) for ranking, _ in chosen]
        composed = self._ranker.compose_queries(phrasings, BALANCES[self._mode])
        for (ranking, rank), query in zip(chosen, composed, strict=True):
            if isinstance(query, NsfseError):  # it was ranked by its image alone, which has no evidence to show
                continue
            yield self._example(ranking, None if rank == metrics.MISS else rank, query)

    def _example(self, ranking: QueryRanking, rank: int | None, query: ComposedQuery) -> QueryExample:
        texts = ranking.query.texts_at(ranking.position), ranking.query.negative_texts
        whole = all(text.whole for text in readings(self._scorer.tokenizer, *texts, query))
        mask = self._ranker.mask(ranking.query.reference_ids)
        candidates = len(self._gallery) if mask is None else int(mask.sum())
        head = self._ranker.answer(query, mask, min(HITS, candidates))
        targets = self._target_rows(ranking.query)
        missed = None
        if not targets.intersection(ranking.rows[:HITS].tolist()):
            row = min(targets) if rank is None else int(ranking.rows[rank])
            missed = self._hits(query, self._rank_row(query, row, head.mean), whole)[0]
        return QueryExample(ranking.query, ranking.position, rank, self._hits(query, head, whole), missed)

    def _rank_row(self, query: ComposedQuery, row: int, mean: float) -> Ranking:
        """Return one row as the search would have ranked it; `mean` is that of S over the re-ranked."""
        rows = np.array([row])
        cosines = self._ranker.cosines(query, rows)
        reranked = query.pairs_scored(self._scorer.info.mode, self._result.rerank, len(self._gallery)) > 0
        pair = self._ranker.pairs(query, rows) if reranked else None
        return Ranking(rows, cosines if pair is None else pair.score, pair, cosines, mean)

    def _hits(self, query: ComposedQuery, ranking: Ranking, whole: bool) -> tuple[Hit, ...]:
        pair = ranking.pair
        if pair is None:
            pair = self._ranker.pairs(query, ranking.rows) if query.tokens else no_evidence(ranking.scores)
        targets = self._ranker.targets([self._gallery[row] for row in ranking.rows])
        decision = self._scorer.info.confidence
        return build_hits(self._gallery, "", query, ranking, pair, decision, targets, whole=whole)

    def histograms(self) -> tuple[ScoreHistogram | None, ScoreHistogram | None]:
        """Return the histograms of word and of probe correspondences over at most SAMPLED queries."""
        boundaries = self._scorer.info.boundaries
        plain = [(ranking.query, ranking.position) for ranking in self._rankings if ranking.query.is_simple]
        if boundaries is None or not plain:
            return None, None
        numbers = np.linspace(0, len(plain), min(SAMPLED, len(plain)), endpoint=False).astype(int)
        chosen = [plain[number] for number in numbers]
        random = np.random.default_rng(SEED)
        words, probes = _Samples(), _Samples()
        for (query, _), composed in zip(chosen, self._ranker.composed(chosen), strict=True):
            if composed is None:
                continue
            for kind, ids in enumerate(self._sample_images(query, random)):
                if ids:
                    x, y = correspondences(composed, self._ranker.targets(ids), boundaries.views)
                    words.add(kind, x, np.maximum(0, composed.word_weights))  # negated words have a weight under 0
                    probes.add(kind, y, composed.probe_weights)
        return words.histogram(boundaries.cross), probes.histogram(boundaries.visual)

    def _sample_images(self, query: EvalQuery, random: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
        """Return some targets, other images and hard negatives of a query."""
        excluded = {*query.reference_ids, *query.targets, *query.hard_negatives}
        targets = random.permutation(sorted(self._target_rows(query)))[:TARGETS].tolist()
        others = {self._gallery[row] for row in random.integers(len(self._gallery), size=OTHERS)} - excluded
        near = [item for item in query.hard_negatives if item in self._row_of]
        return [self._gallery[row] for row in targets], sorted(others), near[:TARGETS]


class _Samples:
    """Values with their weights, of three kinds: matched, mismatched, near."""

    def __init__(self) -> None:
        self._values: list[list[Reals]] = [[], [], []]
        self._weights: list[list[Reals]] = [[], [], []]

    def add(self, kind: int, values: NDArray[np.floating], weights: NDArray[np.floating]) -> None:
        """Add `values` [K, L], each row weighted by `weights` [L]."""
        self._values[kind].append(values.ravel().astype(np.float64))
        self._weights[kind].append(np.tile(weights, len(values)).astype(np.float64))

    def histogram(self, boundary: float) -> ScoreHistogram | None:
        """Return the histogram about `boundary`; None without matched or without mismatched values."""
        kinds = [
            (np.concatenate(values), np.concatenate(weights)) if values else (np.empty(0), np.empty(0))
            for values, weights in zip(self._values, self._weights, strict=True)
        ]
        matched, mismatched, near = kinds
        if not (matched[1].sum() > 0 and mismatched[1].sum() > 0):
            return None
        values = np.concatenate([values for values, _ in kinds])
        edges = np.linspace(min(0.0, float(values.min())), max(1.0, float(values.max())), BINS + 1)
        return ScoreHistogram(
            boundary,
            edges,
            _percentages(matched, edges),
            _percentages(mismatched, edges),
            _percentages(near, edges) if near[1].sum() > 0 else None,
            missed=_percentage_over(matched, -boundary, -1),
            alarms=_percentage_over(mismatched, boundary, 1),
        )


def _percentages(samples: tuple[Reals, Reals], edges: Reals) -> Reals:
    values, weights = samples
    percentages: Reals = 100 * np.histogram(values, edges, weights=weights)[0] / weights.sum()
    return percentages


def _percentage_over(samples: tuple[Reals, Reals], boundary: float, sign: int) -> float:
    """Return the percentage, by weight, of values times `sign` over `boundary`."""
    values, weights = samples
    return float(100 * weights[sign * values > boundary].sum() / weights.sum())
