"""manifest.json of a bundle: its schema, read and written, with the hash of every file."""

import errno
import hashlib
import os
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import msgspec

from nsfse_runtime.atomic_write import replacing
from nsfse_runtime.errors import IntegrityError, NotFoundError, OutputError, VersionError
from nsfse_runtime.regular_files import open_regular
from nsfse_runtime.types import RankingMode

FORMAT_VERSION = 1
Precision = Literal["fp32", "int8", "fp16", "bf16"]
MANIFEST, TOKENIZER, CARD = "manifest.json", "tokenizer.json", "README.md"
PAIR = "pair.onnx"
GRAPHS = ("image.onnx", "text.onnx", "query.onnx", PAIR)
# The card is for people, who may add to it: it is neither hashed nor required.
FILES = (*GRAPHS, TOKENIZER)
# A manifest may come from a stranger. The largest known encoders stay far below these.
_MAX_MANIFEST_BYTES, _MAX_TOKENIZER_BYTES, _MAX_GRAPH_BYTES = 1 << 22, 1 << 26, 1 << 31
_MAX_SIDE, _MAX_DIM, _MAX_REGIONS, _MAX_WORDS = 4096, 1 << 14, 1 << 14, 1024


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a bundle: `sha256` in hex, `size` in bytes."""

    sha256: str
    size: int


class AttributeBlock(msgspec.Struct, frozen=True):
    """One attribute among the last channels of a vector: the roots of the probabilities of its values, times √`share`.

    Attributes:
        name: Its name in the training data.
        values: How many values it has, a channel each.
        share: w², its part of the length of a vector.
        weight: ω_a, its weight in S.
    """

    name: str
    values: int
    share: float
    weight: float


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of manifest.json, which also holds `sha256` over all the rest of itself.

    Attributes:
        mode: How the model ranks; `stages` in the file. A model of one stage has no pair graph,
            boundary or head.
        image_size: (height, width) of an image, in pixels.
        dim: d, the length of a vector.
        regions: R, the regions of an image.
        boundary: "t_c" and "t_v" with the statistics they came from.
        head: The constants of the pair graph.
        blocks: The attributes that vectors have blocks of, in the order of their channels; none in
            older bundles, and without such blocks.
        decision: The confidence model (see confidence.Decision); {} where none was fitted.
        precision: The number type that the export was made with.
        graphs: The number type of each graph; empty in older bundles, which are float32.
        files: Size and SHA-256 of each file.
        retrieval: Scores in float32 and in `precision`, where that is another.

    `trained_on`, `scores` and `verified` (the distance of ONNX Runtime from torch) are for the
    model card.
    """

    format_version: int = FORMAT_VERSION
    name: str
    method: str = "nsfse"
    mode: RankingMode = msgspec.field(name="stages", default=RankingMode.TWO_STAGE)
    created_with: str
    image_size: tuple[int, int]
    dim: int
    regions: int
    max_words: int
    boundary: dict[str, float]
    head: dict[str, float] = {}
    blocks: tuple[AttributeBlock, ...] = ()
    decision: dict[str, Any] = {}
    precision: Precision = "fp32"
    graphs: dict[str, Precision] = {}
    files: dict[str, FileEntry] = {}
    trained_on: str | dict[str, Any] = ""
    scores: dict[str, Any] = {}
    verified: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.mode is RankingMode.ALL_PAIRS:
            raise ValueError("stages is neither 1 nor 2")
        if self.format_version < 1:
            raise ValueError("format_version is less than 1")
        least_regions = int(self.mode is RankingMode.TWO_STAGE)
        bounds = [("dim", self.dim, 1, _MAX_DIM), ("regions", self.regions, least_regions, _MAX_REGIONS)]
        bounds += [("image_size", side, 1, _MAX_SIDE) for side in self.image_size]
        for name, value, least, most in [*bounds, ("max_words", self.max_words, 1, _MAX_WORDS)]:
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}, not {least} to {most}")

    @property
    def grid(self) -> tuple[int, int] | None:
        """Return the (rows, columns) of the square cells that an image's regions are, the views after them left out.

        None for a model of one stage, and where no grid of squares has so many.
        """
        cells = self.regions - int(self.head.get("views", 0))
        height, width = self.image_size
        if self.mode is RankingMode.ONE_STAGE or cells < 1:
            return None
        rows = round((cells * height / width) ** 0.5)
        fits = rows > 0 and cells % rows == 0 and rows * width == cells // rows * height
        return (rows, cells // rows) if fits else None

    @property
    def required_files(self) -> tuple[str, ...]:
        """Return the names of the files that such a bundle has: all of FILES, or all but the pair graph."""
        return FILES if self.mode is RankingMode.TWO_STAGE else tuple(name for name in FILES if name != PAIR)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest alone. Raises NotFoundError, VersionError or IntegrityError."""
    path = folder / MANIFEST
    try:
        with open_own_file(folder, MANIFEST) as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a bundle (it has no manifest.json)" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {what}; make one with: nsfse export RUN -o BUNDLE") from None
    except OSError as error:
        raise damaged(path, error.strerror or "it cannot be read") from error
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
        version, checksum = raw["format_version"], raw.pop("sha256", "")
        actual = checksum_of(raw)
    except (msgspec.DecodeError, UnicodeError, KeyError, RecursionError, OverflowError) as error:
        raise damaged(path, "not a valid manifest") from error
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise VersionError(
            f"{folder} has bundle format {version}, this nsfse reads up to {FORMAT_VERSION}; upgrade nsfse"
        )
    if checksum != actual:
        raise damaged(path, "its content is not what was exported")
    try:
        return msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise damaged(path, str(error).splitlines()[0]) from error


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """Hash the bundle's files in `folder` and write manifest.json, last and atomically; return it with the hashes.

    Raises IntegrityError when a file is missing, OutputError when the folder cannot be written.
    """
    folder = Path(folder)
    for name in manifest.required_files:
        if not (folder / name).is_file():
            raise damaged(folder / name, "it is missing")
    manifest = msgspec.structs.replace(
        manifest, files={name: file_entry(folder / name) for name in manifest.required_files}
    )
    raw = msgspec.to_builtins(manifest)
    data = msgspec.json.format(msgspec.json.encode({**raw, "sha256": checksum_of(raw)}), indent=2)
    try:
        with replacing(folder / MANIFEST, durable=True) as draft:
            draft.write_bytes(data + b"\n")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error
    return manifest


def open_own_file(folder: Path, name: str) -> BufferedReader:
    """Open a file of a bundle for reading.

    Raises OSError where it is not a regular file of the folder's own, or larger than any such file. A link within the
    folder is followed. A pipe or a device is not waited for.
    """
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(errno.ELOOP, "it is a link out of the bundle; copy it with cp -rL")
    most = {MANIFEST: _MAX_MANIFEST_BYTES, TOKENIZER: _MAX_TOKENIZER_BYTES}.get(name, _MAX_GRAPH_BYTES)
    file = open_regular(path)
    if os.fstat(file.fileno()).st_size <= most:
        return file
    file.close()
    raise OSError(errno.EFBIG, f"it is over {most >> 20} MiB")


def file_entry(path: Path) -> FileEntry:
    """Hash a file of a bundle. Raises OSError."""
    with open_own_file(path.parent, path.name) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(digest, file.tell())


def checksum_of(raw: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own `sha256`."""
    # Over the values, not the text: another indent is no damage, and fields a later version adds
    # are covered.
    return hashlib.sha256(msgspec.json.encode(raw, order="deterministic")).hexdigest()


def damaged(path: Path, why: str) -> IntegrityError:
    """Return the error for a file of a bundle that is not as it was exported."""
    return IntegrityError(f"{path} is damaged ({why}); export the bundle again")
