"""Bytes or a file → uint8 pixels, safely: the only decoder, for training and for serving alike.

Content decides the format, not the name. The size is checked in the header before a pixel is
decoded. EXIF's turn comes before anything else. Transparency (palettes' too) is on white, of an
animation the first frame is taken, and colours with a profile become sRGB.
"""

import hashlib
import os
from collections.abc import Callable
from io import BufferedReader, BytesIO
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from nsfse_runtime.errors import ImageError, NotFoundError
from nsfse_runtime.escaping import printable
from nsfse_runtime.images.colour_profiles import Colours, colours_of
from nsfse_runtime.images.formats import open_header
from nsfse_runtime.images.memory_budget import ByteBudget
from nsfse_runtime.regular_files import IrregularFileError, open_regular
from nsfse_runtime.types import Pixels

MAX_PIXELS = 50_000_000
MAX_BYTES = 100_000_000
# Bumped when images are read with other colours (2: those with a profile; see has_profile), so that a
# gallery encodes them again.
DECODER_VERSION = 2
Source = bytes | str | os.PathLike[str] | BinaryIO
_T = TypeVar("_T")

_budget = ByteBudget(500_000_000)


def decode_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image whole → [H, W, 3].

    `source` is the bytes, a path, or an open seekable stream. Raises ImageError (not a readable
    image, too large, damaged: one line says which), NotFoundError, or OSError from a stream that
    fails.
    """
    return _with_stream(source, lambda stream: _decode(stream, max_pixels, None, _as_array))


def load_image(source: Source, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image and fit it to `size` (height, width) as `fit_image` does → [h, w, 3].

    A JPEG is decoded at a fraction of its size where at least twice the target remains. Raises as
    `decode_image`.
    """
    return _with_stream(
        source, lambda stream: _decode(stream, max_pixels, size, lambda image, colours: _fit(image, size, colours))
    )


def shrink_image(source: Source, side: int, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image and shrink it, aspect preserved, to at most `side` pixels on its longest side → [h, w, 3].

    A smaller image is not enlarged. Raises as `decode_image`.
    """
    size = (side, side)
    return _with_stream(
        source, lambda stream: _decode(stream, max_pixels, size, lambda image, colours: _shrink(image, size, colours))
    )


def fit_image(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize `pixels` [H, W, 3] to fit inside `size` (height, width), centred on white, aspect preserved."""
    return _fit(Image.fromarray(pixels), size)


def fit_pillow(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """Fit a Pillow image to `size` (height, width), turned, on white and in sRGB as one from a file → [h, w, 3].

    Raises ImageError where it has no pixels, or cannot be loaded.
    """
    if not (image.width and image.height):
        raise ImageError("the image has no pixels")
    try:
        image.load()
        turn, colours = _turn(image), colours_of(image)
        flat = image if colours and colours.mode == "CMYK" else _on_white(image)
        return _fit(flat if turn is None else flat.transpose(turn), size, colours)
    except Exception as error:  # it may be one of a damaged file that is only now read
        raise ImageError(f"damaged or incomplete: {_first_line(error)}") from error


def has_profile(stream: BinaryIO) -> bool:
    """Tell whether an image's colours are converted by its profile; only its head is read. Raises OSError."""
    try:
        with open_header(stream, MAX_PIXELS)[0] as image:
            return colours_of(image) is not None
    except OSError as error:
        if error.errno is not None:
            raise
        return False
    except Exception:  # no image, or a damaged one: decoding reports it
        return False


def open_image(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading. Raises OSError, or ImageError when it is something else."""
    try:
        return open_regular(path)
    except IrregularFileError as error:
        raise ImageError("not a regular file; give an image") from error


def sha256_of(stream: BinaryIO) -> bytes:
    """Return the SHA-256 of what is left of `stream`. Raises OSError."""
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.digest()


def check_bytes(nbytes: int) -> None:
    """Raise ImageError for a file of no or too many bytes."""
    if nbytes == 0:
        raise ImageError("the file is empty")
    if nbytes > MAX_BYTES:
        raise ImageError(f"{nbytes / 1e6:.0f} MB is over the limit of {MAX_BYTES / 1e6:.0f} MB; make it smaller")


def _with_stream(source: Source, decode: Callable[[BinaryIO], _T]) -> _T:
    if isinstance(source, bytes):
        return decode(BytesIO(source))
    if not isinstance(source, str | os.PathLike):
        return decode(source)
    name = printable(os.fspath(source))
    try:
        with open_image(source) as stream:
            return decode(stream)
    except FileNotFoundError:
        raise NotFoundError(f"no image at {name}; check the path") from None
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be opened: {_first_line(error)}") from error


def _decode(stream: BinaryIO, max_pixels: int, size: tuple[int, int] | None, finish: "_Finish") -> Pixels:
    nbytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    check_bytes(nbytes)
    try:
        image, pixel_cost = open_header(stream, max_pixels)
        with image, _budget.reserve(min(image.width * image.height, max_pixels) * pixel_cost + nbytes):
            if isinstance(image, JpegImageFile):
                _draft(image, size, max_pixels)
            image.load()
            turn, colours = _turn(image), colours_of(image)
            flat = image if colours and colours.mode == "CMYK" else _on_white(image)
            if flat is not image:
                # Or three copies of a large image are held while it is turned; the caller's
                # stream stays open.
                Image.Image.close(image)
            return finish(flat if turn is None else flat.transpose(turn), colours)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("there is not enough memory to decode it; make it smaller") from error
    except OSError as error:
        if error.errno is not None:  # the disk's trouble, not the image's: Pillow's own have no number
            raise
        raise ImageError(f"damaged or incomplete: {_first_line(error)}") from error
    except Exception as error:  # a malformed file makes Pillow raise ValueError, SyntaxError, struct.error and others
        raise ImageError(f"damaged or incomplete: {_first_line(error)}") from error


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_SIDE = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return EXIF's turn. Call it on a loaded image: a PNG is loaded for it, and damage would pass unseen here."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # metadata that cannot be parsed: the image itself is good, and is not rotated
        return None


def _draft(image: JpegImageFile, size: tuple[int, int] | None, max_pixels: int) -> None:
    """Let a JPEG be decoded at a fraction: at least twice `size` (height, width), and at most `max_pixels`."""
    width, height = image.size
    part = next((part for part in (1, 2, 4) if width * height <= max_pixels * part * part), 8)
    wanted = (width // part, height // part)
    if size is not None:
        turned = _turn(image) in _ON_SIDE
        inner = _inner((height, width) if turned else (width, height), size)
        doubled = tuple(2 * side for side in (inner[::-1] if turned else inner))
        wanted = (min(wanted[0], doubled[0]), min(wanted[1], doubled[1]))
    image.draft(None, (max(1, wanted[0]), max(1, wanted[1])))


def _on_white(image: Image.Image) -> Image.Image:
    """Return `image` as RGB on white, strip by strip, so that no second copy of a large image is made."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    canvas = Image.new("RGB", image.size)
    rows = max(1, 1_000_000 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        canvas.paste(_strip_on_white(strip), (0, top))
    return canvas


def _strip_on_white(strip: Image.Image) -> Image.Image:
    if strip.mode.startswith("I"):
        strip = _eight_bits(strip)
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    strip = strip.convert("RGBA")
    white = Image.new("RGB", strip.size, "white")
    white.paste(strip, mask=strip)
    return white


def _eight_bits(strip: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits (Pillow would clip it), its one transparent value to an alpha channel."""
    values = np.asarray(strip).astype(np.int64)
    grey = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    if (transparent := strip.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _inner(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of an image of `shape` (width, height) scaled to fit inside `size` (height, width)."""
    scale = min(size[1] / shape[0], size[0] / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _as_array(image: Image.Image, colours: Colours | None) -> Pixels:
    return np.asarray(colours.to_srgb(image) if colours else image)


def _fit(image: Image.Image, size: tuple[int, int], colours: Colours | None = None) -> Pixels:
    inner = _inner(image.size, size)
    if image.size != inner:
        image = image.resize(inner, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if colours:  # of few pixels; the margin is white already
        image = colours.to_srgb(image)
    canvas = Image.new("RGB", (size[1], size[0]), "white")
    canvas.paste(image, ((size[1] - inner[0]) // 2, (size[0] - inner[1]) // 2))
    return np.asarray(canvas)


def _shrink(image: Image.Image, size: tuple[int, int], colours: Colours | None) -> Pixels:
    if max(image.size) > size[0]:
        image = image.resize(_inner(image.size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(colours.to_srgb(image) if colours else image)


_Finish = Callable[[Image.Image, Colours | None], Pixels]


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return printable(text[0][:120]) if text else type(error).__name__
