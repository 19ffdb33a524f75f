"""Gallery: images' features in one SQLite file, kept equal to a folder; one writer, many readers."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import NotFoundError, OutputError, UsageError, VersionError
from nsfse_runtime.gallery import store
from nsfse_runtime.gallery.snapshot import Snapshot
from nsfse_runtime.gallery.store import GalleryStore
from nsfse_runtime.types import Floats, Scorer, TargetFeatures

if TYPE_CHECKING:
    from nsfse_runtime.gallery.report import SyncProgress, SyncReport


class Gallery:
    """N images by row, in the order of their ids. Made by `open`; a context manager closes it.

    What is read is one committed generation, loaded at first use and kept until `refresh`; a Gallery may be shared by
    threads. Any reading method may raise IntegrityError (the file is damaged).
    """

    def __init__(self, path: Path, model: Scorer | None = None) -> None:
        self.path, self._model = path, model
        self._snapshot: Snapshot | None = None
        self._loading = threading.Lock()
        self._local = threading.local()
        self._stores: list[GalleryStore] = []

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: Scorer | None = None,
        *,
        create: bool = False,
        bundle_path: str | os.PathLike[str] | None = None,
    ) -> "Gallery":
        """Open a gallery, or with `create` make it; `model` is the one whose features it holds.

        A new gallery remembers where its bundle is (`bundle_path`, or where `model` lies).
        Raises NotFoundError, UsageError (a new gallery without a model), OutputError, IntegrityError, or VersionError
        (a newer format, or features of another bundle: nothing is deleted then).
        """
        gallery = cls(Path(path), model)
        if not store.exists(gallery.path):
            if not create:
                raise NotFoundError(f"no gallery at {path}; make it with: nsfse index GALLERY FOLDER -b BUNDLE")
            if model is None:
                raise UsageError(f"{path} is a new gallery, which needs a bundle; name one with -b BUNDLE")
            if not gallery.path.absolute().parent.is_dir():
                raise OutputError(f"{gallery.path.parent} is not a folder; make it first")
            bundle = bundle_path if bundle_path is not None else model.info.bundle_path
            store.create(gallery.path, model.fingerprint, os.path.abspath(bundle) if bundle is not None else "")
        store.check_format(gallery.path)
        if model is not None:
            gallery.check_model(model)
        return gallery

    def check_model(self, model: Scorer) -> None:
        """Raise VersionError when the gallery holds features of another model."""
        if model.fingerprint != (own := self.fingerprint):
            raise VersionError(
                f"{self.path} holds features of another bundle ({own[:12]}, not {model.fingerprint[:12]}); "
                "name its own bundle, or index into a new gallery"
            )

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        with self._loading:
            self._local = threading.local()
            while self._stores:
                self._stores.pop().close()

    def _store(self) -> GalleryStore:
        """Return this thread's own connection."""
        own: GalleryStore | None = getattr(self._local, "store", None)
        if own is None:
            own = self._local.store = GalleryStore.open_reader(self.path)
            with self._loading:
                self._stores.append(own)
        return own

    @contextmanager
    def reading(self) -> Iterator[Snapshot]:
        """Hold the newest generation whole, whatever a writer commits meanwhile: for a search and its regions."""
        own = self._store()
        with own.reading():
            yield self._newest(own)

    def _newest(self, own: GalleryStore) -> Snapshot:
        generation = own.generation
        with self._loading:
            if self._snapshot is None or self._snapshot.generation != generation:
                self._snapshot = Snapshot(self.path, own)
            return self._snapshot

    def refresh(self) -> None:
        """Take the newest committed generation: rows may mean other images from here on."""
        with self.reading():
            pass

    @property
    def snapshot(self) -> Snapshot:
        """Return the generation in use."""
        if self._snapshot is None:
            self.refresh()
        assert self._snapshot is not None  # refresh loads it or raises
        return self._snapshot

    def __len__(self) -> int:
        """Return N."""
        return len(self.snapshot)

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the N ids: paths relative to the folder, with forward slashes, sorted."""
        return self.snapshot.ids

    def vectors(self) -> Floats:
        """Return the stage-1 vectors [N, d]."""
        return self.snapshot.vectors

    def targets(self, rows: Sequence[int] | NDArray[np.intp], snapshot: Snapshot | None = None) -> TargetFeatures:
        """Return the features of `rows` [K]. Raises InputError when they were changed since they were read."""
        return (snapshot or self.snapshot).targets(self._store(), rows)

    def row(self, name: str) -> int:
        """Return the row of an id, or of the only image called `name` but for folder and suffix.

        Raises NotFoundError, or UsageError when several are called so.
        """
        return self.snapshot.row(name)

    def metadata(self, rows: Sequence[int] | NDArray[np.intp] | None = None) -> list[dict[str, str]]:
        """Return the columns and values of `rows`, by default of all."""
        values = self.snapshot.metadata
        return list(values) if rows is None else [values[row] for row in rows]

    def mask(self, where: Mapping[str, str | Sequence[str]] | None) -> NDArray[np.bool_]:
        """Return which rows [N] meet every condition (see Snapshot.mask). Raises UsageError."""
        return self.snapshot.mask(where)

    def path_of(self, row: int) -> Path:
        """Return where the image of `row` lay when the folder was last synced."""
        return Path(self.snapshot.folder, self.ids[row])

    def is_current(self, row: int, snapshot: Snapshot | None = None) -> bool:
        """Tell whether the image's file is still as it was when it was encoded, by its time or by its content."""
        from nsfse_runtime.gallery.reader import content_hash

        snapshot = snapshot or self.snapshot
        path = Path(snapshot.folder, snapshot.ids[row])
        recorded = self._store().read_file(snapshot.ids[row])
        try:
            status = path.stat()
        except OSError:
            return False
        if recorded is None:
            return False
        (size, mtime_ns), sha256 = recorded
        return size == status.st_size and (mtime_ns == status.st_mtime_ns or sha256 == content_hash(path))

    def copies(self, sha256: bytes, snapshot: Snapshot) -> NDArray[np.intp]:
        """Return the rows of the images whose files have this SHA-256."""
        return snapshot.rows_of(self._store(), sha256)

    @property
    def fingerprint(self) -> str:
        """Identify the model whose features these are."""
        return self._store().read_meta("fingerprint")

    @property
    def bundle_path(self) -> Path | None:
        """Return where the gallery's bundle lay when it was made, if it came from one."""
        path = self._store().read_meta("bundle")
        return Path(path) if path else None

    def info(self) -> dict[str, Any]:
        """Return what `nsfse info` shows, without loading the features."""
        own = self._store()
        meta = own.meta()
        return {
            "path": str(self.path),
            "format_version": own.format_version,
            "images": meta["items"],
            "distinct": own.count("contents"),
            "failed": own.count("failures"),
            "dim": meta.get("dim"),
            "regions": meta.get("regions"),
            "folder": meta["folder"],
            "exclude": json.loads(meta.get("exclude", "[]")),
            "bundle": meta["bundle"],
            "fingerprint": meta["fingerprint"],
            "generation": meta["generation"],
            "bytes": self.path.stat().st_size,
        }

    def failures(self) -> list[tuple[str, str]]:
        """Return the files that were refused, with the reason, as the last sync left them."""
        return self._store().read_failures()

    def sync(
        self,
        folder: str | os.PathLike[str],
        model: Scorer | None = None,
        *,
        metadata: str | os.PathLike[str] | None = None,
        batch: int | None = None,
        workers: int | None = None,
        progress: "Callable[[SyncProgress], None] | None" = None,
        exclude: Sequence[str] | None = None,
        allow_removals: bool = False,
    ) -> "SyncReport":
        """Make the gallery equal to `folder`: encode what is new or changed, follow renames, drop what is gone.

        Each batch is committed before `progress` hears of it; whatever interrupts, the next sync goes on from there.
        `batch` images are encoded at a time, by default as many as the free memory allows, while `workers` threads
        decode the next ones, by default one a core. A gallery of more than stage1.EXACT_UP_TO images gets its index.
        `metadata` is a CSV table (docs: metadata.read_table). `exclude` are globs of files and folders to leave out
        (docs: folder.list_folder) from now on; None leaves those in force that the gallery keeps. More than half of the
        images, of a sub-folder, or of all metadata go only where `allow_removals` says so.
        Raises NotFoundError, UsageError, InputError (too much would be removed: is a disk not mounted?), DataError,
        OutputError (a second writer, at once), IntegrityError. Nothing is changed by the first four.
        """
        from nsfse_runtime.gallery.sync import sync
        from nsfse_runtime.search.first_stage import Stage1

        model = model if model is not None else self._model
        if model is None:
            raise UsageError(f"{self.path} was opened without a bundle; open it with one to index")
        self.check_model(model)
        if any(count is not None and count < 1 for count in (batch, workers)):
            raise UsageError(f"batch is {batch} and workers is {workers}; give 1 or more, or neither")
        table = Path(metadata) if metadata is not None else None
        report = sync(self.path, Path(folder), model, table, batch, workers, progress, exclude, allow_removals)
        self.refresh()
        index = Stage1(self.path, model.fingerprint).prepare_index(self.snapshot)
        report.ann = index.summary() if index else None
        return report
