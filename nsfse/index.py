"""Galleries written: made equal to a folder, wherever they are, and repaired."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from nsfse.open import bundle_of, new_model, open_gallery
from nsfse_runtime.errors import NotFoundError, NsfseError
from nsfse_runtime.gallery.store import discard_empty
from nsfse_runtime.gallery.sync import check_is_folder
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import ON_CPU, ExecutionDevice
from nsfse_runtime.inference.open import load_scorer
from nsfse_runtime.stores import indexing
from nsfse_runtime.stores.open import is_store_url, open_store

if TYPE_CHECKING:
    from nsfse_runtime.gallery.repair import RepairReport
    from nsfse_runtime.gallery.report import SyncProgress, SyncReport
    from nsfse_runtime.inference.onnx_scorer import OnnxScorer
    from nsfse_runtime.stores.protocol import GalleryStore


def index_folder(
    gallery: str | Path,
    folder: Path,
    bundle: Path | None,
    device: ExecutionDevice,
    *,
    metadata: Path | None = None,
    exclude: Sequence[str] | None = None,
    allow_removals: bool = False,
    workers: int | None = None,
    defer_index: bool = False,
    progress: "Callable[[SyncProgress], None] | None" = None,
) -> tuple["SyncReport", int]:
    """Make a gallery equal to `folder`; a new file into which no image was taken is not left behind.

    Args:
        gallery: The gallery file, or the URL of one in a database; made when absent.
        folder: Folder of images.
        bundle: The bundle; by default the one that the gallery remembers, of a new one `default_model`.
        device: Where the bundle computes.
        metadata: A CSV table of the images.
        exclude: Globs of files or folders to leave out from now on; None leaves those in force. A database does not
            remember them.
        allow_removals: Whether most images, or most metadata, may go.
        workers: Threads that decode.
        defer_index: Leave the index of vectors of a database to `GalleryStore.build_index`.
        progress: Called after each batch that is committed.

    Returns:
        What was done, and how many images the gallery has now.

    Raises:
        NsfseError: What open_gallery, open_store, Gallery.sync and stores.indexing.index_folder raise.
    """
    if is_store_url(str(gallery)):
        check_is_folder(folder)  # before a model is named or opened
        scorer, store = open_or_make(str(gallery), bundle, device, str(folder.resolve()))
        with closing(store):
            report = indexing.index_folder(
                store,
                folder,
                scorer,
                table=metadata,
                exclude=exclude or (),
                allow_removals=allow_removals,
                workers=workers,
                progress=progress,
            )
            if not defer_index:
                store.build_index()
            return report, store.info().images
    path = Path(gallery)
    if not path.is_dir():
        check_is_folder(folder)
    is_new = not path.exists()
    try:
        scorer, opened = open_gallery(path, bundle, device, create=True)
        with closing(opened):
            report = opened.sync(
                folder,
                scorer,
                metadata=metadata,
                exclude=exclude,
                allow_removals=allow_removals,
                workers=workers,
                progress=progress,
            )
            count = len(opened)
    except NsfseError:
        if is_new:
            discard_empty(path)
        raise
    if is_new and report.failed and not count:
        discard_empty(path)
    return report, count


def index_shards(
    gallery: str,
    shards: Sequence[Path],
    bundle: Path | None,
    device: ExecutionDevice,
    *,
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
    defer_index: bool = False,
    progress: "Callable[[SyncProgress], None] | None" = None,
) -> tuple["SyncReport", int]:
    """Index shards into a gallery (see nsfse_runtime.stores.indexing.index_shards).

    Args:
        gallery: The gallery file, or the URL of one in a database; made when absent.
        shards: All shards.
        bundle: The bundle; by default the one that the gallery remembers, of a new one `default_model`.
        device: Where the bundle computes.
        part: (i, n): this process takes every n-th shard from the i-th on, from 0.
        workers: Threads that decode.
        defer_index: Leave the index of vectors of a database to `GalleryStore.build_index`.
        progress: Called after each batch that is committed.

    Returns:
        What was done, and how many images the gallery has now.

    Raises:
        NotFoundError: A shard is not there.
        NsfseError: What open_store and stores.indexing.index_shards raise.
    """
    if missing := next((path for path in shards if not path.is_file()), None):
        raise NotFoundError(f"no shard at {missing}; check the path")
    scorer, store = open_or_make(gallery, bundle, device, "")
    with closing(store):
        report = indexing.index_shards(store, shards, scorer, part=part, workers=workers, progress=progress)
        if not defer_index:
            store.build_index()
        return report, store.info().images


def open_or_make(
    gallery: str, bundle: Path | None, device: ExecutionDevice, folder: str
) -> tuple["OnnxScorer", "GalleryStore"]:
    """Open a gallery with its bundle, or make one that follows `folder`, "" for none."""
    try:
        store = open_store(gallery)
    except NotFoundError:
        bundle = bundle or new_model()
        scorer = load_scorer(Bundle.open(bundle), device)
        return scorer, open_store(gallery, indexing.facts_of(scorer, str(bundle.absolute()), folder))
    return load_scorer(Bundle.open(bundle or bundle_of(store)), device), store


def repair_gallery(
    path: Path, folder: Path | None, bundle: Path | None, device: ExecutionDevice = ON_CPU
) -> "RepairReport":
    """Make a damaged gallery whole, as far as its folder and its bundle are there.

    Args:
        path: The gallery file.
        folder: The folder of its images; by default the one that it remembers.
        bundle: The bundle; by default the one that it remembers. Without one, nothing is encoded again.
        device: Where the bundle computes.

    Returns:
        What was kept, encoded again and lost.

    Raises:
        NsfseError: What gallery.repair.repair and Bundle.open raise.
    """
    from nsfse_runtime.gallery.repair import repair, verify

    if bundle is None:
        known = verify(path).facts.get("bundle")
        bundle = Path(known) if known and Path(known).exists() else None
    scorer = load_scorer(Bundle.open(bundle), device) if bundle is not None else None
    return repair(path, folder, scorer, bundle.absolute() if bundle is not None else None)
