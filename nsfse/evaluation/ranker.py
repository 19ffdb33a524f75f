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
Composed = QueryFeatures | ComposedQuery | Floats
"""A query as stage 1 and 2 take it, as a Retriever composes it, or its vector for stage 1 alone."""


class RankedRows(NamedTuple):
    """The ranking of one phrasing of one query.

    `rows` are gallery rows [k], `subset` the members of the query's image set [m], best first. `readable` says
    whether the model knows a word of the text; otherwise the image alone ranks.
    """

    rows: Rows
    subset: Rows
    readable: bool


class ProtocolRanker:
    """Ranks one protocol's gallery for references and texts, in any mode."""

    def __init__(self, scorer: Scorer, protocol: data.EvaluationProtocol, encoded: EncodedImages, rerank: int) -> None:
        """Prepare the gallery of `protocol`, whose images `encoded` has.

        `rerank` is how many candidates stage 2 scores; a model of one stage scores none, ARTEMIS all.
        """
        self._scorer, self._encoded, self._requested_rerank = scorer, encoded, rerank
        self._ranking_mode = scorer.info.mode
        self._rerank = pairs_scored(self._ranking_mode, rerank, len(protocol.gallery))
        self._rows = encoded.rows_of(protocol.gallery)
        self._vectors = encoded.vectors[self._rows]
        self._row_of = {item: row for row, item in enumerate(protocol.gallery)}
        self._remove_reference = protocol.remove_reference
        self._depth = min(len(protocol.gallery), max((*protocol.ks, *protocol.map_ks, 10)))

    def ranked(self, chunk: Sequence[tuple[data.EvalQuery, int]], mode: Mode) -> Iterator[RankedRows]:
        """Yield the ranking of each query of a chunk.

        Members of an image set are ordered by the score that ranks: S of each, whatever its rank in
        stage 1. Where nothing is re-ranked it is stage 1's inner product.

        Args:
            chunk: Each query with the position of a phrasing.
            mode: What queries are made of.

        Yields:
            One ranking for each entry of the chunk.
        """
        if not all(query.is_simple for query, _ in chunk):
            yield from self._ranked_compound(chunk, mode)
            return
        references = self._references(chunk)
        texts = [query.texts[position] for query, position in chunk]
        composed: Sequence[QueryFeatures | Floats | None]
        if mode == "composed":
            composed = self.composed(chunk)
        elif mode == "text-only":
            composed = map_valid_texts(lambda rows: list(self._scorer.sentence([texts[r] for r in rows])), len(texts))
        else:
            composed = list(references.vectors)
        fallbacks = np.zeros_like(references.vectors) if mode == "text-only" else references.vectors
        for (query, _), fallback, features in zip(chunk, fallbacks, composed, strict=True):
            yield self._rank(query, fallback if features is None else features, readable=features is not None)

    def _ranked_compound(self, chunk: Sequence[tuple[data.EvalQuery, int]], mode: Mode) -> Iterator[RankedRows]:
        """Rank queries of several images, texts and exclusions as a Retriever does; a mode is a balance."""
        for (query, _), composed in zip(chunk, self.compose_queries(chunk, BALANCES[mode]), strict=True):
            if isinstance(composed, NsfseError):
                fallback = self.targets(query.references[:1]).vectors.sum(0)  # of no reference it is 0
                yield self._rank(query, fallback, readable=False)
            else:
                yield self._rank(query, composed, readable=True)

    def compose_queries(
        self, chunk: Sequence[tuple[data.EvalQuery, int]], balance: float = 0.5
    ) -> list[ComposedQuery | NsfseError]:
        """Return each (query, position of a phrasing) as the search takes it, or why it cannot be read."""
        inputs = [
            QueryInputs(
                Query(
                    references=query.references,
                    texts=query.texts_at(position),
                    negative_texts=query.negative_texts,
                    negative_images=query.negative_images,
                    balance=balance,
                ),
                self.targets(query.references) if query.references else None,
                self.targets(query.negative_images) if query.negative_images else None,
            )
            for query, position in chunk
        ]
        return compose_batch(self._scorer, inputs)

    def order(self, query: ComposedQuery, mask: Mask | None) -> Rows:
        """Return gallery rows, the best first, by both stages."""
        return self.answer(query, mask, self._depth_under(mask)).rows

    def answer(self, query: ComposedQuery, mask: Mask | None, depth: int) -> Ranking:
        """Return the first `depth` of the gallery by both stages."""
        rerank = query.pairs_scored(self._ranking_mode, self._requested_rerank, len(self._rows))
        candidates = exact_search(self._vectors, query.vector, max(depth, rerank), mask)
        return rerank_rows(lambda rows: self.pairs(query, rows), *candidates, depth, rerank)

    def pairs(self, query: ComposedQuery, rows: Rows) -> PairScores:
        """Return the whole scores of gallery `rows` [K]."""
        return query.combined(score_rows(self._scorer, query.queries, rows, self._fetch))

    def cosines(self, query: ComposedQuery, rows: Rows) -> Floats:
        """Return stage 1's inner products of gallery `rows` [K]."""
        cosines: Floats = self._vectors[rows] @ query.vector
        return cosines

    def targets(self, items: Sequence[str]) -> TargetFeatures:
        """Return the features of `items` [K]."""
        return self._encoded.targets(self._encoded.rows_of(items))

    def composed(self, chunk: Sequence[tuple[data.EvalQuery, int]]) -> list[QueryFeatures | None]:
        """Return the query of each (query, phrasing), None for a text that cannot be read."""
        references = self._references(chunk)
        texts = [query.texts[position] for query, position in chunk]
        return map_valid_texts(
            lambda rows: self._scorer.compose(references.take(rows), [texts[row] for row in rows]), len(texts)
        )

    def ranking(self, query: QueryFeatures, reference: str, k: int, without: Iterable[str] = ()) -> Ranking:
        """Return the first `k` of the gallery as serving ranks it, the images of `without` removed."""
        return rank(self._scorer, query, self._vectors, self._fetch, k, self._rerank, self.mask([reference], without))

    def _references(self, chunk: Sequence[tuple[data.EvalQuery, int]]) -> TargetFeatures:
        return self._encoded.targets(self._encoded.rows_of([query.reference for query, _ in chunk]))

    def mask(self, references: Sequence[str], without: Iterable[str] = ()) -> Mask | None:
        """Return which gallery rows may be hits; None where all may."""
        removed = [*without, *references] if self._remove_reference else [*without]
        rows = [self._row_of[item] for item in removed if item in self._row_of]
        if not rows:
            return None
        mask = np.ones(len(self._rows), np.bool_)
        mask[rows] = False
        return mask

    def _rank(self, query: data.EvalQuery, composed: Composed, *, readable: bool) -> RankedRows:
        mask = self.mask(query.reference_ids)
        return RankedRows(self._order(composed, mask), self._rank_subset(query, composed, mask), readable)

    def _order(self, query: Composed, mask: Mask | None) -> Rows:
        if isinstance(query, ComposedQuery):
            return self.order(query, mask)
        depth = self._depth_under(mask)
        if isinstance(query, QueryFeatures):
            return rank(self._scorer, query, self._vectors, self._fetch, depth, self._rerank, mask).rows
        return exact_search(self._vectors, query, depth, mask)[0]

    def _rank_subset(self, query: data.EvalQuery, composed: Composed, mask: Mask | None) -> Rows:
        """Return the members of a query's image set that may be hits, best first; ties in gallery order."""
        members = sorted({self._row_of[item] for item in query.subset if item in self._row_of})
        rows = np.array([row for row in members if mask is None or mask[row]], np.intp)
        if not len(rows):
            return rows
        if isinstance(composed, ComposedQuery) and composed.pairs_scored(
            self._ranking_mode, self._requested_rerank, len(self._rows)
        ):
            score = self.pairs(composed, rows).score
        elif isinstance(composed, QueryFeatures) and self._rerank:
            score = score_rows(self._scorer, [composed], rows, self._fetch)[0].score
        else:
            vector = composed.vector if isinstance(composed, ComposedQuery | QueryFeatures) else composed
            return best_of(self._vectors, vector, rows, len(rows))[0]
        return rows[best_first(score, rows)[0]]

    def _depth_under(self, mask: Mask | None) -> int:
        return self._depth if mask is None else min(self._depth, int(mask.sum()))

    def _fetch(self, rows: Rows) -> TargetFeatures:
        return self._encoded.targets(self._rows[rows])


def map_valid_texts(read: Callable[[Sequence[int]], Sequence[T]], count: int) -> list[T | None]:
    """Return `read` of 0 ... count-1, None for each text that cannot be read; a failing range is read in halves."""

    def read_rows(rows: Sequence[int]) -> list[T | None]:
        try:
            return list(read(rows))
        except TextError:
            if len(rows) == 1:
                return [None]
        middle = len(rows) // 2
        return [*read_rows(rows[:middle]), *read_rows(rows[middle:])]

    return read_rows(range(count))
