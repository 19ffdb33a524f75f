"""Move a gallery from one store to another, without encoding anything."""

from collections.abc import Callable
from dataclasses import dataclass

from nsfse_runtime.errors import InputError
from nsfse_runtime.stores.open import open_store
from nsfse_runtime.stores.protocol import GalleryStore, Link

_BATCH = 500


@dataclass(slots=True)
class CopyReport:
    """What a copy did: `images` that the target has of the source, and how many of their features were `sent`."""

    images: int = 0
    sent: int = 0


def copy_gallery(source: str, target: str, progress: Callable[[int, int], None] | None = None) -> CopyReport:
    """Write all images of `source` into `target`, made when absent; what else is there stays.

    Each batch is committed on its own, and may be repeated: after an interruption the same call goes on.

    Args:
        source: A gallery file or a URL.
        target: Another one.
        progress: Called with (done, total) after each batch.

    Raises:
        InputError: The source is empty.
        VersionError: The target has features of another model.
        NsfseError: What open_store and the stores raise.
    """
    start, report = open_store(source), CopyReport()
    try:
        info = start.info()
        if not info.images:
            raise InputError(f"{info.url} is empty; index a folder into it first")
        end = open_store(target, info.facts)
        try:
            after = ""
            while ids := start.ids(after=after, limit=_BATCH):
                report.sent += _copy(start, end, ids)
                report.images, after = report.images + len(ids), ids[-1]
                if progress is not None:
                    progress(report.images, info.images)
            end.build_index()
        finally:
            end.close()
    finally:
        start.close()
    return report


def _copy(start: GalleryStore, end: GalleryStore, ids: list[str]) -> int:
    images = start.fetch(ids, regions=False)
    known = end.known([image.sha256 for image in images])
    new = [image.id for image in images if image.sha256 not in known]
    if new:
        end.upsert(start.fetch(new))
    if links := [Link(image.id, image.sha256, image.metadata) for image in images if image.sha256 in known]:
        end.link(links)
    return len(new)
