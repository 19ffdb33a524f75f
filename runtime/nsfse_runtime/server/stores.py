"""Galleries in databases as a server sees them: it reads them, and `nsfse index` alone changes their images."""

from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from nsfse_runtime.gallery.filters import Where
from nsfse_runtime.server.galleries import ServedGallery
from nsfse_runtime.server.schemas import GalleryFacts, ImageItem, ListReply
from nsfse_runtime.stores.protocol import GalleryStore, Record

if TYPE_CHECKING:
    from nsfse_runtime.inference.onnx_scorer import OnnxScorer

SAMPLE = 2000
"""The first so many images give the values of columns."""
_FETCHED_AT_ONCE = 1000
_FACTS_SECONDS = 60.0


class ServedStore(ServedGallery):
    """A gallery in a database with its model."""

    def __init__(self, name: str, model: "OnnxScorer", store: GalleryStore) -> None:
        super().__init__(name, model, store)
        self._store, self.folder = store, store.info().facts.folder
        self._facts: tuple[float, GalleryFacts] | None = None

    @property
    def where(self) -> str:
        """Return the URL, without a password."""
        return self._store.url

    def count(self) -> int:
        """Return how many images there are."""
        return self._store.info().images

    def facts(self) -> GalleryFacts:
        """Return the facts as of the last minute; columns are those of the first images (SAMPLE)."""
        if self._facts is None or monotonic() - self._facts[0] > _FACTS_SECONDS:
            metadata = [dict(record.metadata) for record in self._sample()]
            self._facts = monotonic(), self._facts_of(self.count(), metadata)
        return self._facts[1]

    def _sample(self) -> list[Record]:
        records: list[Record] = []
        while len(records) < SAMPLE:
            with self._store.reading():
                ids = self._store.ids(after=records[-1].id if records else "", limit=_FETCHED_AT_ONCE)
                records += self._store.fetch(ids, regions=False)
            if len(ids) < _FETCHED_AT_ONCE:
                break
        return records

    def list_images(self, where: Where, offset: int, limit: int) -> ListReply:
        """Return `limit` images from the `offset`-th on, of those that fit `where`. Raises UsageError."""
        with self._store.reading():
            info = self._store.info()
            # All images tie with a vector of zeros, and ties come in the order of ids.
            zeros = np.zeros(info.facts.dim, np.float32)
            found = self._store.search(zeros, min(offset + limit, info.images), where or None, exact=True)
            records = self._store.fetch(found.ids[offset:], regions=False)
        images = [ImageItem(record.id, dict(record.metadata)) for record in records]
        return ListReply(total=found.total if where else info.images, images=images, notes=found.notes)
