"""Retriever: a reference image and a text in, hits with the evidence of each word out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from msgspec import structs

from nsfse_runtime.errors import NsfseError, capture_error
from nsfse_runtime.gallery.filters import Where
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.retrieval.candidates import Candidates
from nsfse_runtime.retrieval.compose import QueryInputs, compose_batch, stack_features
from nsfse_runtime.retrieval.duplicates import fold_duplicates as fold_candidates
from nsfse_runtime.retrieval.query import ComposedQuery, Query, ResolvedQuery
from nsfse_runtime.retrieval.references import Reference, as_tuple, image_ref, resolve
from nsfse_runtime.retrieval.results import Hit, Result, WordEvidence, build_hits, reference_evidence
from nsfse_runtime.retrieval.text_warnings import notes_of, readings
from nsfse_runtime.retrieval.timing import Timer
from nsfse_runtime.retrieval.views import FileView, StoreView, View
from nsfse_runtime.search.first_stage import FirstStage, SearchMode
from nsfse_runtime.search.on_device import device_cache
from nsfse_runtime.search.two_stage import Ranking, ordered, rerank_rows, score_rows, select
from nsfse_runtime.stores.protocol import GalleryStore, check_fingerprint
from nsfse_runtime.types import Floats, GalleryId, PairScores, Pixels, RankingMode, Rows, Scorer, no_evidence

__all__ = ["Hit", "Query", "Reference", "Result", "Retriever", "WordEvidence"]

_ENCODED_AT_ONCE = 32  # images


class Retriever:
    """Answers queries over a gallery with the model whose features it holds."""

    def __init__(
        self,
        model: Scorer,
        gallery: Gallery | GalleryStore,
        *,
        search: SearchMode = "auto",
        resident: bool | None = None,
    ) -> None:
        """Serve `gallery` with `model`.

        Args:
            model: The model whose features the gallery holds.
            gallery: What is searched, a file or a store. Each query sees its newest generation.
            search: How stage 1 searches a gallery file in host memory (see
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
        self._max_words = self._tokenizer.max_words if self._tokenizer else 0
        if isinstance(gallery, Gallery):
            gallery.check_model(self._scorer)
            self._device_cache = device_cache(self._scorer, resident)
            self._first_stage = FirstStage(gallery.path, self._scorer.fingerprint, search)
        else:
            self._store_info = gallery.info()
            check_fingerprint(self._store_info.url, self._store_info.facts.fingerprint, model.fingerprint)

    @contextmanager
    def reading(self) -> Iterator[View]:
        """Hold the newest generation inside, where the gallery promises snapshots; yield it as queries see it."""
        if isinstance(self.gallery, Gallery):
            with self.gallery.reading() as snapshot:
                yield FileView(snapshot, self._first_stage, self._device_cache)
        else:
            with self.gallery.reading():
                yield StoreView(self.gallery, self._store_info)

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
        fold_duplicates: float | None = None,
        text_weights: Sequence[float] = (),
        negative_text_weights: Sequence[float] = (),
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
            fold_duplicates: The cosine of two images' vectors, such as 0.98, from which on only the
                better one is found; the other is among its `duplicates`.
            text_weights: How much each text counts, up to 4; 1, as trained, for all by default.
            negative_text_weights: The same of the negative texts.

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
                    fold_duplicates=fold_duplicates,
                    text_weights=tuple(text_weights),
                    negative_text_weights=tuple(negative_text_weights),
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
        with self.reading() as view:
            return [
                outcome
                if isinstance(outcome, NsfseError)
                else capture_error(self._search, view, *outcome, timer.fork())
                for outcome in self._compose(view, queries, timer)
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
        with self.reading() as view:
            outcomes = self._compose(view, queries, Timer())
        return [outcome if isinstance(outcome, NsfseError) else outcome[1].vector for outcome in outcomes]

    def _compose(
        self, view: View, queries: Sequence[Query], timer: Timer
    ) -> list[tuple[ResolvedQuery, ComposedQuery] | NsfseError]:
        """Return each query resolved and composed, all together, or the error in its place."""
        resolved = [capture_error(self._resolve, view, query, timer) for query in queries]
        good = [query for query in resolved if isinstance(query, ResolvedQuery)]
        inputs = self._encode(view, good, timer)
        timer.start()
        composed = iter(compose_batch(self._scorer, inputs))
        timer.lap("text")
        outcomes: list[tuple[ResolvedQuery, ComposedQuery] | NsfseError] = []
        for query in resolved:
            outcome = query if isinstance(query, NsfseError) else next(composed)
            if isinstance(query, NsfseError) or isinstance(outcome, NsfseError):
                outcomes.append(outcome)  # type: ignore[arg-type]
            else:
                outcomes.append((query, outcome))
        return outcomes

    def _resolve(self, view: View, query: Query, timer: Timer) -> ResolvedQuery:
        """Check a query and find its images: ids of the gallery, or pixels yet to be encoded."""
        query.check(has_confidence=self._info.confidence is not None)
        selection, size = view.select(query.where), self._scorer.image_size
        images: list[GalleryId | Pixels] = []
        contents: list[bytes] = []
        for reference in (*query.references, *query.negative_images):
            timer.start()
            image = resolve(image_ref(reference, view, size), view, size)
            contents += image.contents
            images.append(image.source)
            if not isinstance(image.source, GalleryId):
                timer.lap("decode")
        is_unfitted = query.is_alone and self._info.confidence
        notes = ("no confidence is fitted to a search by words or images alone",) if is_unfitted else ()
        return ResolvedQuery(query, selection, images, contents, notes, tuple(map(view.column, query.fields)))

    def _encode(self, view: View, queries: Sequence[ResolvedQuery], timer: Timer) -> list[QueryInputs]:
        """Return the features of every query's images; all pixels are encoded together."""
        images = [image for query in queries for image in query.images]
        timer.start()
        pixels = [image for image in images if not isinstance(image, GalleryId)]
        batches = [
            self._scorer.encode_images(np.stack(pixels[start : start + _ENCODED_AT_ONCE]))
            for start in range(0, len(pixels), _ENCODED_AT_ONCE)
        ]
        if pixels:
            timer.lap("image")
        encoded = iter([batch.take([row]) for batch in batches for row in range(len(batch))])
        features = iter([view.features(image) if isinstance(image, GalleryId) else next(encoded) for image in images])
        inputs = []
        for query in queries:
            own = [next(features) for _ in query.images]
            count = len(query.query.references)
            negative = stack_features(own[count:]) if own[count:] else None
            references = stack_features(own[:count]) if count else None
            inputs.append(QueryInputs(query.query, references, negative))
        return inputs

    def _search(self, view: View, resolved: ResolvedQuery, composed: ComposedQuery, timer: Timer) -> Result:
        query = resolved.query
        found, rankings = self._rank(view, resolved, composed, timer)
        grid = self._info.grid if query.heatmaps else None
        texts = readings(self._tokenizer, query.texts, query.negative_texts, composed)
        whole = all(text.whole for text in texts)
        hits: list[Hit] = []
        fitted = query.is_simple and query.block > 0 and self._info.confidence is not None
        for number, ranking in enumerate(rankings):
            # The confidence is fitted to the first block of candidates: none is claimed of later ones.
            is_first = number == 0 and query.offset < query.block
            built = self._hits(found, composed, ranking, grid, whole=whole and (is_first or not fitted))
            for hit, row in zip(built, ranking.rows.tolist(), strict=True):
                metadata, copies = resolved.shown(found.metadata(row)), found.duplicates.get(row, ())
                hits.append(structs.replace(hit, metadata=metadata, duplicates=copies))
        timer.lap("stage2")
        matches = [hit.is_match for hit in hits if hit.confidence is not None]
        shown = [hit for hit in hits if (hit.confidence or 0.0) >= query.min_confidence]
        return Result(
            hits=tuple(shown),
            total=found.total,
            has_match=any(matches) if matches else None,
            threshold=self._info.confidence.threshold if self._info.confidence and matches else None,
            timings_ms=timer.end(),
            grid=grid if shown else None,
            references=reference_evidence(self._scorer, composed, grid),
            texts=texts,
            notes=(*notes_of(texts, self._max_words), *found.notes, *resolved.notes),
        )

    def _rank(
        self, view: View, resolved: ResolvedQuery, composed: ComposedQuery, timer: Timer
    ) -> tuple[Candidates, list[Ranking]]:
        """Do both stages; return the candidates, and the page in one or two rankings.

        Stage 2 orders stage 1's rows block by block, so that pages fit together.
        """
        query, mode = resolved.query, self._info.mode
        block = composed.pairs_scored(mode, query.block, len(view) if mode is RankingMode.ALL_PAIRS else 0)
        start, stop = query.offset, query.offset + query.k
        size = block or stop
        depth = -(-stop // size) * size
        fold = query.fold_duplicates

        def search(wanted: int) -> Candidates:
            return view.candidates(
                composed.vector,
                wanted,
                resolved.selection,
                without=resolved.contents,
                group_by=query.group_by,
                on_device=stop <= size and fold is None,
            )

        found = search(depth) if fold is None else fold_candidates(search, depth, fold)
        rows, scores = found.rows, found.scores
        timer.lap("stage1")
        if found.pairs is not None and block and len(rows):
            by_row = np.argsort(rows)
            pair = select(composed.combined(found.pairs(composed.queries)), by_row)
            return found, [ordered(rows, scores, by_row, pair, stop).window(start, stop)]
        score, rankings = partial(self._score, found, composed), []
        for first in range(start // size * size, min(stop, len(rows)), size):
            one = slice(first, first + size)
            ranking = rerank_rows(score, rows[one], scores[one], size, block)
            rankings.append(ranking.window(max(start - first, 0), stop - first))
        return found, rankings

    def _score(self, found: Candidates, composed: ComposedQuery, rows: Rows) -> PairScores:
        return composed.combined(score_rows(self._scorer, composed.queries, rows, found.targets))

    def _hits(
        self, found: Candidates, composed: ComposedQuery, ranking: Ranking, grid: tuple[int, int] | None, *, whole: bool
    ) -> tuple[Hit, ...]:
        if not len(ranking.rows):
            return ()
        pair = ranking.pair
        if pair is None:
            # Without a second stage the hits' words are scored all the same: a hit always has its
            # evidence.
            pair = self._score(found, composed, ranking.rows) if composed.tokens else no_evidence(ranking.scores)
        model = self._info.confidence if composed.reference is not None and ranking.pair else None
        targets = found.targets(ranking.rows) if model or grid else None
        return build_hits(found.ids, found.folder, composed, ranking, pair, model, targets, grid, whole=whole)
