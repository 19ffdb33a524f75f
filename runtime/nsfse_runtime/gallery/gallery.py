"""Gallery: images' features in one SQLite file, in sync with a folder; one writer, many readers."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsfse_runtime.errors import NotFoundError, OutputError, UsageError, VersionError
from nsfse_runtime.gallery import store
from nsfse_runtime.gallery.connections import Connections
from nsfse_runtime.gallery.snapshot import Snapshot
from nsfse_runtime.types import Scorer

if TYPE_CHECKING:
    from nsfse_runtime.gallery.report import SyncProgress, SyncReport


class Gallery:
    """The features of a folder's images in one SQLite file. Made by `open`; a context manager closes it.

    What is read is one committed generation: `snapshot`, loaded at first use and cached until `refresh` or `reading`.
    Rows are numbers within one generation, so methods that take or return a row are the Snapshot's. A Gallery may be
    shared by threads. Any reading method may raise IntegrityError (the file is damaged).
    """

    def __init__(self, path: Path, model: Scorer | None = None) -> None:
        self.path, self._model = path, model
        self._connections = Connections(path)
        self._snapshot: Snapshot | None = None
        self._loading = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: Scorer | None = None,
        *,
        create: bool = False,
        bundle_path: str | os.PathLike[str] | None = None,
    ) -> "Gallery":
        """Open a gallery, or with `create` make it.

        Args:
            path: The gallery's file.
            model: What made the features that it holds, or will make them. Reading needs none.
            create: Make the gallery where there is none; that needs a model.
            bundle_path: The bundle that a new gallery remembers, by default the folder of `model`.

        Raises:
            NotFoundError: There is no gallery, and `create` is off.
            UsageError: A new gallery has no model.
            OutputError: The file cannot be made, opened or written.
            IntegrityError: The file is damaged, or no gallery.
            VersionError: The gallery is of a newer format, or of another model; it is left as it is.
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
        with store.GalleryTables.open_reader(gallery.path):
            pass  # it is a gallery, of a format that is known
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
        self._connections.close()

    @contextmanager
    def reading(self) -> Iterator[Snapshot]:
        """Hold the newest generation whole inside, whatever a writer commits meanwhile: for a search and its regions.

        Yields:
            The newest committed generation.
        """
        store = self._connections.store()
        with store.reading():
            generation = store.generation
            with self._loading:
                if self._snapshot is None or self._snapshot.generation != generation:
                    self._snapshot = Snapshot(self._connections)
                snapshot = self._snapshot
            yield snapshot

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

    @property
    def fingerprint(self) -> str:
        """Identify the model whose features these are."""
        return str(self._connections.store().meta()["fingerprint"])

    @property
    def bundle_path(self) -> Path | None:
        """Return the bundle's folder as it was when the gallery was made; None where the model was no bundle."""
        path = self._connections.store().meta()["bundle"]
        return Path(path) if path else None

    def info(self) -> dict[str, Any]:
        """Return what `nsfse info` shows, without loading the features."""
        current = self._connections.store()
        meta = current.meta()
        return {
            "path": str(self.path),
            "format_version": current.format_version,
            "images": meta["items"],
            "distinct": current.count("contents"),
            "failed": current.count("failures"),
            "dim": meta.get("dim"),
            "regions": meta.get("regions"),
            "folder": meta["folder"],
            "exclude": list(current.read_list("exclude")),
            "bundle": meta["bundle"],
            "fingerprint": meta["fingerprint"],
            "generation": meta["generation"],
            "bytes": self.path.stat().st_size,
        }

    def failures(self) -> list[tuple[str, str]]:
        """Return the files that were refused, with the reason, as the last sync left them."""
        return self._connections.store().read_failures()

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
        """Make the gallery equal to a folder: encode what is new or changed, follow renames, drop what is gone.

        Each batch is committed before `progress` hears of it: after an interruption the next sync goes on from there.
        A large gallery gets its index (see search.first_stage).

        Args:
            folder: The folder of images, with its sub-folders.
            model: What encodes, by default the model that the gallery was opened with.
            metadata: A CSV table of the images' metadata (see gallery.metadata.read_table).
            batch: Images encoded at a time; by default as many as the free memory allows.
            workers: Threads that decode the next images meanwhile; by default one a processor.
            progress: Called after each commit.
            exclude: Globs of files and folders to leave out from now on (see gallery.scan.list_folder); None
                leaves those in force that the gallery has.
            allow_removals: Let more than half of the images, of a sub-folder, or of all metadata go.

        Returns:
            The counts, and what was refused, with the reason.

        Raises:
            NotFoundError: There is no folder or table.
            UsageError: There is no model, the folder is none, or is not the gallery's.
            InputError: Too much would be removed: a disk may not be mounted.
            DataError: The table cannot be read, or does not fit the images.
            OutputError: Another process writes the gallery, or it cannot be written.
            IntegrityError: The gallery is damaged.

        The first four errors leave the gallery as it was.
        """
        from nsfse_runtime.gallery.sync import sync
        from nsfse_runtime.search.first_stage import FirstStage

        model = model if model is not None else self._model
        if model is None:
            raise UsageError(f"{self.path} was opened without a bundle; open it with one to index")
        self.check_model(model)
        if any(count is not None and count < 1 for count in (batch, workers)):
            raise UsageError(f"batch is {batch} and workers is {workers}; give 1 or more, or neither")
        table = Path(metadata) if metadata is not None else None
        report = sync(self.path, Path(folder), model, table, batch, workers, progress, exclude, allow_removals)
        self.refresh()
        index = FirstStage(self.path, model.fingerprint).prepare_index(self.snapshot)
        report.ann = index.summary() if index else None
        return report
