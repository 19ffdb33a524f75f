"""Images in and out: what is served is decoded and encoded anew; what is taken in is checked first.

A file is looked up in the gallery by its id, and is opened only where no part of its path is a link.
"""

import hashlib
import os
import re
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from PIL import Image

from nsfse_runtime.atomic_write import create_file
from nsfse_runtime.errors import NotFoundError, OutputError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.sync import drop_one, sync_one
from nsfse_runtime.images import decode
from nsfse_runtime.server.errors import Refused, usage
from nsfse_runtime.server.galleries import Served
from nsfse_runtime.server.settings import THUMBNAIL_SIDE

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_QUALITY = 85
# A thumbnail has about 10 kB.
_KEPT_THUMBNAILS = 1000
# Letters and digits of any script, and a few signs that mean nothing to any file system.
_PART = re.compile(r"[\w][\w .,()+@=-]*", re.UNICODE)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_writing = Lock()


class Shown:
    """An image of a gallery that may be shown at most `side` pixels long: its file, and the `etag` of what is sent."""

    def __init__(self, served: Served, name: str, side: int) -> None:
        """Raises NotFoundError: no such image, or its file is gone or is a link."""
        with served.gallery.reading() as snapshot:
            same = snapshot.same(name)
            if same is None:
                raise _no_image(served, name)
            folder, content = Path(snapshot.folder), int(snapshot.vector_keys[snapshot.row(same)])
        name = same
        self._path, self._side = own_file(folder, name), side
        try:
            status = self._path.stat()
        except OSError:
            raise _no_image(served, name) from None
        self._stamp = (content, status.st_size, status.st_mtime_ns)
        digest = hashlib.sha256(f"{served.model.fingerprint} {self._stamp} {side}".encode()).hexdigest()
        self.etag = f'"{digest[:32]}"'

    def jpeg(self) -> bytes:
        """Return the image as a JPEG without any metadata. Raises ImageError or NotFoundError."""
        if self._side <= THUMBNAIL_SIDE:
            return _thumbnail(self._path, self._stamp, self._side)
        return _encoded(self._path, self._side)


def own_file(folder: Path, name: str) -> Path:
    """Return where `name` lies under `folder`, the gallery's own. Raises NotFoundError where a link is in the way."""
    path = os.path.join(os.path.realpath(folder), *name.split("/"))
    # Equal, not only inside: links are not followed when a folder is indexed, either.
    if os.path.realpath(path) != path:
        raise NotFoundError(f"{printable(name)} is not a plain file of the gallery's folder any more; index again")
    return Path(path)


def _no_image(served: Served, name: str) -> NotFoundError:
    return NotFoundError(f"the gallery {served.name} has no image {printable(name[:200])}; GET /v1/images lists them")


@lru_cache(_KEPT_THUMBNAILS)
def _thumbnail(path: Path, stamp: tuple[int, int, int], side: int) -> bytes:
    """Return the thumbnail of the file that has this `stamp`: a changed file has another."""
    return _encoded(path, side)


def _encoded(path: Path, side: int) -> bytes:
    pixels = decode.shrink_image(path, side)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def take_in(served: Served, name: str, stream: BinaryIO, metadata: dict[str, str] | None) -> bool:
    """Put an image into the gallery's folder under `name` and into the gallery; tell whether it is new.

    Raises Refused (a name that is not safe, or one that is taken by another image), ImageError, OutputError.
    """
    check_name(name)
    decode.load_image(stream, served.model.image_size)
    stream.seek(0)
    data = stream.read()
    with _writing:
        folder = Path(served.gallery.snapshot.folder)
        if not served.gallery.snapshot.folder:
            raise Refused(409, "conflict", f"the gallery {served.name} follows no folder yet; index one first")
        path = own_file(folder, name)
        new = _write(path, data, name)
        try:
            sync_one(served.gallery.path, folder, name, served.model, metadata)
        except BaseException:
            if new:
                path.unlink(missing_ok=True)
            raise
        served.gallery.refresh()
        return new


def take_out(served: Served, name: str) -> None:
    """Delete an image of the gallery, its file included. Raises NotFoundError or OutputError."""
    with _writing:
        served.gallery.refresh()
        snapshot = served.gallery.snapshot
        same = snapshot.same(name)
        if same is None:
            raise _no_image(served, name)
        name = same
        own_file(Path(snapshot.folder), name)
        drop_one(served.gallery.path, Path(snapshot.folder), name)
        served.gallery.refresh()


def check_name(name: str) -> None:
    """Raise Refused for a name that is not safe on every file system, or that is no image's."""
    parts = name.split("/")
    plain = all(
        _PART.fullmatch(part) and part[-1] not in " ." and not _RESERVED.fullmatch(part) and len(part.encode()) <= 120
        for part in parts
    )
    if not plain or len(parts) > 8 or not name.isprintable():
        raise usage(
            f"{name[:80]} is not a safe name; use letters, digits, spaces and - _ . , ( ) + @ =, and / for folders"
        )
    if not name.lower().endswith(SUFFIXES):
        raise usage(f"{name[:80]} does not end as an image's name does; use one of {', '.join(SUFFIXES)}")


def _write(path: Path, data: bytes, name: str) -> bool:
    """Write a new file whole or not at all; return False where it is there with the same bytes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return _same(path, data, name)
        create_file(path, data)
        return True
    except FileExistsError:
        return _same(path, data, name)
    except OSError as error:
        raise OutputError(
            f"{printable(name)} cannot be written: {error.strerror}; check the disk and the rights"
        ) from error


def _same(path: Path, data: bytes, name: str) -> bool:
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return False
    raise Refused(409, "conflict", f"{printable(name)} is another image already; delete it first, or take another name")
