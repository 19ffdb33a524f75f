"""`nsfse data prepare wardrobe`: the annotations that ship, with the photos of a clone made as small as they were."""

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nsfse.data.datasets.file_index import FileIndex, scan, stem
from nsfse.data.wardrobe import ANNOTATIONS, COLLECTION, annotations
from nsfse_runtime.atomic_write import replacing_folder
from nsfse_runtime.errors import ImageError, NotFoundError, OutputError, UsageError
from nsfse_runtime.output_files import check_folder

SHORT, LONG = 240, 320
"""Pixels of an image's sides at most."""
QUALITY = 86
"""Of the JPEGs: with Lanczos the images are those that were labelled, to the pixel."""
THREADS = 4


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """What was made: the folder, its number of images, and the photos that it goes without.

    `missing` are ids without a photo; `broken` are (id, reason) of photos that cannot be read; `unread` are
    (path, reason) of places in the clone that could not be looked at.
    """

    folder: Path
    images: int
    missing: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]
    unread: tuple[tuple[str, str], ...]


def prepare_wardrobe(clone: Path, out: Path, progress: Callable[[str, int, int], None] | None = None) -> PreparedSet:
    """Make the query set wardrobe-1 of its annotations and the photos of a clone.

    Photos that are missing or broken are left out, and reported. A set that is there is replaced whole.

    Args:
        clone: A clone of the collection, or a folder of its photos, in any layout. File names are ids.
        out: The query set's folder: absent, empty, or one that was prepared before.
        progress: Called with stage, done and total.

    Returns:
        What was made.

    Raises:
        NotFoundError: The clone is not there, or holds none of the photos.
        UsageError: One of the two folders is within the other.
        OutputError: `out` holds something else, or cannot be written.
    """
    ids = _ids()
    _check_places(clone, out, ids)
    index = scan(clone)
    photos = index.locate(ids)
    if not photos:
        raise NotFoundError(
            f"none of the {len(ids)} photos is under {clone}; give a clone of {COLLECTION}, or its folder of images"
        )
    try:
        with replacing_folder(out) as draft:
            for name in ANNOTATIONS:
                (draft / name).write_bytes(annotations(name))
            (draft / "images").mkdir()
            broken = dict(_write_images(photos, draft / "images", progress))
    except OSError as error:
        raise OutputError(f"cannot write the query set {out}: {error.strerror}; choose another folder") from error
    broken |= _dead(index, ids)
    missing = tuple(item for item in ids if item not in photos and item not in broken)
    return PreparedSet(out, len(ids) - len(missing) - len(broken), missing, tuple(broken.items()), index.skipped)


def _ids() -> list[str]:
    rows = csv.DictReader(io.StringIO(annotations("items.csv").decode()))
    return [row["id"] for row in rows]


def _check_places(clone: Path, out: Path, ids: list[str]) -> None:
    """Raise where the set must not be written: over the photos, or over something else."""
    here, there = clone.resolve(), out.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UsageError(f"the clone {clone} and the query set {out} must not be within each other; choose another OUT")
    check_folder(out, (*ANNOTATIONS, "images"), ())
    check_folder(out / "images", [f"{item}.jpg" for item in ids], ())


def _write_images(
    photos: dict[str, Path], folder: Path, progress: Callable[[str, int, int], None] | None
) -> Iterator[tuple[str, str]]:
    """Write the photos into `folder`; yield (id, reason) of those that cannot be read."""

    def write(item: str) -> str:
        try:
            _write_image(photos[item], folder / f"{item}.jpg")
        except (ImageError, NotFoundError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(THREADS) as pool:
        for done, (item, reason) in enumerate(zip(photos, pool.map(write, photos), strict=True), 1):
            if reason:
                yield item, reason
            if progress:
                progress("photos", done, len(photos))


def _write_image(photo: Path, file: Path) -> None:
    """Write one photo as a JPEG of at most SHORT × LONG pixels; one that is as small is copied as it is."""
    from PIL import Image

    from nsfse_runtime.images.decode import decode_image

    image = Image.fromarray(decode_image(photo))
    short, long = sorted(image.size)
    scale = min(SHORT / short, LONG / long)
    if scale >= 1:
        shutil.copyfile(photo, file)
        return
    width, height = (max(1, round(side * scale)) for side in image.size)
    image.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)


def _dead(index: FileIndex, ids: list[str]) -> dict[str, str]:
    """Return id → reason of the files that hold no image."""
    named = {stem(path.name): f"{path}: {reason}" for path, reason in index.no_images.items()}
    return {item: named[item] for item in ids if item in named}
