"""Images in and out: what is sent is decoded and encoded anew, what is added is checked first.

A file is looked up in the gallery by its id, and is opened without following a link in any part of its path.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from PIL import Image

from nsfse_runtime.atomic_write import create_file
from nsfse_runtime.errors import NotFoundError, OutputError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.entries import delete_file, patch_metadata
from nsfse_runtime.gallery.sync import sync_file
from nsfse_runtime.image_names import SUFFIXES
from nsfse_runtime.images import decode
from nsfse_runtime.server.beneath import open_beneath
from nsfse_runtime.server.errors import HTTPError, usage_error
from nsfse_runtime.server.galleries import ServedFile, ServedGallery
from nsfse_runtime.server.settings import THUMBNAIL_SIDE

_QUALITY = 85
# A thumbnail has about 10 kB.
_CACHED_THUMBNAILS = 1000
# Letters and digits of any script, and a few signs that mean nothing to any file system.
_PART = re.compile(r"[\w][\w .,()+@=-]*", re.UNICODE)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_write_lock = Lock()


class RenderedImage:
    """An image of a gallery as it is sent: at most `side` pixels long, with the `etag` of its bytes."""

    def __init__(self, gallery: ServedGallery, name: str, side: int) -> None:
        """Raises NotFoundError: no such image, or its file is missing or a link."""
        with gallery.retriever.reading() as view:
            image_id = view.same(name)
            if image_id is None:
                raise _no_image(gallery, name)
            folder, content = Path(view.folder), view.sha256(image_id)
        self._folder, self._name, self._side = folder, image_id, side
        with _open(folder, image_id) as file:
            self._stamp = (content.hex(), *_stamp_of(file))
        digest = hashlib.sha256(f"{gallery.model.fingerprint} {self._stamp} {side}".encode()).hexdigest()
        self.etag = f'"{digest[:32]}"'

    def jpeg(self) -> bytes:
        """Return the image as a JPEG without any metadata. Raises ImageError or NotFoundError."""
        render = _thumbnail if self._side <= THUMBNAIL_SIDE else _render
        return render(self._folder, self._name, self._stamp, self._side)


def _open(folder: Path, name: str) -> BinaryIO:
    """Open an image beneath `folder`. Raises NotFoundError where it is gone, or part of its path is a link."""
    try:
        return open_beneath(folder, name)
    except OSError:
        raise _not_plain(name) from None


def _stamp_of(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _not_plain(name: str) -> NotFoundError:
    return NotFoundError(f"{printable(name)} is not a plain file of the gallery's folder any more; index again")


def own_file(folder: Path, name: str) -> Path:
    """Return the path of `name` under `folder`, the gallery's own. Raises NotFoundError where part of it is a link."""
    path = os.path.join(os.path.realpath(folder), *name.split("/"))
    # Equal, not only inside: links are not followed when a folder is indexed, either.
    if os.path.realpath(path) != path:
        raise _not_plain(name)
    return Path(path)


def _no_image(gallery: ServedGallery, name: str) -> NotFoundError:
    return NotFoundError(f"the gallery {gallery.name} has no image {printable(name[:200])}; GET /v1/images lists them")


def _render(folder: Path, name: str, stamp: tuple[str, int, int], side: int) -> bytes:
    """Return the image of the file that has this `stamp`: a changed file has another."""
    with _open(folder, name) as file:
        if _stamp_of(file) != stamp[1:]:
            raise NotFoundError(f"{printable(name)} has changed while it was read; try again")
        pixels = decode.shrink_image(file, side)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


_thumbnail = lru_cache(_CACHED_THUMBNAILS)(_render)


def add_image(gallery: ServedFile, name: str, stream: BinaryIO, metadata: Mapping[str, str]) -> str:
    """Add an image to the gallery's folder and to the gallery.

    Args:
        gallery: must follow a folder.
        name: the image's path under the folder, and its id.
        stream: the bytes of the file.
        metadata: values of columns to set; a known image's other columns stay.

    Returns:
        "added", "updated" where its metadata changed, or "unchanged".

    Raises:
        HTTPError: an unsafe name, or one of another image.
        ImageError: the file cannot be decoded.
        OutputError: it cannot be written, or another process writes the gallery.
    """
    check_name(name)
    decode.load_image(stream, gallery.model.image_size)
    stream.seek(0)
    data = stream.read()
    with _write_lock:
        folder = Path(gallery.gallery.snapshot.folder)
        if not gallery.gallery.snapshot.folder:
            raise HTTPError(409, "conflict", f"the gallery {gallery.name} follows no folder yet; index one first")
        path = own_file(folder, name)
        is_new = _write(path, data, name)
        try:
            report = sync_file(gallery.gallery.path, folder, name, gallery.model, metadata)
        except BaseException:
            if is_new:
                path.unlink(missing_ok=True)
            raise
        gallery.gallery.refresh()
        return "added" if is_new else "updated" if report.metadata_changed else "unchanged"


def change_metadata(
    gallery: ServedFile, name: str, changes: Mapping[str, str] | None
) -> tuple[str, bool, dict[str, str]]:
    """Set columns of an image's metadata, "" to remove one, None to remove all.

    Returns the image's id, whether anything changed, and its metadata. Raises NotFoundError or OutputError.
    """
    with _write_lock:
        gallery.gallery.refresh()
        image_id = gallery.gallery.snapshot.same(name)
        if image_id is None:
            raise _no_image(gallery, name)
        is_changed, metadata = patch_metadata(gallery.gallery.path, image_id, changes)
        gallery.gallery.refresh()
        return image_id, is_changed, metadata


def delete_image(gallery: ServedFile, name: str) -> None:
    """Delete an image of the gallery, its file included. Raises NotFoundError or OutputError."""
    with _write_lock:
        gallery.gallery.refresh()
        snapshot = gallery.gallery.snapshot
        image_id = snapshot.same(name)
        if image_id is None:
            raise _no_image(gallery, name)
        own_file(Path(snapshot.folder), image_id)
        delete_file(gallery.gallery.path, Path(snapshot.folder), image_id)
        gallery.gallery.refresh()


def check_name(name: str) -> None:
    """Raise HTTPError for a name that is not safe on every file system, or not an image's."""
    parts = name.split("/")
    is_safe = all(
        _PART.fullmatch(part) and part[-1] not in " ." and not _RESERVED.fullmatch(part) and len(part.encode()) <= 120
        for part in parts
    )
    if not is_safe or len(parts) > 8 or not name.isprintable():
        raise usage_error(
            f"{name[:80]} is not a safe name; use letters, digits, spaces and - _ . , ( ) + @ =, and / for folders"
        )
    if not name.lower().endswith(SUFFIXES):
        raise usage_error(f"{name[:80]} does not end like the name of an image; use one of {', '.join(SUFFIXES)}")


def _write(path: Path, data: bytes, name: str) -> bool:
    """Write a new file whole or not at all; return False where it exists with the same bytes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return _require_same(path, data, name)
        create_file(path, data)
        return True
    except FileExistsError:
        return _require_same(path, data, name)
    except OSError as error:
        raise OutputError(
            f"{printable(name)} cannot be written: {error.strerror}; check the disk and the rights"
        ) from error


def _require_same(path: Path, data: bytes, name: str) -> bool:
    """Return False where the file has the same bytes. Raises HTTPError where it has others."""
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return False
    raise HTTPError(409, "conflict", f"another image is called {printable(name)}; delete it first, or use another name")
