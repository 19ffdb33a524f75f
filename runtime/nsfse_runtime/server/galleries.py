"""Galleries as a server sees them: answers with metadata, lists, and the facts for /v1/info."""

import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from nsfse_runtime.errors import NotFoundError, NsfseError
from nsfse_runtime.gallery.filters import Where
from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.retrieval.retriever import Result, Retriever
from nsfse_runtime.server.schemas import MAX_COLUMN_VALUES, BundleFacts, GalleryFacts, ImageItem, ListReply
from nsfse_runtime.types import Floats, GalleryId

if TYPE_CHECKING:
    from nsfse_runtime.gallery.gallery import Gallery
    from nsfse_runtime.inference.onnx_scorer import OnnxScorer
    from nsfse_runtime.stores.protocol import GalleryStore

# A text is suggested where the model knows all of its words: changes of an image, and what stands alone.
_EDITS = (
    *("make it red", "in blue", "without stripes", "with long sleeves", "with dots", "the same in black"),
    *("make it shorter", "in another colour", "plain", "a white one", "more elegant", "for summer"),
)
_DESCRIPTIONS = ("red dress", "blue shirt with stripes", "black shoes", "a dog on the beach", "sunset over the sea")
# Columns of which two values describe an image, as in "red dress".
_COLOUR_COLUMNS, _KIND_COLUMNS = ("colour", "color"), ("category", "kind", "type", "product_type")
_MAX_SUGGESTIONS = 6
_DRAWINGS = "This model has learned from {} alone. Of photographs it knows little."


class VectorOf(msgspec.Struct, frozen=True):
    """A query whose stage-1 vector is wanted, and no hits."""

    query: Query


Answer = Result | Floats | NsfseError


class ServedGallery(ABC):
    """A gallery with its model, by `name`. Its methods read files: call them in a thread.

    `note` is what a user should know before trusting it; by default made of what the model was trained on.
    """

    def __init__(
        self, name: str, model: "OnnxScorer", gallery: "Gallery | GalleryStore", note: str | None = None
    ) -> None:
        self.name, self.model, self._note = name, model, note
        self.retriever = Retriever(model, gallery)
        self.folder = ""  # the folder that the gallery follows, as of the last `facts`

    def answer(self, queries: list[Query | VectorOf]) -> list[Answer]:
        """Answer a batch; each answer is that of its query alone."""
        searched = [query for query in queries if isinstance(query, Query)]
        embedded = [each.query for each in queries if isinstance(each, VectorOf)]
        results = iter(self.retriever.answer(searched) if searched else [])
        vectors = iter(self.retriever.embed(embedded) if embedded else [])
        return [next(results) if isinstance(each, Query) else next(vectors) for each in queries]

    def warm_up(self) -> None:
        """Run a real query by an upload and, where the gallery has images, by one of them.

        Raises NsfseError: the gallery or the model cannot be used.
        """
        from PIL import Image

        image = io.BytesIO()
        Image.new("RGB", (8, 8), "grey").save(image, "PNG")
        text = self._known_text()
        self.model.tokenizer.nearest(text)  # the first unknown word would wait for the vocabulary's index
        self.retriever.query(image.getvalue(), text, k=1)
        self.canary()

    def canary(self) -> None:
        """Run a real query by an image of the gallery, where it has any.

        Raises NsfseError: the gallery or the model cannot be used any more.
        """
        with self.retriever.reading() as view:
            first = next(view.ids(), None)
        with suppress(NotFoundError):  # it was removed meanwhile
            if first is not None:
                self.retriever.query(GalleryId(first), self._known_text())

    def _known_text(self) -> str:
        """Return a text that this model can read. Raises TextError where it knows none."""
        text = next(iter(self.edits() or self.model.tokenizer.words()), "")
        self.model.tokenizer.encode([text])
        return text

    def edits(self) -> list[str]:
        """Return texts that change an image, of which this model knows every word."""
        return self._known(_EDITS)

    def _known(self, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if self.model.tokenizer.knows(text)][:_MAX_SUGGESTIONS]

    def note(self) -> str | None:
        """Return what a user should know of the model before trusting it."""
        trained_on = self.model.bundle.manifest.trained_on
        if self._note or not _source(trained_on).startswith("drawn"):
            return self._note
        return _DRAWINGS.format("drawings" if isinstance(trained_on, str) else trained_on.get("knows", "drawings"))

    def has(self, name: str) -> bool:
        """Return whether `name` is an id in the newest generation."""
        with self.retriever.reading() as view:
            return view.has(name)

    @property
    @abstractmethod
    def where(self) -> str:
        """Return the path or URL, which replies do not show."""

    @abstractmethod
    def count(self) -> int:
        """Return how many images there are."""

    @abstractmethod
    def facts(self) -> GalleryFacts:
        """Return the facts for /v1/info."""

    @abstractmethod
    def list_images(self, where: Where, offset: int, limit: int) -> ListReply:
        """Return `limit` images from the `offset`-th on, of those that fit `where`. Raises UsageError."""

    def _facts_of(self, images: int, metadata: Sequence[Mapping[str, str]]) -> GalleryFacts:
        """Return the facts of so many images with this metadata."""
        manifest = self.model.bundle.manifest
        bundle = BundleFacts(
            name=manifest.name,
            fingerprint=self.model.fingerprint,
            trained_on=_source(manifest.trained_on),
            precision=manifest.precision,
            has_confidence=self.model.info.confidence is not None,
            max_words=manifest.max_words,
            grid=manifest.grid,
        )
        return GalleryFacts(
            name=self.name,
            images=images,
            columns=_columns(metadata),
            bundle=bundle,
            edits=self.edits(),
            descriptions=self._known([*_descriptions(metadata)] or _DESCRIPTIONS),
        )


class ServedFile(ServedGallery):
    """A gallery file with its model; the server may change its images."""

    def __init__(self, name: str, model: "OnnxScorer", gallery: "Gallery", note: str | None = None) -> None:
        super().__init__(name, model, gallery, note)
        self.gallery = gallery
        self._facts: tuple[int, GalleryFacts] | None = None

    @property
    def where(self) -> str:
        """Return the file's path."""
        return str(self.gallery.path)

    def count(self) -> int:
        """Return how many images there are."""
        return len(self.gallery)

    def facts(self) -> GalleryFacts:
        """Return the facts of the newest generation."""
        with self.gallery.reading() as snapshot:
            if self._facts is None or self._facts[0] != snapshot.generation:
                self._facts = snapshot.generation, self._facts_of(len(snapshot), snapshot.metadata)
                self.folder = snapshot.folder
            return self._facts[1]

    def list_images(self, where: Where, offset: int, limit: int) -> ListReply:
        """Return `limit` images from the `offset`-th on, of those that fit `where`. Raises UsageError."""
        with self.gallery.reading() as snapshot:
            mask, notes = snapshot.select(where)
            rows = np.flatnonzero(mask)
            chosen = rows[offset : offset + limit]
            images = [ImageItem(snapshot.ids[row], snapshot.metadata[row]) for row in chosen]
        return ListReply(total=len(rows), images=images, notes=notes)


def _columns(metadata: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """Count the values of each column that has at most MAX_COLUMN_VALUES, the most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for values in metadata:
        for column, value in values.items():
            counts.setdefault(column, Counter())[value] += 1
    return {
        column: dict(count.most_common()) for column, count in sorted(counts.items()) if len(count) <= MAX_COLUMN_VALUES
    }


def _descriptions(metadata: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield texts like "red dress", from the most frequent such images on; no colour and no kind comes twice."""

    def value(values: Mapping[str, str], columns: Sequence[str]) -> str:
        return next((values[column] for column in columns if values.get(column)), "")

    pairs = Counter((value(row, _COLOUR_COLUMNS), value(row, _KIND_COLUMNS)) for row in metadata)
    seen = {""}
    for (colour, kind), _ in pairs.most_common():
        if not seen & {colour, kind}:
            seen |= {colour, kind}
            yield f"{colour} {kind}".replace("_", " ")


def _source(trained_on: str | Mapping[str, object]) -> str:
    return trained_on if isinstance(trained_on, str) else str(trained_on.get("source", ""))
