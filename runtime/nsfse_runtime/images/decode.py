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
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from nsfse_runtime.errors import ImageError, NotFoundError
from nsfse_runtime.escaping import printable
from nsfse_runtime.images.colour_profiles import Colours, colours_of
from nsfse_runtime.images.file_kinds import HEAD_BYTES, reason_against
from nsfse_runtime.images.memory_budget import ByteBudget
from nsfse_runtime.regular_files import IrregularFileError, open_regular
from nsfse_runtime.types import Pixels

MAX_PIXELS = 50_000_000
MAX_BYTES = 100_000_000
# Bumped when images that were refused may be read, so that a gallery tries them again, or are read
# with other colours (2: those with a profile; see has_profile), so that it encodes them again.
DECODER_VERSION = 2
Source = bytes | str | os.PathLike[str] | BinaryIO
_T = TypeVar("_T")

# Plugins are opened by themselves: Image.open would first warn about a bomb, on stderr, where we
# refuse.
_READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"GIF87a": GifImageFile,
    b"GIF89a": GifImageFile,
    b"BM": BmpImageFile,
}
# Bytes per pixel at the peak: the decoded image and its copy on white, 4 each. WEBP's decoder holds
# two canvases and a third copy more (7000x7000 peaked at 850 MB), so a WEBP may have half the
# pixels.
_PIXEL_COST, _WEBP_PIXEL_COST = 8, 16
# A progressive JPEG of a few kB can ask for thousands of passes over all its pixels.
_MAX_SCANNED_PIXELS = 1_000_000_000
# Pillow reads a BMP's run lengths in Python, at about a million a second.
_MAX_BMP_RUN_PIXELS = 4_000_000
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
        with _open(stream) as image:
            return colours_of(image) is not None
    except OSError as error:
        if error.errno is not None:
            raise
        return False
    except Exception:  # no image, or a damaged one: decoding reports it
        return False


def is_readable_kind(head: bytes) -> bool:
    """Tell whether a file that begins with `head` says that it is an image of a format that is read."""
    return (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head.startswith(tuple(_READERS))


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
        with _open(stream) as image:
            pixel_cost = _WEBP_PIXEL_COST if isinstance(image, WebPImageFile) else _PIXEL_COST
            _check_size(image, stream, max_pixels * _PIXEL_COST // pixel_cost)
            with _budget.reserve(image.width * image.height * pixel_cost + nbytes):
                if size is not None and isinstance(image, JpegImageFile):
                    _draft(image, size, turned=_turn(image) in _ON_SIDE)
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


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile(stream)
    for magic, reader in _READERS.items():
        if head.startswith(magic):
            return reader(stream)
    name = getattr(stream, "name", "")
    raise ImageError(reason_against(head, os.fspath(name) if isinstance(name, str | os.PathLike) else ""))


def _check_size(image: ImageFile.ImageFile, stream: BinaryIO, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        limit = f"{max_pixels / 1e6:.0f} million pixels"
        raise ImageError(f"{image.width}x{image.height} is over the limit of {limit}; make it smaller")
    if isinstance(image, BmpImageFile) and image.tile and image.tile[0].codec_name == "bmp_rle":
        if pixels > _MAX_BMP_RUN_PIXELS:
            raise ImageError(f"a run-length BMP of {image.width}x{image.height} is too slow to read; save it as PNG")
    elif image.info.get("progressive") and (scans := _scans(stream)) * pixels > _MAX_SCANNED_PIXELS:
        raise ImageError(f"a JPEG of {scans} passes at {image.width}x{image.height} is too slow to read; save it again")


def _scans(stream: BinaryIO) -> int:
    """Count the start-of-scan markers; inside coded data the byte FF is escaped, so none is counted by chance."""
    position = stream.tell()
    stream.seek(0)
    count, tail = 0, b""
    while chunk := stream.read(1 << 20):
        count += (tail + chunk).count(b"\xff\xda")
        tail = chunk[-1:]
    stream.seek(position)
    return count


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


def _draft(image: JpegImageFile, size: tuple[int, int], *, turned: bool) -> None:
    width, height = _inner((image.height, image.width) if turned else image.size, size)
    doubled = (2 * width, 2 * height)
    image.draft(None, doubled[::-1] if turned else doubled)


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
