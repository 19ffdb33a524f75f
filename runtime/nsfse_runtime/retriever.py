"""Retriever: a reference picture and a text in, hits with the evidence of each word out."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from nsfse_runtime.decision import decision_of
from nsfse_runtime.errors import NotFoundError, NsfseError, UsageError
from nsfse_runtime.features import PairScores, Pixels, QueryFeatures, Scorer, TargetFeatures
from nsfse_runtime.gallery import Gallery
from nsfse_runtime.printable import printable
from nsfse_runtime.resident import MOST_PAIRS, shelf
from nsfse_runtime.search import Mask, Ranking, Rows, pairs_scored, rerank_rows, score_rows
from nsfse_runtime.session import as_scorer
from nsfse_runtime.snapshot import Snapshot
from nsfse_runtime.stage1 import Search, Stage1

if TYPE_CHECKING:
    from nsfse_runtime.bundle import Bundle
    from nsfse_runtime.queries import Query


class PictureId(str):
    """The id of a gallery picture and nothing else: no file is looked for under that name."""

    __slots__ = ()


Reference = bytes | str | os.PathLike[str] | PictureId | Pixels
"""A picture's bytes, a file or an id, an id alone, or pixels that are already fitted to the model's `image_size`."""


class WordEvidence(msgspec.Struct, frozen=True):
    """A word of the text against a picture: `score` is its best correspondence, `matched` when that is as it should be.

    `weight` is the word's share (κ) of what the text says: where small, the verdict says little. Under 0 the word names
    what must not be there ("no stripes"): it is then `matched` where its correspondence is under the boundary.
    """

    word: str
    score: float
    matched: bool
    weight: float


class Hit(msgspec.Struct, frozen=True):
    """A picture found. `confidence`, 0 to 1, is how likely it is right; `match` whether that reaches the threshold.

    Where the model has no decision, or nothing was re-ranked, `confidence` is None and `match` says whether the words
    as a whole, by their weights, are over the boundary. A model without a pair head looks at no words: `match` is then
    None and `evidence` empty.
    """

    id: str
    path: str
    score: float
    match: bool | None
    evidence: tuple[WordEvidence, ...]
    confidence: float | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Hits, best first, and where the time went, in ms: decode, image, text, stage1, stage2, total.

    `matches` says whether any of the `k` pictures found is a match by its confidence, those left out for `min_score`
    among them: where it is False, nothing here matches. None where no picture has a confidence.
    """

    schema_version: int = 1
    hits: tuple[Hit, ...]
    matches: bool | None = None
    timings_ms: dict[str, float]


class Retriever:
    """Answers queries over a gallery with the model whose features it holds."""

    def __init__(
        self,
        model: "Bundle | Scorer",
        gallery: Gallery,
        *,
        search: Search = "auto",
        resident: bool | None = None,
    ) -> None:
        """Serve `gallery`; with `resident` it lies on the model's device, whole, from the first query on.

        By default it does where the model runs on a GPU; for a single query it is not worth its time. `search` is how
        stage 1 looks through a gallery that does not lie there (see nsfse_runtime.stage1).

        Raises VersionError when the gallery holds features of another model, IntegrityError (a damaged bundle),
        UsageError (nothing to lie on a device with), or MissingExtraError (a search by an index, and faiss is not
        there).
        """
        self._scorer, self.gallery = as_scorer(model), gallery
        self._decision = decision_of(self._scorer)
        gallery.check_model(self._scorer)
        self._shelf = shelf(self._scorer, resident)
        self._stage1 = Stage1(gallery.path, self._scorer.fingerprint, search)

    def query(
        self,
        reference: Reference,
        text: str,
        k: int = 10,
        where: Mapping[str, str | Sequence[str]] | None = None,
        rerank: int = 100,
        min_score: float = 0.0,
    ) -> Result:
        """Find the `k` pictures that are like `reference` but for what `text` says.

        `reference` is a file, a picture's bytes, or the id of a gallery picture, which needs no encoding and is not
        among the hits. `where` keeps only pictures with these metadata (see Snapshot.mask); k are found if there are k.
        The best `rerank` of stage 1 are ordered by the whole score, at least k; 0 keeps stage 1's order.
        Of the k, those whose confidence is lower than `min_score` (0 to 1) are left out.
        Raises UsageError, NotFoundError, ImageError, TextError, IntegrityError.
        """
        if k < 1 or rerank < 0:
            raise UsageError(f"k is {k} and rerank is {rerank}; give a k of 1 or more and a rerank of 0 or more")
        self._check_least(min_score, rerank)
        clock = _Clock()
        with self.gallery.reading() as snapshot:
            mask = snapshot.mask(where)
            row, features = self._reference(snapshot, reference, clock)
            if row is not None:
                mask[row] = False
            clock.start()
            query = self._scorer.compose(features, [text])[0]
            clock.lap("text")

            def fetch(rows: Rows) -> TargetFeatures:
                return self.gallery.targets(rows, snapshot)

            wanted = pairs_scored(self._scorer, max(rerank, k) if rerank else 0, len(snapshot))
            ranking = self._ranked(snapshot, query, mask, fetch, k, wanted, clock)
            hits = self._hits(snapshot, query, ranking, fetch)
            clock.lap("stage2")
        decided = [hit.match for hit in hits if hit.confidence is not None]
        kept = tuple(hit for hit in hits if hit.confidence is None or hit.confidence >= min_score)
        return Result(hits=kept, matches=any(decided) if decided else None, timings_ms=clock.end())

    def answer(self, queries: "Sequence[Query]") -> list[Result | NsfseError]:
        """Answer a batch; a query that cannot be answered is its error."""
        return [self._answered(query) for query in queries]

    def _answered(self, query: "Query") -> Result | NsfseError:
        try:
            if len(query.references) != 1 or len(query.texts) != 1:
                raise UsageError("give one picture and one text")
            return self.query(query.references[0], query.texts[0], query.k, query.where, query.rerank, query.min_score)
        except NsfseError as error:
            return error

    def _check_least(self, min_score: float, rerank: int) -> None:
        if not 0 <= min_score <= 1:
            raise UsageError(f"min_score is {min_score}; give a confidence from 0 to 1")
        if min_score > 0 and self._decision is None:
            raise UsageError(
                "this model tells no confidence, which min_score needs: train it to its end and export it again, "
                "or leave min_score at 0"
            )
        if min_score > 0 and not rerank:
            raise UsageError("without stage 2 there is no confidence, which min_score needs; give a rerank of 100")

    def _ranked(
        self,
        snapshot: Snapshot,
        query: QueryFeatures,
        mask: Mask,
        fetch: Callable[[Rows], TargetFeatures],
        k: int,
        wanted: int,
        clock: "_Clock",
    ) -> Ranking:
        """Do both stages, on the device where the gallery lies there."""
        if self._shelf is None or max(k, wanted) > MOST_PAIRS:
            found = self._stage1(snapshot, query.vector, max(k, wanted), mask)
            clock.lap("stage1")
            return rerank_rows(self._scorer, query, *found, fetch, k, wanted)
        gallery = self._shelf.gallery(snapshot, fetch)
        top = gallery.search(query.vector, max(k, wanted), mask)
        clock.lap("stage1")
        if wanted and len(top.rows):
            return gallery.rerank(query, top, k)
        return rerank_rows(self._scorer, query, top.rows, top.scores, fetch, k, 0)

    def _reference(
        self, snapshot: Snapshot, reference: Reference, clock: "_Clock"
    ) -> tuple[int | None, TargetFeatures]:
        """Return the reference's row, if it is a gallery picture, and its features [1, d], [1, R, d]."""
        row = _row_of(snapshot, reference)
        if row is not None and (isinstance(reference, str) or self.gallery.is_current(row, snapshot)):
            return row, self.gallery.targets([row], snapshot)
        clock.start()
        pixels = self._pixels(reference)
        clock.lap("decode")
        features = self._scorer.encode_images(pixels[None])
        clock.lap("image")
        return row, features

    def _pixels(self, reference: Reference) -> Pixels:
        from nsfse_runtime.images import load_image

        return reference if isinstance(reference, np.ndarray) else load_image(reference, self._scorer.image_size)

    def _hits(
        self, snapshot: Snapshot, query: QueryFeatures, ranking: Ranking, fetch: Callable[[Rows], TargetFeatures]
    ) -> tuple[Hit, ...]:
        if not len(ranking.rows):
            return ()
        # Without a second stage the hits' words are scored all the same: a hit always has its evidence.
        pair = ranking.pair or score_rows(self._scorer, query, ranking.rows, fetch)
        matches = (pair.word_scores - pair.boundary) @ query.word_weights >= 0
        confidences = self._decision.confidences(query, ranking) if self._decision else None
        if self._decision and confidences is not None:
            matches = confidences >= self._decision.threshold
        return tuple(
            Hit(
                id=snapshot.ids[row],
                path=str(Path(snapshot.folder, snapshot.ids[row])),
                score=float(ranking.scores[at]),
                match=bool(matches[at]) if query.tokens else None,
                evidence=_evidence(query, pair, at),
                confidence=None if confidences is None else float(confidences[at]),
            )
            for at, row in enumerate(ranking.rows)
        )


def _row_of(snapshot: Snapshot, reference: Reference) -> int | None:
    """Return the row of a reference that is a gallery picture: by its id, by its file, or by its name alone."""
    if isinstance(reference, bytes | np.ndarray):
        return None
    if isinstance(reference, PictureId):
        return snapshot.row(reference)
    name = os.fspath(reference)
    if isinstance(reference, str) and snapshot.has(name):
        return snapshot.row(name)
    if os.path.exists(name) or not isinstance(reference, str):
        real, folder = os.path.realpath(name), Path(snapshot.folder)
        inside = Path(real).is_relative_to(folder) and snapshot.has(Path(real).relative_to(folder).as_posix())
        return snapshot.row(Path(real).relative_to(folder).as_posix()) if inside else None
    try:
        return snapshot.row(name)
    except NotFoundError:
        raise NotFoundError(
            f"{printable(name)} is neither a file nor a picture of the gallery; check the path or the id"
        ) from None


def _evidence(query: QueryFeatures, pair: PairScores, at: int) -> tuple[WordEvidence, ...]:
    words = zip(query.tokens, pair.word_scores[at], query.word_weights, strict=True)
    return tuple(
        WordEvidence(word, float(score), bool((score >= pair.boundary) == (kappa >= 0)), float(kappa))
        for word, score, kappa in words
    )


class _Clock:
    """Times the parts of one query, in ms."""

    def __init__(self) -> None:
        self._start = self._last = perf_counter()
        self._laps = dict.fromkeys(("decode", "image", "text", "stage1", "stage2"), 0.0)

    def start(self) -> None:
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self._laps[name] += (now - self._last) * 1000
        self._last = now

    def end(self) -> dict[str, float]:
        laps = {**self._laps, "total": (perf_counter() - self._start) * 1000}
        return {name: round(value, 3) for name, value in laps.items()}
