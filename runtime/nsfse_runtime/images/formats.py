"""The image formats that are read: by content, each with its reader, its memory, and the checks of its header.

Readers are called by themselves: Image.open would try others, and first warn about a bomb, on stderr, where we refuse.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import BinaryIO

from PIL import features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from nsfse_runtime.errors import ImageError, MissingExtraError
from nsfse_runtime.extras import installed, installed_version, need
from nsfse_runtime.images.av1_size import largest_frame
from nsfse_runtime.images.file_kinds import HEAD_BYTES, image_kind, reason_against

# Bumped when files that were refused may be read.
_VERSION = 2
# Bytes per pixel at the peak: the decoded image and its copy on white, 4 each.
_PIXEL_COST = 8
# A progressive JPEG of a few kB can ask for thousands of passes over all its pixels.
_MAX_SCANNED_PIXELS = 1_000_000_000
# Pillow reads a BMP's run lengths in Python, at about a million a second.
_MAX_BMP_RUN_PIXELS = 4_000_000
# OpenJPEG takes about 6 kB for each tile and 1 kB for each tile's component before it decodes one.
_MAX_TILES, _MAX_COMPONENTS = 4096, 4
_CODESTREAM = b"\xff\x4f\xff\x51"
_TIFF_COMPRESSIONS = (
    "raw",
    "packbits",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "jpeg",
    "zstd",
    "webp",
    "lzma",
)
_FAX = ("tiff_ccitt", "group3", "group4")
_PREVIEW, _TILE_WIDTH, _TILE_LENGTH, _DNG = 254, 322, 323, 50706


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        reader: Pillow's class, or a function that opens a stream as one.
        pixel_cost: Bytes per pixel at the peak, as measured; above 8 fewer pixels are allowed.
        feature: What Pillow must have been built with.
    """

    reader: Callable[[BinaryIO], ImageFile]
    pixel_cost: int = _PIXEL_COST
    feature: str = ""


def _open_heic(stream: BinaryIO) -> ImageFile:
    need("pillow_heif", "heic")
    image: ImageFile = import_module("pillow_heif").HeifImageFile(stream)
    return image


# Peaks were measured: WEBP 17 bytes, AVIF 9, HEIC 18, JPEG 2000 26 of noise with alpha.
FORMATS = {
    "JPEG": Format(JpegImageFile),
    "PNG": Format(PngImageFile),
    "WEBP": Format(WebPImageFile, 16),
    "BMP": Format(BmpImageFile),
    "GIF": Format(GifImageFile),
    "AVIF": Format(AvifImageFile, 16, "avif"),
    "TIFF": Format(TiffImageFile, 16),
    "JPEG 2000": Format(Jpeg2KImageFile, 32, "jpg_2000"),
    "HEIC": Format(_open_heic, 16),
    "HEIF": Format(_open_heic, 16),
}


def missing_formats() -> dict[str, str]:
    """Return the formats that this installation does not read, each with what brings it."""
    missing = {
        name: "this Pillow is built without it; pip install -U pillow"
        for name, entry in FORMATS.items()
        if entry.feature and not features.check(entry.feature)
    }
    if not installed("pillow_heif"):
        missing |= dict.fromkeys(("HEIC", "HEIF"), 'pip install "nsfse[heic]"')
    return missing


def readers_version() -> str:
    """Return what decides which files are read: with another one, files that were refused are tried again."""
    import PIL

    heic = installed_version("pillow-heif")
    return f"formats {_VERSION}, Pillow {PIL.__version__}{f', pillow-heif {heic}' if heic else ''}"


def is_readable_kind(head: bytes, name: str = "") -> bool:
    """Tell whether a file that begins with `head` says that it is an image of a format that is read."""
    return image_kind(head, name) in FORMATS


def open_header(stream: BinaryIO, max_pixels: int) -> tuple[ImageFile, int]:
    """Open an image of a format that is read; only its header is decoded.

    Args:
        stream: The file, at its beginning.
        max_pixels: The largest image; formats whose decoders need more memory may have fewer pixels, a JPEG that
            can be decoded at a fraction of its size more.

    Returns:
        The image, and its bytes per pixel at the peak.

    Raises:
        ImageError: Another format, or its header asks for too much.
        Exception: Whatever Pillow raises for a damaged file.
    """
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    path = getattr(stream, "name", "")
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    kind = image_kind(head, name)
    if kind not in FORMATS:
        raise ImageError(reason_against(head, name))
    entry = FORMATS[kind]
    if entry.feature and not features.check(entry.feature):
        raise ImageError(f"{kind} is not read by this Pillow; pip install -U pillow, or convert it to JPEG")
    try:
        image = entry.reader(stream)
    except MissingExtraError as error:
        raise ImageError(f"{kind}: {error}") from error
    try:
        check = _CHECKS.get(kind, _check_pixels)
        check(image, stream, max_pixels * _PIXEL_COST // entry.pixel_cost)
    except BaseException:
        image.close()
        raise
    return image, entry.pixel_cost


def _check_pixels(image: ImageFile, stream: BinaryIO, most: int) -> None:
    if image.width * image.height > most:
        limit = f"{most / 1e6:.0f} million pixels"
        raise ImageError(f"{image.width}x{image.height} is over the limit of {limit}; make it smaller")
    if image.info.get("progressive"):
        _check_passes(image, _count(stream, b"\xff\xda"))


def _check_passes(image: ImageFile, passes: int) -> None:
    if passes * image.width * image.height > _MAX_SCANNED_PIXELS:
        size = f"{image.width}x{image.height}"
        raise ImageError(f"a JPEG of {passes} passes at {size} is too slow to read; save it again")


def _check_jpeg(image: ImageFile, stream: BinaryIO, most: int) -> None:
    """Allow more pixels where the decoder shrinks them as it goes, which it does for one pass over all colours."""
    is_large = image.width * image.height > most
    if is_large and image.width * image.height <= 64 * most and _is_single_pass(stream):
        _check_passes(image, 1)
    else:
        _check_pixels(image, stream, most)


def _is_single_pass(stream: BinaryIO) -> bool:
    """Tell whether a JPEG's first pass has all its colours, by its segments up to that pass."""
    position, colours = stream.seek(2), 0
    while len(segment := stream.read(10)) == 10 and segment[0] == 0xFF:
        marker, length = segment[1], int.from_bytes(segment[2:4], "big")
        if marker in (0xC0, 0xC1):
            colours = segment[9]
        if marker == 0xDA:
            stream.seek(0)
            return 0 < colours == segment[4]
        position = stream.seek(position + 2 + length)
    stream.seek(0)
    return False


def _check_bmp(image: ImageFile, stream: BinaryIO, most: int) -> None:
    _check_pixels(image, stream, most)
    is_run = image.tile and image.tile[0].codec_name == "bmp_rle"
    if is_run and image.width * image.height > _MAX_BMP_RUN_PIXELS:
        raise ImageError(f"a run-length BMP of {image.width}x{image.height} is too slow to read; save it as PNG")


def _check_tiff(image: ImageFile, stream: BinaryIO, most: int) -> None:
    _check_pixels(image, stream, most)
    assert isinstance(image, TiffImageFile)
    tags, compression = image.tag_v2, image.info["compression"]
    if tags.get(_PREVIEW, 0) & 1 or _DNG in tags:
        raise ImageError("camera RAW is not read; convert it to JPEG or PNG")
    if compression not in (*_TIFF_COMPRESSIONS, *_FAX):
        raise ImageError(f"a TIFF with {compression} is not read; convert it to JPEG or PNG")
    if tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0) > most:
        raise ImageError("a TIFF with tiles larger than any image is not read; save it again")


def _whole(stream: BinaryIO) -> bytes:
    """Return all bytes of a file, which is at its start again afterwards."""
    stream.seek(0)
    data = stream.read()
    stream.seek(0)
    return data


def _check_avif(image: ImageFile, stream: BinaryIO, most: int) -> None:
    _check_pixels(image, stream, most)
    data = _whole(stream)
    if largest_frame(data) > most:
        raise ImageError("damaged or incomplete: the AVIF's data is larger than its header says")


def _check_jpeg2000(image: ImageFile, stream: BinaryIO, most: int) -> None:
    """Compare the header with the codestream's own: the decoder allocates by the latter (ISO/IEC 15444-1, A.5.1)."""
    _check_pixels(image, stream, most)
    data = _whole(stream)
    start = data.find(_CODESTREAM)
    right, bottom, left, top, across, down, x, y, components = struct.unpack_from(">8IH", data, start + 8)
    if (right - left, bottom - top) != image.size or not across or not down:
        raise ImageError("damaged or incomplete: a JPEG 2000 of two sizes")
    tiles = -(-(right - x) // across) * -(-(bottom - y) // down)
    if tiles > _MAX_TILES or components > _MAX_COMPONENTS:
        raise ImageError(f"a JPEG 2000 of {tiles} tiles and {components} components is not read; convert it to JPEG")


_CHECKS: dict[str, Callable[[ImageFile, BinaryIO, int], None]] = {
    "JPEG": _check_jpeg,
    "BMP": _check_bmp,
    "TIFF": _check_tiff,
    "AVIF": _check_avif,
    "JPEG 2000": _check_jpeg2000,
}


def _count(stream: BinaryIO, marker: bytes) -> int:
    """Count a marker; inside a JPEG's coded data the byte FF is escaped, so none is counted by chance."""
    position = stream.tell()
    stream.seek(0)
    count, tail = 0, b""
    while chunk := stream.read(1 << 20):
        count += (tail + chunk).count(marker)
        tail = chunk[-1:]
    stream.seek(position)
    return count
