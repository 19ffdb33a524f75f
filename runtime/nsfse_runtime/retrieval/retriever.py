"""Retriever: a reference image and a text in, hits with the evidence of each word out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from msgspec import structs

from nsfse_runtime.errors import NsfseError
from nsfse_runtime.gallery.filters import Where
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.snapshot import Snapshot
from nsfse_runtime.retrieval.compose import QueryInputs, compose_batch, stack_features
from nsfse_runtime.retrieval.groups import best_of_groups
from nsfse_runtime.retrieval.query import ComposedQuery, Query
from nsfse_runtime.retrieval.references import Reference, as_tuple, image_ref, resolve
from nsfse_runtime.retrieval.results import Hit, Result, WordEvidence, build_hits
from nsfse_runtime.retrieval.text_warnings import notes_of, readings
from nsfse_runtime.retrieval.timing import Timer
from nsfse_runtime.search.first_stage import FirstStage, SearchMode
from nsfse_runtime.search.on_device import MOST_PAIRS, device_cache
from nsfse_runtime.search.two_stage import Ranking, ordered, rerank_rows, score_rows, select
from nsfse_runtime.types import Floats, Mask, PairScores, Pixels, Rows, Scorer, no_evidence

__all__ = ["Hit", "Query", "Reference", "Result", "Retriever", "WordEvidence"]

P = ParamSpec("P")
T = TypeVar("T")
_ENCODED_AT_ONCE = 32  # images


class Retriever:
    """Answers queries over a gallery with the model whose features it holds."""

    def __init__(
        self,
        model: Scorer,
        gallery: Gallery,
        *,
        search: SearchMode = "auto",
        resident: bool | None = None,
    ) -> None:
        """Serve `gallery` with `model`.

        Args:
            model: The model whose features the gallery holds.
            gallery: What is searched. Each query sees its newest generation.
            search: How stage 1 searches a gallery in host memory (see
                nsfse_runtime.search.first_stage).
            resident: Whether the whole gallery is copied to the model's device at the first query.
                By default it is where the model runs on a GPU; for a single query that does not
                pay.

        Raises:
            VersionError: The gallery holds features of another model.
            IntegrityError: The bundle is damaged.
            UsageError: The model has no device that a gallery can be copied to.
            MissingExtraError: `search` is "ann", and faiss is not installed.
        """
        self._scorer, self.gallery = model, gallery
        self._info = self._scorer.info
        self._tokenizer = self._scorer.tokenizer
        gallery.check_model(self._scorer)
        self._device_cache = device_cache(self._scorer, resident)
        self._first_stage = FirstStage(gallery.path, self._scorer.fingerprint, search)

    def query(
        self,
        reference: Reference | Sequence[Reference] | None = None,
        text: str | Sequence[str] = (),
        k: int = 10,
        where: Where | None = None,
        rerank: int = 100,
        min_confidence: float = 0.0,
        *,
        negative_texts: Sequence[str] = (),
        negative_images: Sequence[Reference] = (),
        balance: float = 0.5,
        heatmaps: bool = False,
        offset: int = 0,
        fields: Sequence[str] = (),
        group_by: str | None = None,
    ) -> Result:
        """Find the `k` images that are like `reference` but for what `text` says, or by one of the two alone.

        Args:
            reference: An image file, its bytes, pixels [H, W, 3] (uint8, RGB), a Pillow image, or
                the id of a gallery image; or several of these. Neither it nor any image with the
                same bytes is among the hits. None for a search by words alone.
            text: What should be different, one edit each; none for a search by images alone.
            k: How many hits to find.
            where: A filter on metadata: only images that fit it are found (see Snapshot.mask).
            rerank: How many candidates of stage 1 are ordered by the whole score, at least k; 0
                keeps stage 1's order.
            min_confidence: Leaves out hits of less confidence, 0 to 1. A query of several images or
                texts, or with a word that was not read, has no confidence.
            negative_texts: What must not be there.
            negative_images: Images that hits must not be like.
            balance: From 0, like the image alone, to 1, like the words alone.
            heatmaps: Whether the evidence says where in a hit each word was found.
            offset: How many of the best to skip, for further pages. Pages of one k and rerank fit
                together.
            fields: The columns of metadata that hits have; all by default.
            group_by: A column of which only the best image of each value is found.

        Returns:
            The hits, best first, with the evidence of each word. docs/queries.md defines all of it.

        Raises:
            UsageError: Options that do not go together, or an array that is no image.
            NotFoundError: There is no such file or gallery image.
            ImageError: An image cannot be read safely.
            TextError: A text has no known word.
            IntegrityError: The gallery or the bundle is damaged.
        """
        result = self.answer(
            [
                Query(
                    references=as_tuple(reference),
                    texts=(text,) if isinstance(text, str) else tuple(text),
                    negative_texts=tuple(negative_texts),
                    negative_images=tuple(negative_images),
                    balance=balance,
                    k=k,
                    where=where,
                    rerank=rerank,
                    min_confidence=min_confidence,
                    heatmaps=heatmaps,
                    offset=offset,
                    fields=tuple(fields),
                    group_by=group_by,
                )
            ]
        )[0]
        if isinstance(result, NsfseError):
            raise result
        return result

    def answer(self, queries: Sequence[Query]) -> list[Result | NsfseError]:
        """Answer a batch: images and texts are encoded together, and each answer is what it would be alone.

        Args:
            queries: What to find. The times of each are those of the batch until all are composed,
                then its own.

        Returns:
            For each query its result, or the error for which it alone cannot be answered.

        Raises:
            IntegrityError: The gallery or the bundle is damaged.
            InputError: The gallery was changed while it was read.
        """
        timer = Timer()
        with self.gallery.reading() as snapshot:
            return [
                outcome
                if isinstance(outcome, NsfseError)
                else capture_error(self._search, snapshot, *outcome, timer.fork())
                for outcome in self._compose(snapshot, queries, timer)
            ]

    def embed(self, queries: Sequence[Query]) -> list[Floats | NsfseError]:
        """Return what stage 1 searches by: a vector for each query, of its images and texts alone.

        Args:
            queries: What to embed. Of one image alone it is the vector that a gallery holds of it.

        Returns:
            For each query its vector [d], or the error for which it alone has none. The products with
            the gallery's vectors are the scores of stage 1.

        Raises:
            IntegrityError: The gallery or the bundle is damaged.
        """
        with self.gallery.reading() as snapshot:
            outcomes = self._compose(snapshot, queries, Timer())
        return [outcome if isinstance(outcome, NsfseError) else outcome[1].vector for outcome in outcomes]

    def _compose(
        self, snapshot: Snapshot, queries: Sequence[Query], timer: Timer
    ) -> "list[tuple[_ResolvedQuery, ComposedQuery] | NsfseError]":
        """Return each query resolved and composed, all together, or the error in its place."""
        resolved = [capture_error(self._resolve, snapshot, query, timer) for query in queries]
        good = [query for query in resolved if isinstance(query, _ResolvedQuery)]
        inputs = self._encode(snapshot, good, timer)
        timer.start()
        composed = iter(compose_batch(self._scorer, inputs))
        timer.lap("text")
        outcomes: list[tuple[_ResolvedQuery, ComposedQuery] | NsfseError] = []
        for query in resolved:
            outcome = query if isinstance(query, NsfseError) else next(composed)
            if isinstance(query, NsfseError) or isinstance(outcome, NsfseError):
                outcomes.append(outcome)  # type: ignore[arg-type]
            else:
                outcomes.append((query, outcome))
        return outcomes

    def _resolve(self, snapshot: Snapshot, query: Query, timer: Timer) -> "_ResolvedQuery":
        """Check a query and find its images: rows of the gallery, or pixels yet to be encoded."""
        query.check(has_confidence=self._info.confidence is not None)
        (mask, notes), size = snapshot.select(query.where), self._scorer.image_size
        images = []
        for reference in (*query.references, *query.negative_images):
            timer.start()
            image = resolve(image_ref(reference, snapshot, size), snapshot, size)
            mask[image.copies] = False
            images.append(image.source)
            if not isinstance(image.source, int):
                timer.lap("decode")
        if query.is_alone and self._info.confidence:
            notes = (*notes, "no confidence is fitted to a search by words or images alone")
        fields = tuple(snapshot.column(name).name for name in query.fields)
        return _ResolvedQuery(query, mask, images, notes, fields)

    def _encode(self, snapshot: Snapshot, queries: "Sequence[_ResolvedQuery]", timer: Timer) -> list[QueryInputs]:
        """Return the features of every query's images; all pixels are encoded together."""
        images = [image for query in queries for image in query.images]
        timer.start()
        pixels = [image for image in images if not isinstance(image, int)]
        batches = [
            self._scorer.encode_images(np.stack(pixels[start : start + _ENCODED_AT_ONCE]))
            for start in range(0, len(pixels), _ENCODED_AT_ONCE)
        ]
        if pixels:
            timer.lap("image")
        encoded = iter([batch.take([row]) for batch in batches for row in range(len(batch))])
        features = iter([snapshot.targets([image]) if isinstance(image, int) else next(encoded) for image in images])
        inputs = []
        for query in queries:
            own = [next(features) for _ in query.images]
            count = len(query.query.references)
            negative = stack_features(own[count:]) if own[count:] else None
            references = stack_features(own[:count]) if count else None
            inputs.append(QueryInputs(query.query, references, negative))
        return inputs

    def _search(self, snapshot: Snapshot, resolved: "_ResolvedQuery", composed: ComposedQuery, timer: Timer) -> Result:
        query, mask = resolved.query, resolved.mask
        if query.group_by is not None:
            mask = best_of_groups(snapshot.vectors, composed.vector, mask, snapshot.column(query.group_by))
        rankings = self._rank(snapshot, query, mask, composed, timer)
        grid = self._info.grid if query.heatmaps else None
        texts = readings(self._tokenizer, query.texts, query.negative_texts, composed)
        whole = all(text.whole for text in texts)
        hits: list[Hit] = []
        fitted = query.is_simple and query.block > 0 and self._info.confidence is not None
        for number, ranking in enumerate(rankings):
            # The confidence is fitted to the first block of candidates: none is claimed of later ones.
            is_first = number == 0 and query.offset < query.block
            found = self._hits(snapshot, composed, ranking, grid, whole=whole and (is_first or not fitted))
            metadata = (resolved.metadata_of(snapshot, row) for row in ranking.rows.tolist())
            hits += [structs.replace(hit, metadata=own) for hit, own in zip(found, metadata, strict=True)]
        timer.lap("stage2")
        matches = [hit.is_match for hit in hits if hit.confidence is not None]
        shown = [hit for hit in hits if (hit.confidence or 0.0) >= query.min_confidence]
        return Result(
            hits=tuple(shown),
            total=int(np.count_nonzero(mask)),
            has_match=any(matches) if matches else None,
            threshold=self._info.confidence.threshold if self._info.confidence and matches else None,
            timings_ms=timer.end(),
            grid=grid if shown else None,
            texts=texts,
            notes=(*notes_of(texts, self._tokenizer.max_words if self._tokenizer else 0), *resolved.notes),
        )

    def _rank(
        self, snapshot: Snapshot, query: Query, mask: Mask, composed: ComposedQuery, timer: Timer
    ) -> list[Ranking]:
        """Do both stages, on the device where the gallery is there; return the page in one or two rankings.

        Stage 2 orders stage 1's rows block by block, so that pages fit together.
        """
        block = composed.pairs_scored(self._info.mode, query.block, len(snapshot))
        start, stop = query.offset, query.offset + query.k
        size = block or stop
        depth = -(-stop // size) * size

        def score(rows: Rows) -> PairScores:
            return composed.combined(score_rows(self._scorer, composed.queries, rows, snapshot.targets))

        if self._device_cache is None or stop > size or depth > MOST_PAIRS:
            rows, scores = self._first_stage(snapshot, composed.vector, depth, mask)
            timer.lap("stage1")
            rankings = []
            for first in range(start // size * size, min(stop, len(rows)), size):
                one = slice(first, first + size)
                ranking = rerank_rows(score, rows[one], scores[one], size, block)
                rankings.append(ranking.window(max(start - first, 0), stop - first))
            return rankings
        gallery = self._device_cache.gallery(snapshot, snapshot.targets)
        best = gallery.search(composed.vector, depth, mask)
        timer.lap("stage1")
        if block and len(best.rows):
            by_row = np.argsort(best.rows)
            pair = select(composed.combined(gallery.pairs(composed.queries, best)), by_row)
            return [ordered(best.rows, best.scores, by_row, pair, stop).window(start, stop)]
        return [rerank_rows(score, best.rows, best.scores, stop, 0).window(start, stop)]

    def _hits(
        self,
        snapshot: Snapshot,
        composed: ComposedQuery,
        ranking: Ranking,
        grid: tuple[int, int] | None,
        *,
        whole: bool,
    ) -> tuple[Hit, ...]:
        if not len(ranking.rows):
            return ()
        pair = ranking.pair
        if pair is None:
            # Without a second stage the hits' words are scored all the same: a hit always has its
            # evidence.
            pairs = (
                score_rows(self._scorer, composed.queries, ranking.rows, snapshot.targets) if composed.tokens else None
            )
            pair = composed.combined(pairs) if pairs else no_evidence(ranking.scores)
        model = self._info.confidence if composed.reference is not None and ranking.pair else None
        targets = snapshot.targets(ranking.rows) if model or grid else None
        return build_hits(snapshot.ids, snapshot.folder, composed, ranking, pair, model, targets, grid, whole=whole)


@dataclass(frozen=True, slots=True)
class _ResolvedQuery:
    """A query with what it may find (`mask` [N]) and its images, those to avoid last: rows, or pixels [H, W, 3].

    `notes` are of its filter, `fields` are the columns that its hits have, none for all.
    """

    query: Query
    mask: Mask
    images: "list[int | Pixels]"
    notes: tuple[str, ...]
    fields: tuple[str, ...]

    def metadata_of(self, snapshot: Snapshot, row: int) -> dict[str, str]:
        """Return the metadata of a hit."""
        values = snapshot.metadata_of(row)
        return {name: values[name] for name in self.fields if name in values} if self.fields else values


def capture_error(function: "Callable[P, T]", *args: "P.args", **options: "P.kwargs") -> "T | NsfseError":
    """Return what `function` returns, or its error in its place."""
    try:
        return function(*args, **options)
    except NsfseError as error:
        return error
