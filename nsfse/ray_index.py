"""Shards indexed by workers on a Ray cluster: each worker holds the model, and takes one shard after the other.

Ray starts a worker that died again and repeats its shard. The ledger in the gallery has the shards that are done, so
where this process itself died, the same call goes on. Ray's core is enough: what goes to the workers are paths.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

from nsfse.index import open_or_make
from nsfse.open import bundle_of
from nsfse_runtime.errors import InputError, NsfseError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.extras import need
from nsfse_runtime.gallery.report import SyncProgress, SyncReport
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import ExecutionDevice
from nsfse_runtime.inference.open import load_scorer
from nsfse_runtime.stores.indexing import check_shards, index_shards
from nsfse_runtime.stores.open import is_store_url, open_store
from nsfse_runtime.stores.protocol import GalleryStore
from nsfse_runtime.types import Scorer

_REPEATS = 3  # of a shard whose worker died, such as for want of memory
_COUNTS = ("added", "updated", "removed", "unchanged", "encoded", "shards", "shards_before")


def load_model(bundle: Path, device: ExecutionDevice) -> Scorer:
    """Return the model of a bundle."""
    return load_scorer(Bundle.open(bundle), device)


def index_on_ray(
    gallery: str,
    shards: Sequence[Path],
    bundle: Path | None,
    device: ExecutionDevice,
    *,
    ray_workers: int,
    workers: int = 1,
    defer_index: bool = False,
    progress: Callable[[SyncProgress], None] | None = None,
    load: Callable[[Path, ExecutionDevice], Scorer] = load_model,
) -> tuple[SyncReport, int]:
    """Index shards into a gallery in a database by workers on a Ray cluster.

    The cluster is that of RAY_ADDRESS, or one that runs on this machine already, or else this machine alone. Shards,
    bundle and database must have the same paths and URL on all its machines.

    Args:
        gallery: The URL of the gallery, made when absent.
        shards: All shards.
        bundle: The bundle; by default the one that the gallery remembers, of a new one `default_model`.
        device: Where the bundle computes; on a GPU each worker takes a whole one.
        ray_workers: How many workers.
        workers: Threads that decode in each of them.
        defer_index: Leave the index of vectors to `GalleryStore.build_index`.
        progress: Called after each shard, and counts shards.
        load: Returns the model of a bundle.

    Returns:
        What was done, and how many images the gallery has now. `failed` is as that of index_shards.

    Raises:
        UsageError: The gallery is a file, which has one writer, or two shards have one name.
        MissingExtraError: Ray is not installed.
        InputError: Workers die again and again, or Ray's cluster is gone.
        NsfseError: What open_store and stores.indexing.index_shards raise.
    """
    need("ray", "ray")
    if not is_store_url(gallery):
        raise UsageError("a gallery file has one writer; with --ray, name the URL of a gallery in a database")
    paths = [path.absolute() for path in shards]
    check_shards(paths)
    scorer, store = open_or_make(gallery, bundle, device, "")
    with closing(store):
        bundle = (bundle or bundle_of(store)).absolute()
        report, started = SyncReport(workers=ray_workers, device=scorer.info.device), perf_counter()
        for done, found in enumerate(_run((gallery, bundle, device, load, workers), paths, ray_workers), 1):
            for name in _COUNTS:
                setattr(report, name, getattr(report, name) + getattr(found, name))
            report.failed += found.failed
            if progress is not None:
                progress(SyncProgress(done, len(paths), failed=tuple(found.failed)))
        if not defer_index:
            store.build_index()
        report.seconds = round(perf_counter() - started, 3)
        report.images_per_second = round(report.encoded / max(report.seconds, 0.001), 1)
        return report, store.info().images


class _Worker:
    def __init__(self, *settings: Any) -> None:
        self._settings = settings
        self._opened: tuple[GalleryStore, Scorer] | None = None

    def index(self, shard: Path) -> SyncReport | NsfseError:
        """Index one shard; an error of nsfse is returned, as Ray would wrap one that is raised."""
        gallery, bundle, device, load, threads = self._settings
        try:
            if self._opened is None:
                self._opened = open_store(gallery), load(bundle, device)
            store, scorer = self._opened
            return index_shards(store, [shard], scorer, workers=threads)
        except NsfseError as error:
            return error


def _run(settings: tuple[Any, ...], paths: Sequence[Path], ray_workers: int) -> Iterator[SyncReport]:
    """Yield the report of each shard as it is done."""
    import ray
    from ray.util import ActorPool

    own = not ray.is_initialized()
    try:
        if own:
            ray.init(log_to_driver=False, logging_level="ERROR")
        device: ExecutionDevice = settings[2]
        remote = ray.remote(_Worker).options(
            num_gpus=int(not device.on_cpu),
            max_restarts=-1,
            max_task_retries=_REPEATS,
            scheduling_strategy="SPREAD",
        )
        pool = ActorPool([remote.remote(*settings) for _ in range(min(ray_workers, len(paths)))])
        for found in pool.map_unordered(lambda worker, path: worker.index.remote(path), paths):
            if isinstance(found, NsfseError):
                raise found
            yield found
    except (ray.exceptions.RayError, ConnectionError) as error:
        line = printable(" ".join(str(getattr(error, "cause", None) or error).split())[:300])
        raise InputError(f"Ray cannot go on: {line}; look at its logs, then run the same command again") from error
    finally:
        if own:
            ray.shutdown()
