"""The images of a query: what a caller names → one of five kinds → a row of the gallery, or pixels."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from nsfse_runtime.errors import NotFoundError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.retrieval.views import View
from nsfse_runtime.types import GalleryId, ImageRef, Pixels, Upload

if TYPE_CHECKING:
    from PIL.Image import Image

Reference = Union[bytes, str, os.PathLike[str], GalleryId, Pixels, Upload, "Image"]
"""An image's bytes, a file or an id, an id alone, pixels [H, W, 3] (uint8, RGB), an upload, or a Pillow image."""
NOT_FETCHED = "an image is not fetched from a URL; save it as a file and name that"


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """An image of a query.

    Attributes:
        source: The id in the gallery whose features are right, or the pixels [h, w, 3] yet to be
            encoded.
        contents: SHA-256 of the files that it is, or was when it was encoded.
    """

    source: GalleryId | Pixels
    contents: tuple[bytes, ...]


def as_tuple(reference: "Reference | Sequence[Reference] | None") -> tuple[Reference, ...]:
    """Return the references of a query: an array, bytes and a name are one, though they could be iterated over."""
    if reference is None:
        return ()
    is_single = isinstance(reference, bytes | bytearray | memoryview | str | os.PathLike | np.ndarray | Upload)
    return (reference,) if is_single or not isinstance(reference, Iterable) else tuple(reference)  # type: ignore[arg-type, return-value]


def image_ref(reference: Reference, view: View, size: tuple[int, int]) -> ImageRef:
    """Return which kind of reference this is.

    A string is an id where the gallery has it, else a file where there is one, else the name of one
    gallery image. A Pillow image is returned as pixels fitted to `size` (height, width).

    Raises:
        NotFoundError: No gallery image has this id, or a string is neither a file nor a gallery
            image.
        UsageError: Several gallery images have this name, or it is no image.
        ImageError: A Pillow image cannot be loaded.
    """
    if isinstance(reference, GalleryId):
        return _gallery_id(reference, view)
    if isinstance(reference, str):
        return _named(reference, view)
    if isinstance(reference, os.PathLike):
        return Path(reference)
    if isinstance(reference, bytes | bytearray | memoryview):
        return bytes(reference)
    if isinstance(reference, Upload | np.ndarray):
        return reference
    from PIL import Image

    if isinstance(reference, Image.Image):
        from nsfse_runtime.images.decode import fit_pillow

        return fit_pillow(reference, size)
    raise UsageError(
        f"a reference is a {type(reference).__name__}; give a path, an id, bytes, an array [H, W, 3] of uint8, "
        "or a Pillow image"
    )


def resolve(reference: ImageRef, view: View, size: tuple[int, int]) -> ResolvedImage:
    """Return the gallery's features of an image where they are right, else its pixels fitted to `size`.

    Features are right while the file is as it was when it was encoded, whatever names it. Where the
    file of a gallery image is gone, its features are all there is.

    Raises:
        NotFoundError: There is no such file.
        ImageError: The file cannot be read safely.
        UsageError: An array is no image.
    """
    name = _id_of(reference, view)
    if name is not None:
        encoded, path = view.sha256(name), Path(view.folder, name)
        if view.is_current(name) or not os.path.isfile(path):
            return ResolvedImage(name, (encoded,))
        pixels, sha256 = _load(path, size)
        return ResolvedImage(pixels, (encoded, *_known(sha256)))
    pixels, sha256 = _load(reference, size)
    return ResolvedImage(pixels, _known(sha256))


def _known(sha256: bytes | None) -> tuple[bytes, ...]:
    return () if sha256 is None else (sha256,)


def _gallery_id(name: str, view: View) -> GalleryId:
    if (own := view.same(name)) is None:
        hint = view.hint(name) or "give an id as results show it"
        raise NotFoundError(printable(f"the gallery has no image {name[:200]}; {hint}"))
    return GalleryId(own)


def _named(name: str, view: View) -> GalleryId | Path:
    if own := view.same(name):
        return GalleryId(own)
    if os.path.exists(name):
        return Path(name)
    try:
        return GalleryId(view.find(name))
    except NotFoundError:
        hint = view.hint(name)
        raise NotFoundError(_absent(name) + (f"; {printable(hint)}" if hint else "")) from None


def is_url(name: str) -> bool:
    """Tell whether a reference is a URL, which is never fetched."""
    return "://" in name or name.startswith("data:")


def _absent(name: str) -> str:
    if is_url(name):
        return NOT_FETCHED
    return f"{printable(name[:200])} is neither a file nor an image of the gallery; check the path or the id"


def _id_of(reference: ImageRef, view: View) -> GalleryId | None:
    """Return the id that is meant, by itself or by a file in the gallery's folder."""
    if isinstance(reference, GalleryId):
        return GalleryId(view.find(reference))
    if not isinstance(reference, Path) or not view.folder:
        return None
    real, folder = Path(os.path.realpath(reference)), Path(view.folder)
    if not real.is_relative_to(folder):
        return None
    name = real.relative_to(folder).as_posix()
    return GalleryId(name) if view.has(name) else None


def _load(reference: ImageRef, size: tuple[int, int]) -> tuple[Pixels, bytes | None]:
    """Return an image fitted to `size` (height, width) [h, w, 3], and the SHA-256 of its file where there is one."""
    from nsfse_runtime.gallery.reader import content_hash
    from nsfse_runtime.images.decode import load_image

    if isinstance(reference, Upload):
        return _fit(reference.pixels, size), reference.sha256
    if isinstance(reference, np.ndarray):
        return _fit(reference, size), None
    if isinstance(reference, bytes):
        return load_image(reference, size), hashlib.sha256(reference).digest()
    path = Path(reference)
    return load_image(path, size), content_hash(path)


def _fit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return `pixels` fitted to `size` (height, width). Raises UsageError for an array that is no image."""
    from nsfse_runtime.images.decode import fit_image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(
            f"an array of {pixels.dtype} {list(pixels.shape)} is no image; give uint8 of the shape [height, width, 3], "
            "RGB from 0 to 255"
        )
    return pixels if pixels.shape[:2] == size else fit_image(np.ascontiguousarray(pixels), size)
