"""What lies behind a score: the worst and the best queries with their hits, and how correspondences are spread.

Works on what `nsfse.evaluation.evaluate` ranked and encoded, for a run and a bundle alike. Nothing here needs torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nsfse.data import EvalQuery
from nsfse.evaluation import metrics
from nsfse.evaluation.features import EncodedImages
from nsfse.evaluation.ranker import BALANCES, Mode, ProtocolRanker
from nsfse.evaluation.reference_head import correspondences
from nsfse.evaluation.scores import ProtocolResult, QueryRanking
from nsfse_runtime.errors import NsfseError
from nsfse_runtime.retrieval.query import Asked
from nsfse_runtime.retrieval.results import Hit, hits_of
from nsfse_runtime.retrieval.text_warnings import readings
from nsfse_runtime.search.two_stage import Ranking
from nsfse_runtime.types import Scorer, no_evidence

__all__ = ["Diagnosis", "QueryExample", "ScoreHistogram", "diagnose"]

SHOWN, HITS = 6, 6
"""How many queries of either kind are shown, with how many hits."""
SAMPLED, MATCHES, OTHERS, BINS = 200, 4, 8, 44
"""Queries whose correspondences are looked at, right answers and other images of each, and bins of a histogram."""
SEED = 0
Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QueryExample:
    """A query with its first hits.

    `rank` is that of the first right answer, from 0, None where the ranking does not reach it; that answer is `missed`
    where it is not among the hits.
    """

    query: EvalQuery
    position: int
    rank: int | None
    hits: tuple[Hit, ...]
    missed: Hit | None


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """How correspondences of one kind are spread about their `boundary`: percent of all by bin, `edges` [B+1].

    `matched` and `mismatched` [B] are those with right answers and with other images, `near` [B] those with hard
    negatives, None where there are none. `missed` is the percentage of matched ones under the boundary, `alarms` that
    of mismatched ones over it.
    """

    boundary: float
    edges: Reals = field(repr=False)
    matched: Reals = field(repr=False)
    mismatched: Reals = field(repr=False)
    near: Reals | None = field(repr=False)
    missed: float
    alarms: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One protocol's queries and correspondences; `words` and `probes` are None for a model that compares neither."""

    result: ProtocolResult
    worst: tuple[QueryExample, ...]
    best: tuple[QueryExample, ...]
    words: ScoreHistogram | None
    probes: ScoreHistogram | None


def diagnose(scorer: Scorer, result: ProtocolResult, encoded: EncodedImages) -> Diagnosis:
    """Look behind the scores of one protocol, whose images `encoded` has."""
    examiner = _Examiner(scorer, result, encoded)
    worst, best = examiner.chosen()
    return Diagnosis(result, tuple(examiner.shown(worst)), tuple(examiner.shown(best)), *examiner.histograms())


class _Examiner:
    """One protocol, its search, and which rows of the gallery answer what."""

    def __init__(self, scorer: Scorer, result: ProtocolResult, encoded: EncodedImages) -> None:
        self._scorer, self._result, self._gallery = scorer, result, result.protocol.gallery
        self._search = ProtocolRanker(scorer, result.protocol, encoded, result.rerank)
        self._row_of = {item: row for row, item in enumerate(self._gallery)}
        self._mode: Mode = result.mode  # type: ignore[assignment]
        self._known = [ranked for ranked in result.rankings if self._answers(ranked.query)]

    def _answers(self, query: EvalQuery) -> frozenset[int]:
        """Return the gallery's rows that answer a query and may be found."""
        shown = query.reference_ids if self._result.protocol.remove_reference else ()
        return self._rows([item for item in query.targets if item not in shown])

    def _rows(self, items: Sequence[str]) -> frozenset[int]:
        return frozenset(self._row_of[item] for item in items if item in self._row_of)

    def chosen(self) -> tuple[list[tuple[QueryRanking, int]], list[tuple[QueryRanking, int]]]:
        """Return the worst and the best rankings with the rank of their first right answer, each query once in either.

        The rank decides, then average precision; what is alike in both comes by lot.
        """
        orders, answers = [r.rows for r in self._known], [self._answers(r.query) for r in self._known]
        ranks = metrics.ranks_of_targets(orders, answers).tolist()
        lot = np.random.default_rng(SEED).permutation(len(orders)).tolist()
        precision = [metrics.mean_average_precision_at_k([o], [a], 10) for o, a in zip(orders, answers, strict=True)]
        best = sorted(range(len(orders)), key=lambda at: (ranks[at], -precision[at], lot[at]))
        worst = sorted(range(len(orders)), key=lambda at: (-ranks[at], precision[at], lot[at]))
        return (
            [(self._known[at], ranks[at]) for at in self._once(worst) if ranks[at] > 0],
            [(self._known[at], ranks[at]) for at in self._once(best) if ranks[at] == 0],
        )

    def _once(self, order: Sequence[int]) -> list[int]:
        """Return the first SHOWN of `order` that are phrasings of different queries."""
        first: dict[int, int] = {}
        for at in order:
            first.setdefault(id(self._known[at].query), at)
        return list(first.values())[:SHOWN]

    def shown(self, chosen: Sequence[tuple[QueryRanking, int]]) -> Iterator[QueryExample]:
        """Ask chosen queries again for what their ranking does not hold: scores, matches, evidence."""
        told = [(ranked.query, ranked.position) for ranked, _ in chosen]
        for (ranked, rank), asked in zip(chosen, self._search.asked(told, BALANCES[self._mode]), strict=True):
            if isinstance(asked, NsfseError):  # it was ranked by its image alone, which has nothing to show
                continue
            texts = ranked.query.texts_at(ranked.position), ranked.query.negative_texts
            whole = all(text.whole for text in readings(self._scorer.tokenizer, *texts, asked))
            found, mean = self._first(ranked.query, asked, whole)
            rest = self._answers(ranked.query)
            missed = None
            if not rest.intersection(ranked.rows[:HITS].tolist()):
                row = min(rest) if rank == metrics.MISS else int(ranked.rows[rank])
                missed = self._hits(asked, self._alone(asked, row, mean), whole)[0]
            yield QueryExample(ranked.query, ranked.position, None if rank == metrics.MISS else rank, found, missed)

    def _first(self, query: EvalQuery, asked: Asked, whole: bool) -> tuple[tuple[Hit, ...], float]:
        mask = self._search.mask(query.reference_ids)
        most = len(self._gallery) if mask is None else int(mask.sum())
        ranking = self._search.answer(asked, mask, min(HITS, most))
        return self._hits(asked, ranking, whole), ranking.mean

    def _alone(self, asked: Asked, row: int, mean: float) -> Ranking:
        """Return one row as the search would have ranked it; `mean` is that of S over the re-ranked."""
        rows = np.array([row])
        cosines = self._search.cosines(asked, rows)
        looks = asked.pairs_scored(self._scorer.info.mode, self._result.rerank, len(self._gallery)) > 0
        pair = self._search.pairs(asked, rows) if looks else None
        return Ranking(rows, cosines if pair is None else pair.score, pair, cosines, mean)

    def _hits(self, asked: Asked, ranking: Ranking, whole: bool) -> tuple[Hit, ...]:
        pair = ranking.pair
        if pair is None:
            pair = self._search.pairs(asked, ranking.rows) if asked.tokens else no_evidence(ranking.scores)
        targets = self._search.targets([self._gallery[row] for row in ranking.rows])
        decision = self._scorer.info.confidence
        return hits_of(self._gallery, "", asked, ranking, pair, decision, targets, whole=whole)

    def histograms(self) -> tuple[ScoreHistogram | None, ScoreHistogram | None]:
        """Return how the correspondences of words and of probes are spread, of SAMPLED queries at most."""
        boundaries = self._scorer.info.boundaries
        plain = [(ranked.query, ranked.position) for ranked in self._known if ranked.query.is_simple]
        if boundaries is None or not plain:
            return None, None
        chosen = [plain[at] for at in np.linspace(0, len(plain), min(SAMPLED, len(plain)), endpoint=False).astype(int)]
        draw = np.random.default_rng(SEED)
        words, probes = _Samples(), _Samples()
        for (query, _), composed in zip(chosen, self._search.composed(chosen), strict=True):
            if composed is None:
                continue
            for kind, ids in enumerate(self._compared(query, draw)):
                if ids:
                    x, y = correspondences(composed, self._search.targets(ids), boundaries.views)
                    words.add(kind, x, np.maximum(0, composed.word_weights))  # under 0: it must not be there
                    probes.add(kind, y, composed.probe_weights)
        return words.histogram(boundaries.cross), probes.histogram(boundaries.visual)

    def _compared(self, query: EvalQuery, draw: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
        """Return right answers, others by lot, and hard negatives of a query."""
        not_other = {*query.reference_ids, *query.targets, *query.hard_negatives}
        right = draw.permutation(sorted(self._answers(query)))[:MATCHES].tolist()
        others = {self._gallery[row] for row in draw.integers(len(self._gallery), size=OTHERS)} - not_other
        near = [item for item in query.hard_negatives if item in self._row_of]
        return [self._gallery[row] for row in right], sorted(others), near[:MATCHES]


class _Samples:
    """Values with their weights, of three kinds: matched, mismatched, near."""

    def __init__(self) -> None:
        self._values: list[list[Reals]] = [[], [], []]
        self._weights: list[list[Reals]] = [[], [], []]

    def add(self, kind: int, values: NDArray[np.floating], weights: NDArray[np.floating]) -> None:
        """Take in `values` [K, L] that weigh as `weights` [L] say."""
        self._values[kind].append(values.ravel().astype(np.float64))
        self._weights[kind].append(np.tile(weights, len(values)).astype(np.float64))

    def histogram(self, boundary: float) -> ScoreHistogram | None:
        """Return how they are spread about `boundary`; None without matched or without mismatched ones."""
        kinds = [
            (np.concatenate(values), np.concatenate(weights)) if values else (np.empty(0), np.empty(0))
            for values, weights in zip(self._values, self._weights, strict=True)
        ]
        matched, mismatched, near = kinds
        if not (matched[1].sum() > 0 and mismatched[1].sum() > 0):
            return None
        every = np.concatenate([values for values, _ in kinds])
        edges = np.linspace(min(0.0, float(every.min())), max(1.0, float(every.max())), BINS + 1)
        return ScoreHistogram(
            boundary,
            edges,
            _shares(matched, edges),
            _shares(mismatched, edges),
            _shares(near, edges) if near[1].sum() > 0 else None,
            missed=_over(matched, -boundary, -1),
            alarms=_over(mismatched, boundary, 1),
        )


def _shares(samples: tuple[Reals, Reals], edges: Reals) -> Reals:
    values, weights = samples
    found: Reals = 100 * np.histogram(values, edges, weights=weights)[0] / weights.sum()
    return found


def _over(samples: tuple[Reals, Reals], boundary: float, sign: int) -> float:
    """Return the percentage, by weight, of values times `sign` over `boundary`."""
    values, weights = samples
    return float(100 * weights[sign * values > boundary].sum() / weights.sum())
