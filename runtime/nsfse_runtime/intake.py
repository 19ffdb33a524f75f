"""Files → hashes and pixels, in threads, in order, a bounded number ahead of who takes them."""

import hashlib
import os
from collections import deque
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nsfse_runtime import images
from nsfse_runtime.errors import ImageError
from nsfse_runtime.features import Pixels
from nsfse_runtime.folder import Stamp

_WORKERS = min(4, os.cpu_count() or 1)
_READ_AHEAD = 4 * _WORKERS
# Files with nothing to encode (renames, duplicates, refusals) make a batch at the latest after so many.
_LARGEST_BATCH = 512


@dataclass(frozen=True, slots=True)
class Read:
    """A file as read: `sha256` and, when that is new, `pixels` [h, w, 3]; or the `reason` why it could not be read."""

    name: str
    stamp: Stamp
    sha256: bytes = b""
    pixels: Pixels | None = None
    reason: str = ""
    refused: bool = False  # the content is no picture, as against a file that could not be read this time


def read_files(
    folder: Path, files: Mapping[str, Stamp], size: tuple[int, int], known: Container[bytes]
) -> Generator[Read]:
    """Read `files` in order; those whose sha256 is not `known` are decoded and fitted to `size` (height, width)."""
    pool = ThreadPoolExecutor(_WORKERS, "nsfse-decode")
    waiting: deque[Future[Read]] = deque()
    try:
        for name, stamp in files.items():
            waiting.append(pool.submit(_read, folder, name, stamp, size, known))
            if len(waiting) >= _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(folder: Path, name: str, stamp: Stamp, size: tuple[int, int], known: Container[bytes]) -> Read:
    try:
        with images.open_regular(folder / name) as stream:
            status = os.fstat(stream.fileno())
            stamp = (status.st_size, status.st_mtime_ns)
            images.check_bytes(status.st_size)
            sha256 = hashlib.file_digest(stream, "sha256").digest()
            pixels = None if sha256 in known else images.load_image(stream, size)
            status = os.fstat(stream.fileno())
    except ImageError as error:
        return Read(name, stamp, reason=str(error), refused=True)
    except OSError as error:
        return Read(name, stamp, reason=f"it cannot be read: {error.strerror or error}")
    if (status.st_size, status.st_mtime_ns) != stamp:
        return Read(name, stamp, reason="it was changed while it was read; index again")
    return Read(name, stamp, sha256, pixels)


def batches(reads: Iterable[Read], batch: int) -> Iterator[list[Read]]:
    """Part `reads` so that each part has at most `batch` pictures to encode."""
    part: list[Read] = []
    encode = 0
    for read in reads:
        part.append(read)
        encode += read.pixels is not None
        if encode == batch or len(part) == _LARGEST_BATCH:
            yield part
            part, encode = [], 0
    if part:
        yield part
