"""Retriever: a reference image and a text in, hits with the evidence of each word out."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from nsfse_runtime.errors import NotFoundError, NsfseError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.snapshot import Snapshot
from nsfse_runtime.retrieval.compose import Given, ask, stacked
from nsfse_runtime.retrieval.query import Asked, GalleryId, Query, Reference, Upload
from nsfse_runtime.retrieval.results import Hit, Result, WordEvidence, hits_of
from nsfse_runtime.retrieval.text_warnings import notes_of, readings
from nsfse_runtime.retrieval.timing import Clock
from nsfse_runtime.search.first_stage import Search, Stage1
from nsfse_runtime.search.on_device import MOST_PAIRS, shelf
from nsfse_runtime.search.two_stage import Ranking, ordered, rerank_rows, score_rows, taken
from nsfse_runtime.types import Mask, PairScores, Pixels, Rows, Scorer, TargetFeatures, no_evidence

__all__ = ["Hit", "Query", "Reference", "Result", "Retriever", "WordEvidence"]

P = ParamSpec("P")
T = TypeVar("T")
_MOST = 32  # images encoded at once


class Retriever:
    """Answers queries over a gallery with the model whose features it holds."""

    def __init__(
        self,
        model: Scorer,
        gallery: Gallery,
        *,
        search: Search = "auto",
        resident: bool | None = None,
    ) -> None:
        """Serve `gallery`; with `resident` it lies on the model's device, whole, from the first query on.

        By default it does where the model runs on a GPU; for a single query it is not worth its time. `search` is how
        stage 1 looks through a gallery that does not lie there (see nsfse_runtime.search.first_stage).

        Raises VersionError when the gallery holds features of another model, IntegrityError (a damaged bundle),
        UsageError (nothing to lie on a device with), or MissingExtraError (a search by an index, and faiss is not
        there).
        """
        self._scorer, self.gallery = model, gallery
        self._info = self._scorer.info
        self._reads = self._scorer.tokenizer
        gallery.check_model(self._scorer)
        self._shelf = shelf(self._scorer, resident)
        self._stage1 = Stage1(gallery.path, self._scorer.fingerprint, search)

    def query(
        self,
        reference: Reference | Sequence[Reference],
        text: str | Sequence[str] = (),
        k: int = 10,
        where: Mapping[str, str | Sequence[str]] | None = None,
        rerank: int = 100,
        min_confidence: float = 0.0,
        *,
        negative_texts: Sequence[str] = (),
        negative_images: Sequence[Reference] = (),
        balance: float = 0.5,
        heatmaps: bool = False,
    ) -> Result:
        """Find the `k` images that are like `reference` but for what `text` says.

        `reference` is a file, an image's bytes, its pixels [H, W, 3] (uint8, RGB), a Pillow image, or the id of a
        gallery image, which needs no encoding where its file is as it was. It is not among the hits, nor is any image
        whose file has the same bytes. `where` keeps only images with these metadata (see Snapshot.mask); k are found if
        there are k. The best `rerank` of stage 1 are ordered by the whole score, at least k; 0 keeps stage 1's order.
        Of the k, those whose confidence is lower than `min_confidence` (0 to 1) are left out; where words of a text are
        not known or not read, no hit has a confidence, and with a `min_confidence` none is left.

        Several references, several texts (one edit each), `negative_texts` (what must not be there), `negative_images`
        (images that hits must not be like) and `balance` (0 like the image, 1 like the words) are as in Query and
        docs/queries.md. With `heatmaps` the evidence tells where in a hit each word was found. Raises UsageError,
        NotFoundError, ImageError, TextError, IntegrityError.
        """
        found = self.answer(
            [
                Query(
                    references=_each(reference),
                    texts=(text,) if isinstance(text, str) else tuple(text),
                    negative_texts=tuple(negative_texts),
                    negative_images=tuple(negative_images),
                    balance=balance,
                    k=k,
                    where=where,
                    rerank=rerank,
                    min_confidence=min_confidence,
                    heatmaps=heatmaps,
                )
            ]
        )[0]
        if isinstance(found, NsfseError):
            raise found
        return found

    def answer(self, queries: Sequence[Query]) -> list[Result | NsfseError]:
        """Answer a batch: images and texts are encoded together, and each answer is what it would be alone.

        In the place of a query that cannot be answered is its error; the others are answered all the same. A query's
        times are those of the batch until all are composed, then its own. Raises what spoils all: IntegrityError
        (a damaged gallery), or InputError.
        """
        clock = Clock()
        with self.gallery.reading() as snapshot:
            looked = [tried(self._look, snapshot, query, clock) for query in queries]
            given = self._given(snapshot, looked, clock)
            clock.start()
            asked = iter(ask(self._scorer, given))
            clock.lap("text")
            composed = [look if isinstance(look, NsfseError) else (look, next(asked)) for look in looked]
            return [
                each if isinstance(each, NsfseError) else self._answered(snapshot, *each, clock.fork())
                for each in composed
            ]

    def _look(self, snapshot: Snapshot, query: Query, clock: Clock) -> "_Look":
        """Check a query and find its images: rows of the gallery, or pixels yet to be encoded."""
        query.check()
        self._check_least(query)
        mask = snapshot.mask(query.where)
        images = [self._image(snapshot, each, mask, clock) for each in (*query.references, *query.negative_images)]
        return _Look(query, mask, images)

    def _check_least(self, query: Query) -> None:
        if query.min_confidence > 0 and self._info.confidence is None:
            raise UsageError(
                "this model tells no confidence, which min_confidence needs: train it to its end and export it again, "
                "or leave min_confidence at 0"
            )
        if query.min_confidence > 0 and not query.rerank:
            raise UsageError("without stage 2 there is no confidence, which min_confidence needs; give a rerank of 100")
        if query.min_confidence > 0 and not query.plain:
            raise UsageError("only a query of one image and one text has a confidence; leave min_confidence at 0")

    def _image(self, snapshot: Snapshot, reference: Reference, mask: Mask, clock: Clock) -> "int | Pixels":
        """Return an image's row, whose features are still right, or its pixels [H, W, 3].

        `mask` loses that row and all images whose files have the same bytes.
        """
        row = _row_of(snapshot, reference)
        if row is not None:
            mask[snapshot.copies(row)] = False
            path = Path(snapshot.folder, snapshot.ids[row])
            if isinstance(reference, GalleryId) or snapshot.is_current(row):
                return row
            if isinstance(reference, str) and snapshot.has(reference) and not path.is_file():
                return row  # an id, whose file is gone: its features are all there is
            reference = path
        clock.start()
        pixels, sha256 = _decoded(reference, self._scorer.image_size)
        if sha256 is not None:
            mask[snapshot.rows_with_content(sha256)] = False
        clock.lap("decode")
        return pixels

    def _given(self, snapshot: Snapshot, looked: "Sequence[_Look | NsfseError]", clock: Clock) -> list[Given]:
        """Return the features of every query that has none wrong; all pixels are encoded together."""
        good = [look for look in looked if isinstance(look, _Look)]
        images = [image for look in good for image in look.images]
        clock.start()
        new = [image for image in images if not isinstance(image, int)]
        parts = [self._scorer.encode_images(np.stack(new[at : at + _MOST])) for at in range(0, len(new), _MOST)]
        if new:
            clock.lap("image")
        fresh = iter([part.take([at]) for part in parts for at in range(len(part))])
        known = [snapshot.targets([image]) if isinstance(image, int) else next(fresh) for image in images]
        found, at = [], 0
        for look in good:
            own, at = known[at : at + len(look.images)], at + len(look.images)
            count = len(look.query.references)
            found.append(Given(look.query, stacked(own[:count]), stacked(own[count:]) if own[count:] else None))
        return found

    def _answered(
        self, snapshot: Snapshot, look: "_Look", asked: Asked | NsfseError, clock: Clock
    ) -> Result | NsfseError:
        if isinstance(asked, NsfseError):
            return asked
        return tried(self._search, snapshot, look, asked, clock)

    def _search(self, snapshot: Snapshot, look: "_Look", asked: Asked, clock: Clock) -> Result:
        def fetch(rows: Rows) -> TargetFeatures:
            return snapshot.targets(rows)

        query = look.query
        deep = max(query.rerank, query.k) if query.rerank else 0
        wanted = asked.pairs_scored(self._info.mode, deep, len(snapshot))
        ranking = self._ranked(snapshot, asked, look.mask, fetch, query.k, wanted, clock)
        grid = self._info.grid if query.heatmaps else None
        texts = readings(self._reads, query.texts, query.negative_texts, asked)
        whole = all(text.whole for text in texts)
        hits = self._hits(snapshot, asked, ranking, fetch, grid, whole)
        clock.lap("stage2")
        decided = [hit.is_match for hit in hits if hit.confidence is not None]
        kept = tuple(hit for hit in hits if (hit.confidence or 0.0) >= query.min_confidence)
        return Result(
            hits=kept,
            has_match=any(decided) if decided else None,
            threshold=self._info.confidence.threshold if self._info.confidence and decided else None,
            timings_ms=clock.end(),
            grid=grid if kept else None,
            texts=texts,
            notes=notes_of(texts, self._reads.max_words if self._reads else 0),
        )

    def _ranked(
        self,
        snapshot: Snapshot,
        asked: Asked,
        mask: Mask,
        fetch: Callable[[Rows], TargetFeatures],
        k: int,
        wanted: int,
        clock: Clock,
    ) -> Ranking:
        """Do both stages, on the device where the gallery lies there."""

        def score(rows: Rows) -> PairScores:
            return asked.combined(score_rows(self._scorer, asked.all, rows, fetch))

        if self._shelf is None or max(k, wanted) > MOST_PAIRS:
            found = self._stage1(snapshot, asked.vector, max(k, wanted), mask)
            clock.lap("stage1")
            return rerank_rows(score, *found, k, wanted)
        gallery = self._shelf.gallery(snapshot, fetch)
        top = gallery.search(asked.vector, max(k, wanted), mask)
        clock.lap("stage1")
        if wanted and len(top.rows):
            by_row = np.argsort(top.rows)
            pair = taken(asked.combined(gallery.pairs(asked.all, top)), by_row)
            return ordered(top.rows, top.scores, by_row, pair, k)
        return rerank_rows(score, top.rows, top.scores, k, 0)

    def _hits(
        self,
        snapshot: Snapshot,
        asked: Asked,
        ranking: Ranking,
        fetch: Callable[[Rows], TargetFeatures],
        grid: tuple[int, int] | None,
        whole: bool,
    ) -> tuple[Hit, ...]:
        if not len(ranking.rows):
            return ()
        pair = ranking.pair
        if pair is None:
            # Without a second stage the hits' words are scored all the same: a hit always has its evidence.
            found = score_rows(self._scorer, asked.all, ranking.rows, fetch) if asked.tokens else None
            pair = asked.combined(found) if found else no_evidence(ranking.scores)
        decision = self._info.confidence if asked.reference is not None and ranking.pair else None
        targets = fetch(ranking.rows) if decision or grid else None
        return hits_of(snapshot.ids, snapshot.folder, asked, ranking, pair, decision, targets, grid, whole=whole)


@dataclass(frozen=True, slots=True)
class _Look:
    """A query with what it may find (`mask` [N]) and its images, those to avoid last: rows, or pixels [H, W, 3]."""

    query: Query
    mask: Mask
    images: "list[int | Pixels]"


def tried(function: "Callable[P, T]", *args: "P.args", **options: "P.kwargs") -> "T | NsfseError":
    """Return what `function` returns, or its error in its place."""
    try:
        return function(*args, **options)
    except NsfseError as error:
        return error


def _each(reference: "Reference | Sequence[Reference]") -> tuple[Reference, ...]:
    """Return the references of a query: an array, bytes and a name are one, though they could be iterated over."""
    one = isinstance(reference, bytes | bytearray | memoryview | str | os.PathLike | np.ndarray | Upload)
    return (reference,) if one or not isinstance(reference, Iterable) else tuple(reference)  # type: ignore[arg-type, return-value]


def _decoded(reference: Reference, size: tuple[int, int]) -> "tuple[Pixels, bytes | None]":
    """Return an image fitted to `size` (height, width) [h, w, 3], and the SHA-256 of its file where there is one.

    Raises ImageError, NotFoundError, or UsageError for what is no image.
    """
    from PIL import Image

    from nsfse_runtime.gallery.reader import content_hash
    from nsfse_runtime.images import decode

    if isinstance(reference, Upload):
        return _fitted(reference.pixels, size), reference.sha256
    if isinstance(reference, np.ndarray):
        return _fitted(reference, size), None
    if isinstance(reference, Image.Image):
        return decode.fit_pillow(reference, size), None
    if isinstance(reference, bytes | bytearray | memoryview):
        data = bytes(reference)
        return decode.load_image(data, size), hashlib.sha256(data).digest()
    if not isinstance(reference, str | os.PathLike):
        raise UsageError(
            f"a reference is a {type(reference).__name__}; give a path, an id, bytes, an array [H, W, 3] of uint8, "
            "or a Pillow image"
        )
    path = os.fsdecode(os.fspath(reference))
    pixels, sha256 = decode.load_image(path, size), content_hash(Path(path))
    return pixels, sha256


def _fitted(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return `pixels` fitted to `size` (height, width). Raises UsageError for an array that is no image."""
    from nsfse_runtime.images.decode import fit_image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(
            f"an array of {pixels.dtype} {list(pixels.shape)} is no image; give uint8 of the shape [height, width, 3], "
            "RGB from 0 to 255"
        )
    return pixels if pixels.shape[:2] == size else fit_image(np.ascontiguousarray(pixels), size)


def _row_of(snapshot: Snapshot, reference: Reference) -> int | None:
    """Return the row of a reference that is a gallery image: by its id, by its file, or by its name alone."""
    if not isinstance(reference, str | os.PathLike):
        return None
    name = os.fsdecode(os.fspath(reference))
    if isinstance(reference, str) and (same := snapshot.same(name)):
        return snapshot.row(same)
    if isinstance(reference, GalleryId):
        hint = snapshot.hint(name) or "give an id as results show it"
        raise NotFoundError(printable(f"the gallery has no image {name[:200]}; {hint}"))
    if os.path.exists(name) or not isinstance(reference, str):
        real, folder = os.path.realpath(name), Path(snapshot.folder)
        inside = Path(real).is_relative_to(folder) and snapshot.has(Path(real).relative_to(folder).as_posix())
        return snapshot.row(Path(real).relative_to(folder).as_posix()) if inside else None
    try:
        return snapshot.row(name)
    except NotFoundError:
        raise NotFoundError(f"{_what_is_not_there(name)}{_hinted(snapshot, name)}") from None


def _what_is_not_there(name: str) -> str:
    if "://" in name or name.startswith("data:"):
        return "an image is not fetched from a URL; save it as a file and name that"
    return f"{printable(name[:200])} is neither a file nor an image of the gallery; check the path or the id"


def _hinted(snapshot: Snapshot, name: str) -> str:
    hint = snapshot.hint(name)
    return f"; {printable(hint)}" if hint else ""
