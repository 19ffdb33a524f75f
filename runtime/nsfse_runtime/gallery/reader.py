"""Files → hashes and pixels, in threads, in order, a bounded number ahead of who takes them."""

import hashlib
import os
from collections import deque
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nsfse_runtime.errors import ImageError
from nsfse_runtime.gallery.scan import FileStamp
from nsfse_runtime.hardware import available_memory, usable_cpus
from nsfse_runtime.images import decode
from nsfse_runtime.images.file_kinds import HEAD_BYTES
from nsfse_runtime.images.formats import is_readable_kind
from nsfse_runtime.types import Pixels

# A batch is no larger than pays off on a CPU, and takes no more than this share of the memory that is free.
_LARGEST, _SHARE = 64, 0.25
# What encoding an image takes at its peak, in times its float32 pixels: an EfficientNet's first layers come near 20.
_ACTIVATIONS = 24
_UNKNOWN_MEMORY = 1_000_000_000
# Files with nothing to encode (renames, duplicates, refusals) make a batch at the latest after so many.
_LARGEST_BATCH = 512


@dataclass(frozen=True, slots=True)
class ReadResult:
    """A file as read: `sha256` and, when that is new, `pixels` [h, w, 3]; or the `reason` why it could not be read."""

    name: str
    stamp: FileStamp
    sha256: bytes = b""
    pixels: Pixels | None = None
    reason: str = ""
    refused: bool = False  # the content is no image, as against a file that could not be read this time


def default_workers() -> int:
    """Return how many threads decode: one a processor that this process may use, up to eight."""
    return min(8, usable_cpus())


def default_batch_size(size: tuple[int, int]) -> int:
    """Return how many images of `size` (height, width) are encoded at a time, by the memory that is free now."""
    memory = available_memory()
    free = _UNKNOWN_MEMORY if memory is None else memory
    image = size[0] * size[1] * 3 * 4 * _ACTIVATIONS
    return int(min(_LARGEST, max(1, _SHARE * free / image)))


def read_files(
    folder: Path,
    files: Mapping[str, FileStamp],
    size: tuple[int, int],
    known: Container[bytes],
    workers: int,
    ahead: int,
) -> Generator[ReadResult]:
    """Read `files` in order; those whose sha256 is not `known` are decoded and fitted to `size` (height, width).

    `workers` threads go on, up to `ahead` files further, while whoever takes them is busy.
    """
    pool = ThreadPoolExecutor(workers, "nsfse-decode")
    waiting: deque[Future[ReadResult]] = deque()
    try:
        for name, stamp in files.items():
            waiting.append(pool.submit(_read, folder, name, stamp, size, known))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(folder: Path, name: str, stamp: FileStamp, size: tuple[int, int], known: Container[bytes]) -> ReadResult:
    try:
        with decode.open_image(folder / name) as stream:
            status = os.fstat(stream.fileno())
            stamp = (status.st_size, status.st_mtime_ns)
            decode.check_bytes(status.st_size)
            sha256 = hashlib.file_digest(stream, "sha256").digest()
            pixels = None if sha256 in known else decode.load_image(stream, size)
            status = os.fstat(stream.fileno())
    except ImageError as error:
        return ReadResult(name, stamp, reason=str(error), refused=True)
    except OSError as error:
        return ReadResult(name, stamp, reason=f"it cannot be read: {error.strerror or error}")
    if (status.st_size, status.st_mtime_ns) != stamp:
        return ReadResult(name, stamp, reason="it was changed while it was read; index again")
    return ReadResult(name, stamp, sha256, pixels)


def content_hash(path: Path) -> bytes | None:
    """Return a file's SHA-256, None where it cannot be read."""
    try:
        with decode.open_image(path) as stream:
            return decode.sha256_of(stream)
    except (OSError, ImageError):
        return None


def looks_like_image(path: Path) -> bool:
    """Tell by a file's first bytes whether it may be an image that is read; True where it cannot be opened now."""
    try:
        with decode.open_image(path) as stream:
            return is_readable_kind(stream.read(HEAD_BYTES), path.name)
    except ImageError:
        return False
    except OSError:
        return True


def has_profile(path: Path) -> bool:
    """Tell whether an image has a colour profile by which its colours are converted."""
    try:
        with decode.open_image(path) as stream:
            return decode.has_profile(stream)
    except (OSError, ImageError):
        return False


def batches(reads: Iterable[ReadResult], batch: int) -> Iterator[list[ReadResult]]:
    """Part `reads` so that each part has at most `batch` images to encode."""
    part: list[ReadResult] = []
    encode = 0
    for read in reads:
        part.append(read)
        encode += read.pixels is not None
        if encode == batch or len(part) == _LARGEST_BATCH:
            yield part
            part, encode = [], 0
    if part:
        yield part
