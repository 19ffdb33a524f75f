"""The images of a shard, one after the other: of a webdataset tar, or of a Parquet file."""

import hashlib
import json
import lzma
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from nsfse_runtime.errors import ImageError, InputError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.extras import need
from nsfse_runtime.gallery.reader import ReadResult
from nsfse_runtime.image_names import SUFFIXES, leads_out
from nsfse_runtime.images import decode

TAR, PARQUET = (".tar", ".tar.gz", ".tgz"), ".parquet"
_IMAGE_COLUMNS = ("image", "jpg", "png", "webp", "bytes", "img")  # the preferred ones first
_KEY_COLUMNS = ("key", "__key__", "id")
_ROWS = 64  # of a Parquet file that are in memory at a time


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a shard: its `id`, what returns its bytes (raises ImageError), and its metadata."""

    id: str
    read: Callable[[], bytes]
    metadata: Mapping[str, str] = field(default_factory=dict)


class ShardError(InputError):
    """A shard that cannot be read to its end."""


def is_shard(path: Path) -> bool:
    """Tell by its name whether a path is a shard and no folder."""
    return path.name.lower().endswith((*TAR, PARQUET)) and not path.is_dir()


def shard_name(path: Path) -> str:
    """Return what the ids of a shard begin with: its file's name up to the first dot."""
    return path.name.partition(".")[0]


def read_shard(path: Path) -> Iterator[Sample]:
    """Yield the images of a tar, as webdataset and img2dataset write them, or of a Parquet file.

    An id is the shard's name, "/", and the file's name in the tar, or the value of a column key or id, or the number
    of the row. What else of a sample is text or a number is its metadata.

    Raises:
        ShardError: The shard cannot be read to its end.
        UsageError: A Parquet file has no column of images.
        MissingExtraError: pyarrow is not installed.
    """
    is_parquet = path.name.lower().endswith(PARQUET)
    if is_parquet:
        need("pyarrow", "parquet")
    try:
        yield from (_read_parquet if is_parquet else _read_tar)(path)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise _broken(path, error) from error


def read_samples(
    samples: Iterable[Sample], size: tuple[int, int], known: Container[bytes], workers: int, ahead: int
) -> Generator[ReadResult]:
    """Hash `samples` in order; those whose SHA-256 is not `known` are decoded and fitted to `size` (height, width).

    `workers` threads go on, up to `ahead` samples further, while whoever takes them is busy.
    """
    pool = ThreadPoolExecutor(workers, "nsfse-decode")
    waiting: deque[Future[ReadResult]] = deque()
    try:
        for sample in samples:
            waiting.append(pool.submit(read_sample, sample, size, known))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_sample(sample: Sample, size: tuple[int, int], known: Container[bytes]) -> ReadResult:
    """Hash a sample and, where its SHA-256 is not `known`, decode it to `size` (height, width)."""
    try:
        if not sample.id.isprintable() or leads_out(sample.id):
            raise ImageError("its name leads out of its shard, or is not printable")
        data = sample.read()
        decode.check_bytes(len(data))
        sha256 = hashlib.sha256(data).digest()
        return ReadResult(sample.id, (0, 0), sha256, None if sha256 in known else decode.load_image(data, size))
    except ImageError as error:
        return ReadResult(sample.id, (0, 0), reason=str(error), refused=True)


def _broken(path: Path, error: Exception) -> ShardError:
    return ShardError(printable(f"{path} cannot be read to its end: {' '.join(str(error).split())}; make it again"))


# Tars: the members of a sample follow each other, and share their name up to the first dot.


def _read_tar(path: Path) -> Iterator[Sample]:
    with tarfile.open(path, "r|*") as tar:  # a stream
        for _, group in groupby(_members(tar), key=itemgetter(0)):
            members = list(group)
            try:
                metadata = _tar_metadata(members)
            except ValueError as error:
                reason = f"its metadata is not JSON: {error}"
                members = [(key, name, _refusing(reason)) for key, name, _ in members]
                metadata = {}
            for _, name, read in members:
                if name.lower().endswith(SUFFIXES):
                    yield Sample(f"{shard_name(path)}/{name}", read, metadata)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Yield key, name and reader of each file."""
    for member in tar:
        file = tar.extractfile(member) if member.isfile() else None
        if file is None:
            continue
        name = member.name.removeprefix("./")
        folder, slash, base = name.rpartition("/")
        try:
            decode.check_bytes(member.size)
            read = _returning(file.read())
        except ImageError as error:
            read = _refusing(str(error))
        yield f"{folder}{slash}{base.partition('.')[0]}", name, read


def _tar_metadata(members: Iterable[tuple[str, str, Callable[[], bytes]]]) -> dict[str, str]:
    """Return what the .json and the .txt of a sample say. Raises ValueError."""
    metadata: dict[str, str] = {}
    for _, name, read in members:
        if name.lower().endswith(".json"):
            values = json.loads(read())
            metadata |= _texts(values if isinstance(values, dict) else {})
        elif name.lower().endswith(".txt"):
            metadata.setdefault("caption", _clean(read().decode(errors="replace").strip()))
    return {column: value for column, value in metadata.items() if value}


def _returning(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _refusing(reason: str) -> Callable[[], bytes]:
    def refuse() -> bytes:
        raise ImageError(reason)

    return refuse


# Parquet


def _read_parquet(path: Path) -> Iterator[Sample]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            column, number = _image_column(path, file.schema_arrow), 0
            for part in file.iter_batches(_ROWS):
                for row in part.to_pylist():
                    yield _parquet_sample(path, row, column, number)
                    number += 1
    except pyarrow.ArrowException as error:
        raise _broken(path, error) from error


def _image_column(path: Path, schema: Any) -> str:
    """Return the column of images: bytes, or a struct with bytes as data sets on the Hugging Face Hub have it."""
    import pyarrow.types as kinds

    def is_bytes(kind: Any) -> bool:
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    def holds_bytes(kind: Any) -> bool:
        return kinds.is_struct(kind) and any(item.name == "bytes" and is_bytes(item.type) for item in kind)

    columns = [item.name for item in schema if is_bytes(item.type) or holds_bytes(item.type)]
    preferred = [name for name in _IMAGE_COLUMNS if name in columns]
    if not preferred and len(columns) != 1:
        raise UsageError(printable(f"{path} has {len(columns)} columns of bytes, none called image; name one image"))
    return (preferred or columns)[0]


def _parquet_sample(path: Path, row: dict[str, Any], column: str, number: int) -> Sample:
    cell = row.pop(column)
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    key = next((row[name] for name in _KEY_COLUMNS if row.get(name) is not None), number)
    return Sample(f"{shard_name(path)}/{_clean(str(key))}", _returning(data or b""), _texts(row))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts, numbers and booleans of a sample as metadata is stored."""
    texts = {
        _clean(name): _clean(value if isinstance(value, str) else json.dumps(value))
        for name, value in values.items()
        if isinstance(value, str | int | float)
    }
    return {name: value for name, value in texts.items() if name and value}


def _clean(text: str) -> str:
    """Return a text as every store can hold it: UTF-8, and without nulls."""
    return text.replace("\0", "").encode(errors="replace").decode()
