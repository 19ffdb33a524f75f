"""Gallery: images' features in one SQLite file, kept equal to a folder; one writer, many readers."""

import json
import os
import sqlite3
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
from nsfse_runtime.gallery.store import translated
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.types import Floats, Scorer, TargetFeatures

if TYPE_CHECKING:
    from nsfse_runtime.gallery.sync import SyncProgress, SyncReport


class Gallery:
    """N images by row, in the order of their ids. Made by `open`; a context manager closes it.

    What is read is one committed generation, loaded at first use and kept until `refresh`; a Gallery may be shared by
    threads. Any reading method may raise IntegrityError (the file is damaged).
    """

    def __init__(self, path: Path, model: "Bundle | Scorer | None" = None) -> None:
        self.path, self._model = path, model
        self._snapshot: Snapshot | None = None
        self._loading = threading.Lock()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: "Bundle | Scorer | None" = None,
        *,
        create: bool = False,
        bundle_path: str | os.PathLike[str] | None = None,
    ) -> "Gallery":
        """Open a gallery, or with `create` make it; `model` is the bundle (or scorer) whose features it holds.

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
            own = model.path if isinstance(model, Bundle) else model.info.bundle_path
            bundle = bundle_path if bundle_path is not None else own
            store.create(gallery.path, model.fingerprint, os.path.abspath(bundle) if bundle is not None else "")
        store.check_format(gallery.path)
        if model is not None:
            gallery.check_model(model)
        return gallery

    def check_model(self, model: "Bundle | Scorer") -> None:
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
            while self._connections:
                self._connections.pop().close()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = store.connect_reader(self.path)
            with self._loading:
                self._connections.append(connection)
        return connection

    @contextmanager
    def reading(self) -> Iterator[Snapshot]:
        """Hold the newest generation whole, whatever a writer commits meanwhile: for a search and its regions."""
        with translated(self.path):
            connection = self._connection()
            if connection.in_transaction:
                raise RuntimeError("reading() within reading()")
            connection.execute("BEGIN")
            try:
                yield self._newest(connection)
            finally:
                connection.execute("COMMIT")

    def _newest(self, connection: sqlite3.Connection) -> Snapshot:
        generation = self._meta(connection, "generation")
        with self._loading:
            if self._snapshot is None or self._snapshot.generation != generation:
                self._snapshot = Snapshot(self.path, connection)
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
        with translated(self.path):
            return (snapshot or self.snapshot).targets(self._connection(), rows)

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
        query = "SELECT size, mtime_ns, sha256 FROM items JOIN contents ON key = content WHERE id = ?"
        with translated(self.path):
            found = self._connection().execute(query, (snapshot.ids[row],)).fetchone()
        try:
            status = path.stat()
        except OSError:
            return False
        if found is None or found[0] != status.st_size:
            return False
        return bool(found[1] == status.st_mtime_ns or found[2] == content_hash(path))

    def copies(self, sha256: bytes, snapshot: Snapshot) -> NDArray[np.intp]:
        """Return the rows of the images whose files have this SHA-256."""
        with translated(self.path):
            return snapshot.rows_of(self._connection(), sha256)

    @property
    def fingerprint(self) -> str:
        """Identify the model whose features these are."""
        return str(self._read_meta("fingerprint"))

    @property
    def bundle_path(self) -> Path | None:
        """Return where the gallery's bundle lay when it was made, if it came from one."""
        path = self._read_meta("bundle")
        return Path(str(path)) if path else None

    def info(self) -> dict[str, Any]:
        """Return what `nsfse info` shows, without loading the features."""
        with translated(self.path):
            connection = self._connection()
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            failed, distinct = (
                connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("failures", "contents")
            )
            return {
                "path": str(self.path),
                "format_version": store.format_of(connection),
                "images": meta["items"],
                "distinct": distinct,
                "failed": failed,
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
        with translated(self.path):
            return self._connection().execute("SELECT id, reason FROM failures ORDER BY id").fetchall()

    def sync(
        self,
        folder: str | os.PathLike[str],
        model: "Bundle | Scorer | None" = None,
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
        from nsfse_runtime.inference.onnx_scorer import as_scorer
        from nsfse_runtime.search.first_stage import Stage1

        model = model if model is not None else self._model
        if model is None:
            raise UsageError(f"{self.path} was opened without a bundle; open it with one to index")
        self.check_model(model)
        if any(each is not None and each < 1 for each in (batch, workers)):
            raise UsageError(f"batch is {batch} and workers is {workers}; give 1 or more, or neither")
        table = Path(metadata) if metadata is not None else None
        scorer = as_scorer(model)
        report = sync(self.path, Path(folder), scorer, table, batch, workers, progress, exclude, allow_removals)
        self.refresh()
        index = Stage1(self.path, model.fingerprint).prepare_index(self.snapshot)
        report.ann = index.summary() if index else None
        return report

    def _read_meta(self, key: str) -> object:
        with translated(self.path):
            return self._meta(self._connection(), key)

    def _meta(self, connection: sqlite3.Connection, key: str) -> object:
        found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise store.damaged(self.path, f"it has no {key}")
        return found[0]
