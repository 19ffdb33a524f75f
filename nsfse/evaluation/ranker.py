"""From (reference, text) to an order of a protocol's gallery, by the search that serving uses."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

from nsfse import data
from nsfse.evaluation.features import EncodedImages
from nsfse_runtime.errors import NsfseError, TextError
from nsfse_runtime.retrieval.compose import QueryInputs, compose_batch
from nsfse_runtime.retrieval.query import ComposedQuery, Query
from nsfse_runtime.search.two_stage import (
    Ranking,
    best_first,
    best_of,
    exact_search,
    pairs_scored,
    rank,
    rerank_rows,
    score_rows,
)
from nsfse_runtime.types import Floats, Mask, PairScores, QueryFeatures, Rows, Scorer, TargetFeatures

__all__ = ["MODES", "Mode", "ProtocolRanker", "RankedRows", "map_valid_texts"]

Mode = Literal["composed", "image-only", "text-only"]
MODES: tuple[Mode, ...] = get_args(Mode)
BALANCES: dict[Mode, float] = {"image-only": 0.0, "composed": 0.5, "text-only": 1.0}
"""A mode as the balance of a query (docs/queries.md)."""
T = TypeVar("T")


class RankedRows(NamedTuple):
    """What one phrasing of one query finds: gallery rows [k] and the members of its image set [m], the best first.

    `readable` says whether the model could read the text; where it could not, the image alone ranks.
    """

    rows: Rows
    subset: Rows
    readable: bool


class ProtocolRanker:
    """Ranks one protocol's gallery for references and texts, in any mode."""

    def __init__(self, scorer: Scorer, protocol: data.EvaluationProtocol, encoded: EncodedImages, rerank: int) -> None:
        """`rerank` is how many candidates stage 2 is to look at; the model's ranking mode has a say."""
        self._scorer, self._encoded, self._asked_for = scorer, encoded, rerank
        self._ranking_mode = scorer.info.mode
        self._rerank = pairs_scored(self._ranking_mode, rerank, len(protocol.gallery))
        self._rows = encoded.rows_of(protocol.gallery)
        self._vectors = encoded.vectors[self._rows]
        self._row_of = {item: row for row, item in enumerate(protocol.gallery)}
        self._remove_reference = protocol.remove_reference
        self._depth = min(len(protocol.gallery), max(*protocol.ks, 10))

    def ranked(self, chunk: Sequence[tuple[data.EvalQuery, int]], mode: Mode) -> Iterator[RankedRows]:
        """Yield what each (query, phrasing) finds.

        The members of an image set are ordered by the score that ranks: S itself of each, however far stage 1 puts it,
        and stage 1's inner product where nothing is re-ranked.
        """
        if not all(query.is_simple for query, _ in chunk):
            yield from self._asked(chunk, mode)
            return
        references = self._references(chunk)
        texts = [query.texts[position] for query, position in chunk]
        found: Sequence[QueryFeatures | Floats | None]
        if mode == "composed":
            found = self.composed(chunk)
        elif mode == "text-only":
            found = map_valid_texts(lambda at: list(self._scorer.sentence([texts[i] for i in at])), len(texts))
        else:
            found = list(references.vectors)
        instead = np.zeros_like(references.vectors) if mode == "text-only" else references.vectors
        for (query, _), vector, one in zip(chunk, instead, found, strict=True):
            yield self._ordered(query, vector if one is None else one, one is not None)

    def _asked(self, chunk: Sequence[tuple[data.EvalQuery, int]], mode: Mode) -> Iterator[RankedRows]:
        """Rank queries of several images, texts and exclusions as a Retriever does; a mode is a balance."""
        for (query, _), asked in zip(chunk, self.asked(chunk, BALANCES[mode]), strict=True):
            if isinstance(asked, NsfseError):
                yield self._ordered(query, self._references([(query, 0)]).vectors[0], False)
            else:
                yield self._ordered(query, asked, True)

    def asked(
        self, chunk: Sequence[tuple[data.EvalQuery, int]], balance: float = 0.5
    ) -> list[ComposedQuery | NsfseError]:
        """Return each (query, phrasing) as the search takes it, or why it cannot be read."""
        inputs = [
            QueryInputs(
                Query(
                    references=(query.reference, *query.more_references),
                    texts=query.texts_at(position),
                    negative_texts=query.negative_texts,
                    negative_images=query.negative_images,
                    balance=balance,
                ),
                self.targets((query.reference, *query.more_references)),
                self.targets(query.negative_images) if query.negative_images else None,
            )
            for query, position in chunk
        ]
        return compose_batch(self._scorer, inputs)

    def order(self, asked: ComposedQuery, mask: Mask | None) -> Rows:
        """Return gallery rows, the best first, by both stages."""
        return self.answer(asked, mask, self._deep(mask)).rows

    def answer(self, asked: ComposedQuery, mask: Mask | None, depth: int) -> Ranking:
        """Return the first `depth` of the gallery by both stages."""
        rerank = asked.pairs_scored(self._ranking_mode, self._asked_for, len(self._rows))
        found = exact_search(self._vectors, asked.vector, max(depth, rerank), mask)
        return rerank_rows(lambda rows: self.pairs(asked, rows), *found, depth, rerank)

    def pairs(self, asked: ComposedQuery, rows: Rows) -> PairScores:
        """Return the whole scores of gallery `rows` [K]."""
        return asked.combined(score_rows(self._scorer, asked.queries, rows, self._fetch))

    def cosines(self, asked: ComposedQuery, rows: Rows) -> Floats:
        """Return stage 1's inner products of gallery `rows` [K]."""
        found: Floats = self._vectors[rows] @ asked.vector
        return found

    def targets(self, items: Sequence[str]) -> TargetFeatures:
        """Return the features of `items` [K]."""
        return self._encoded.targets(self._encoded.rows_of(items))

    def composed(self, chunk: Sequence[tuple[data.EvalQuery, int]]) -> list[QueryFeatures | None]:
        """Return the query of each (query, phrasing), None for a text that cannot be read."""
        references = self._references(chunk)
        texts = [query.texts[position] for query, position in chunk]
        return map_valid_texts(lambda at: self._scorer.compose(references.take(at), [texts[i] for i in at]), len(texts))

    def ranking(self, query: QueryFeatures, reference: str, k: int, without: Iterable[str] = ()) -> Ranking:
        """Return the first `k` of the gallery as serving ranks it, the images of `without` taken out."""
        return rank(self._scorer, query, self._vectors, self._fetch, k, self._rerank, self.mask([reference], without))

    def _references(self, chunk: Sequence[tuple[data.EvalQuery, int]]) -> TargetFeatures:
        return self._encoded.targets(self._encoded.rows_of([query.reference for query, _ in chunk]))

    def mask(self, shown: Sequence[str], without: Iterable[str] = ()) -> Mask | None:
        """Return which gallery rows may be found; None where all may."""
        gone = [*without, *shown] if self._remove_reference else [*without]
        rows = [self._row_of[item] for item in gone if item in self._row_of]
        if not rows:
            return None
        mask = np.ones(len(self._rows), np.bool_)
        mask[rows] = False
        return mask

    def _ordered(
        self, query: data.EvalQuery, asked: QueryFeatures | ComposedQuery | Floats, readable: bool
    ) -> RankedRows:
        mask = self.mask(query.reference_ids)
        return RankedRows(self._order(asked, mask), self._members(query, asked, mask), readable)

    def _order(self, query: QueryFeatures | ComposedQuery | Floats, mask: Mask | None) -> Rows:
        if isinstance(query, ComposedQuery):
            return self.order(query, mask)
        depth = self._deep(mask)
        if isinstance(query, QueryFeatures):
            return rank(self._scorer, query, self._vectors, self._fetch, depth, self._rerank, mask).rows
        return exact_search(self._vectors, query, depth, mask)[0]

    def _members(self, query: data.EvalQuery, asked: QueryFeatures | ComposedQuery | Floats, mask: Mask | None) -> Rows:
        """Return the members of a query's image set that may be found, the best first; ties in gallery order."""
        known = sorted({self._row_of[item] for item in query.subset if item in self._row_of})
        rows = np.array([row for row in known if mask is None or mask[row]], np.intp)
        if not len(rows):
            return rows
        if isinstance(asked, ComposedQuery) and asked.pairs_scored(
            self._ranking_mode, self._asked_for, len(self._rows)
        ):
            score = self.pairs(asked, rows).score
        elif isinstance(asked, QueryFeatures) and self._rerank:
            score = score_rows(self._scorer, [asked], rows, self._fetch)[0].score
        else:
            vector = asked.vector if isinstance(asked, ComposedQuery | QueryFeatures) else asked
            return best_of(self._vectors, vector, rows, len(rows))[0]
        return rows[best_first(score, rows)[0]]

    def _deep(self, mask: Mask | None) -> int:
        return self._depth if mask is None else min(self._depth, int(mask.sum()))

    def _fetch(self, rows: Rows) -> TargetFeatures:
        return self._encoded.targets(self._rows[rows])


def map_valid_texts(read: Callable[[Sequence[int]], Sequence[T]], count: int) -> list[T | None]:
    """Return `read` of 0 ... count-1, None for a text that cannot be read: what cannot be read in one go, in halves."""

    def half(rows: Sequence[int]) -> list[T | None]:
        try:
            return list(read(rows))
        except TextError:
            if len(rows) == 1:
                return [None]
        middle = len(rows) // 2
        return [*half(rows[:middle]), *half(rows[middle:])]

    return half(range(count))
