"""Connections to a gallery's file for reading: one for each thread."""

import threading
from pathlib import Path

from nsfse_runtime.gallery.store import GalleryTables


class Connections:
    """Gives each thread a connection of its own, opened at first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._opening = threading.Lock()
        self._stores: list[GalleryTables] = []

    def store(self) -> GalleryTables:
        """Return this thread's connection. Raises IntegrityError or OutputError."""
        store: GalleryTables | None = getattr(self._local, "store", None)
        if store is None or store.is_outdated:
            outdated, store = store, GalleryTables.open_reader(self.path)
            self._local.store = store
            with self._opening:
                self._stores.append(store)
                if outdated is not None:
                    self._stores.remove(outdated)
                    outdated.close()
        return store

    def close(self) -> None:
        """Close the connections of all threads; a later use opens one again."""
        with self._opening:
            self._local = threading.local()
            while self._stores:
                self._stores.pop().close()
