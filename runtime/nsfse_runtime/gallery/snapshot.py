"""One committed generation of a gallery, in memory: the rows that a search speaks of."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import InputError, NotFoundError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.columns import Column, known_column
from nsfse_runtime.gallery.connections import Connections
from nsfse_runtime.gallery.filters import Selection, Where, select
from nsfse_runtime.gallery.sqlite_file import damaged, well_formed
from nsfse_runtime.gallery.store import GalleryTables
from nsfse_runtime.image_names import Names, leads_out, nfc
from nsfse_runtime.inference import region_codec
from nsfse_runtime.inference.region_codec import is_sound
from nsfse_runtime.types import Floats, Mask, TargetFeatures


def _distinguishable(name: str) -> str:
    """Return an id so that it differs visibly from one that looks the same: with escapes where it must."""
    return name if nfc(name) == name else ascii(name)[1:-1]


class Snapshot:
    """One committed generation of a gallery: N images, row by row in the order of their ids.

    A Gallery gives it: `gallery.snapshot`, or `with gallery.reading() as snapshot`. Any method may raise IntegrityError
    (the file is damaged).

    Attributes:
        generation: The number of this generation.
        folder: The folder that was last indexed, "" before that.
        ids: The N ids: paths relative to the folder, with forward slashes, sorted.
        contents: The key of each row's content [N]; images with the same bytes share one.
        vectors: The stage-1 vectors [N, d], float32.
    """

    def __init__(self, connections: Connections) -> None:
        self._path, self._connections = connections.path, connections
        store = connections.store()
        meta = store.meta()
        self.generation, self.folder = int(meta["generation"]), str(meta["folder"])
        self._shape = meta.get("regions"), meta.get("dim")
        items = store.read_items()
        if len(items) != meta["items"]:
            raise damaged(self._path, f"{len(items)} images of {meta['items']}")
        self.ids: tuple[str, ...] = tuple(item[0] for item in items)
        with well_formed(self._path):
            self.contents = np.array([item[1] for item in items], np.int64)
        self._metadata = [item[2] for item in items]
        self._columns: dict[str, Column] = {}
        self._checksums = np.empty(0, np.uint64)
        self.vectors = self._load_vectors(store)

    def _load_vectors(self, store: GalleryTables) -> Floats:
        """Return the vectors [N, d], float32."""
        keys, checksums, blobs = [], [], []
        for key, vector, checksum in store.read_vectors():
            keys.append(key)
            checksums.append(checksum)
            blobs.append(vector)
        if not keys:
            if len(self.ids):
                raise damaged(self._path, "the vectors are missing")
            return np.empty((0, 0), np.float32)
        order = np.argsort(np.array(keys, np.int64))
        positions = order[np.minimum(np.searchsorted(np.array(keys)[order], self.contents), len(order) - 1)]
        if not np.array_equal(np.array(keys)[positions], self.contents):
            raise damaged(self._path, "a vector is missing")
        self._checksums = np.array(checksums, np.uint64)[positions]
        if {len(blob) for blob in blobs} != {4 * (self._shape[1] or 0)}:
            raise damaged(self._path, "a vector is not of the length of the others")
        vectors = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), -1)
        if not is_sound(vectors):
            raise damaged(self._path, "a feature is not a number, or a huge one")
        return vectors[positions].astype(np.float32, copy=False)

    @property
    def url(self) -> str:
        """Return the gallery's path, for messages."""
        return str(self._path)

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids)

    @cached_property
    def vector_keys(self) -> NDArray[np.uint64]:
        """Return what names each row's vector, in this generation and any other: its key and the CRC of its content."""
        return self.contents.astype(np.uint64) << np.uint64(32) | self._checksums

    def targets(self, rows: Sequence[int] | NDArray[np.intp]) -> TargetFeatures:
        """Return the features of `rows`; their regions are read from the file.

        Args:
            rows: Row numbers [K].

        Returns:
            Vectors [K, d] and regions [K, R, d].

        Raises:
            InputError: The gallery was changed since this generation was read.
        """
        indices = np.asarray(rows, np.intp)
        vectors = self.vectors[indices]
        encoded, store = self._encoded_regions(indices), self._connections.store()
        decoded = store.decode_regions(encoded, vectors.shape[1])
        if encoded and decoded.shape[1:] != self._shape:
            raise damaged(self._path, "an image's regions are not as many as those of others")
        return TargetFeatures(vectors, decoded)

    def _encoded_regions(self, rows: NDArray[np.intp]) -> list[bytes]:
        keys = self.contents[rows].tolist()
        store = self._connections.store()
        regions = store.read_regions(keys)
        if not regions.keys() >= set(keys):
            if store.generation == self.generation:
                raise damaged(self._path, "an image's regions are missing")
            raise InputError(f"{self._path} was changed since it was read; call refresh() and try again")
        return [regions[key] for key in keys]

    def encoded_regions(self, rows: Sequence[int], format_version: int) -> list[bytes]:
        """Return the regions of `rows` as a gallery of that format stores them. Raises InputError as `targets` does."""
        own = self._connections.store().format_version
        if min(own, 2) == min(format_version, 2):  # later formats encode them as 2 does
            return self._encoded_regions(np.asarray(rows, np.intp))
        return [region_codec.to_bytes(regions, format_version) for regions in self.targets(rows).regions]

    def path_of(self, row: int) -> Path:
        """Return where the image of `row` was when the folder was last indexed."""
        name = self.ids[row]
        if leads_out(name):
            raise damaged(self._path, "an id leads out of its folder")
        return Path(self.folder, name)

    def sha256(self, row: int) -> bytes:
        """Return the SHA-256 of the file of `row` as it was encoded. Raises InputError where it was removed since."""
        if (recorded := self._connections.store().read_file(self.ids[row])) is None:
            raise InputError(f"{self._path} was changed since it was read; call refresh() and try again")
        return recorded[1]

    def is_current(self, row: int) -> bool:
        """Tell whether the image's file is still as it was when it was encoded, by its time or by its content."""
        from nsfse_runtime.gallery.reader import content_hash  # which needs Pillow

        recorded = self._connections.store().read_file(self.ids[row])
        path = self.path_of(row)
        try:
            status = path.stat()
        except OSError:
            return False
        if recorded is None:
            return False
        (size, mtime_ns), sha256 = recorded
        return size == status.st_size and (mtime_ns == status.st_mtime_ns or sha256 == content_hash(path))

    def has(self, name: str) -> bool:
        """Tell whether `name` is an id."""
        return name in self._rows

    def row(self, name: str) -> int:
        """Return the row of an image.

        Args:
            name: Its id, or another form of it that fits one image alone. That is the end of its path, without
                suffix, or in other letter case (see image_names.Names.find).

        Raises:
            NotFoundError: No image is called so; the error has the nearest id.
            UsageError: Several images are called so.
        """
        if name in self._rows:
            return self._rows[name]
        match = self._names.find(name)
        if len(match.ids) > 1:
            examples = ", ".join(map(_distinguishable, match.ids[:3]))
            raise UsageError(printable(f"{len(match.ids)} images are called {name} ({examples}); give the whole id"))
        if match.id is None:
            hint = self.hint(name) or "give an id as results show it"
            raise NotFoundError(printable(f"{self._path} has no image {name[:200]}; {hint}"))
        return self._rows[match.id]

    def same(self, name: str) -> str | None:
        """Return the id that `name` is, in whatever Unicode form; None where there is none."""
        return name if name in self._rows else self._names.same(name)

    def hint(self, name: str) -> str:
        """Return "did you mean ID?" with the id that is most like `name`, "" where none is."""
        similar = self._names.nearest(name)
        return f"did you mean {similar}?" if similar else ""

    def copies(self, row: int) -> NDArray[np.intp]:
        """Return the rows of all images whose files have the same bytes as that of `row`, itself among them."""
        return np.flatnonzero(self.contents == self.contents[row])

    def rows_with_content(self, sha256: bytes) -> NDArray[np.intp]:
        """Return the rows of the images whose files have this SHA-256."""
        key = self._connections.store().content_key(sha256)
        return np.flatnonzero(self.contents == key) if key is not None else np.empty(0, np.intp)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def _names(self) -> Names:
        return Names(self.ids, self.folder)

    @cached_property
    def metadata(self) -> tuple[dict[str, str], ...]:
        """Return each row's columns and values."""
        with well_formed(self._path):
            rows: tuple[dict[str, str], ...] = tuple(map(json.loads, self._metadata))
            if not {type(value) for row in rows for value in row.values()} <= {str}:
                raise TypeError
            return rows

    def metadata_of(self, row: int) -> dict[str, str]:
        """Return the columns and values of one row, without reading those of the others."""
        values: dict[str, str] = json.loads(self._metadata[row])
        return values

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns, sorted."""
        return tuple(sorted({column for values in self.metadata for column in values}))

    def mask(self, where: Where | None) -> Mask:
        """Return which rows a filter leaves.

        Args:
            where: Conditions by column, all of which must hold: a value, several of which an image must have one, or
                operators such as {"$lt": 30} (docs/queries.md §9). A string is one value where an image has it; else
                commas part several. Blanks around values and their Unicode form do not count.

        Returns:
            A mask [N].

        Raises:
            UsageError: No image has such a column, or `where` is no filter.
        """
        return self.select(where).mask

    def select(self, where: Where | None) -> Selection:
        """Return which rows a filter leaves, and notes: values that no image has, or that do not compare."""
        return select(where, len(self), self.column)

    def column(self, name: str) -> Column:
        """Return the column called `name`, or the only one called so but for case and blanks. Raises UsageError."""
        name = known_column(name, self.columns, self.url)
        if name not in self._columns:
            self._columns[name] = Column(name, [values.get(name) for values in self.metadata])
        return self._columns[name]

    def nearest_value(self, column: str, value: str) -> str | None:
        """Return the value of `column` most like `value`, None where it has that one, or none is near."""
        return self.column(column).nearest(value)
