"""Bundle: the exported folder, one frozen schema; what is loaded is what was hashed."""

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from nsfse_runtime.errors import IntegrityError, NotFoundError, OutputError, VersionError
from nsfse_runtime.types import RankingMode

if TYPE_CHECKING:
    from nsfse_runtime.inference.onnx_scorer import OnnxScorer

FORMAT_VERSION = 1
Precision = Literal["fp32", "int8", "fp16", "bf16"]
MANIFEST, TOKENIZER, CARD = "manifest.json", "tokenizer.json", "README.md"
PAIR = "pair.onnx"
GRAPHS = ("image.onnx", "text.onnx", "query.onnx", PAIR)
# The card is for people, who may add to it: it is neither hashed nor required.
FILES = (*GRAPHS, TOKENIZER)
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a bundle: `sha256` in hex, `size` in bytes."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is; manifest.json holds it, and `sha256` over all the rest of itself.

    `image_size` is (height, width); `dim` d; `regions` R; `boundary` holds "t_c" and "t_v" with the statistics they
    came from; `head` the constants of the pair graph (see `rerank.HeadConstants`); `decision` what tells a match (see
    `decision.Decision`), {} where none was fitted; `trained_on`, `scores` and `verified` (how far ONNX Runtime is from
    torch) are for the card and for people. A model of one stage (`method` is not nsfse) has no pair graph, no boundary,
    no head and no decision. `precision` is what was asked of the graphs and `graphs` what each of them got (empty in
    older bundles: float32); `retrieval` holds the scores of both where that is not float32.
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
    def needed(self) -> tuple[str, ...]:
        """Return the names of the files that such a bundle has: all of FILES, or all but the pair graph."""
        return FILES if self.mode is RankingMode.TWO_STAGE else tuple(name for name in FILES if name != PAIR)


class Bundle:
    """An exported model: a folder of graphs, a tokenizer and their manifest. Made by `open`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Bundle":
        """Open a bundle and check every byte of it.

        Raises NotFoundError (no such folder, or not a bundle), VersionError (a newer format) or IntegrityError.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        bundle = cls(folder, manifest)
        for name in manifest.needed:
            if name not in manifest.files:
                raise _damaged(folder / MANIFEST, f"it does not list {name}")
        if manifest.mode is RankingMode.TWO_STAGE and "t_c" not in manifest.boundary:
            raise _damaged(folder / MANIFEST, "it has no boundary t_c")
        for name in manifest.files:
            if not _PLAIN_NAME.fullmatch(name):
                raise _damaged(folder / MANIFEST, "it lists a file outside the bundle")
            bundle._check(name)
        return bundle

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, hashed as they are returned. Raises IntegrityError."""
        entry = self.manifest.files[name]
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise _damaged(self.path / name, error.strerror or "it cannot be read") from error
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _damaged(self.path / name, "its content is not what was exported")
        return data

    def _check(self, name: str) -> None:
        entry, path = self.manifest.files[name], self.path / name
        try:
            found = _entry(path)
        except OSError as error:
            raise _damaged(path, error.strerror or "it cannot be read") from error
        if found != entry:
            raise _damaged(path, "its content is not what was exported")

    @cached_property
    def fingerprint(self) -> str:
        """Identify the features this bundle makes: sha256 over its image size and the hashes of its files."""
        lines = [f"{name}:{self.manifest.files[name].sha256}" for name in sorted(self.manifest.needed)]
        return hashlib.sha256("\n".join([*lines, f"image_size:{self.manifest.image_size}"]).encode()).hexdigest()

    @cached_property
    def scorer(self) -> "OnnxScorer":
        """Return the bundle's scorer on the CPU, made once: graphs are opened when they are first used."""
        from nsfse_runtime.inference.onnx_scorer import OnnxScorer

        return OnnxScorer(self)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest alone. Raises NotFoundError, VersionError or IntegrityError."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a bundle (it has no manifest.json)" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {what}; make one with: nsfse export RUN -o BUNDLE") from None
    except OSError as error:
        raise _damaged(path, error.strerror or "it cannot be read") from error
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
        version, checksum = raw["format_version"], raw.pop("sha256", "")
    except (msgspec.DecodeError, UnicodeError, KeyError) as error:
        raise _damaged(path, "it is not a manifest") from error
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise VersionError(
            f"{folder} has bundle format {version}, this nsfse reads up to {FORMAT_VERSION}; upgrade nsfse"
        )
    if checksum != _checksum(raw):
        raise _damaged(path, "its content is not what was exported")
    try:
        return msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """Hash the bundle's files in `folder` and write manifest.json, last and atomically; return it with the hashes.

    Raises IntegrityError when a file is missing, OutputError when the folder cannot be written.
    """
    folder = Path(folder)
    for name in manifest.needed:
        if not (folder / name).is_file():
            raise _damaged(folder / name, "it is missing")
    manifest = msgspec.structs.replace(manifest, files={name: _entry(folder / name) for name in manifest.needed})
    raw = msgspec.to_builtins(manifest)
    data = msgspec.json.format(msgspec.json.encode({**raw, "sha256": _checksum(raw)}), indent=2)
    draft = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        with draft.open("wb") as file:
            file.write(data + b"\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / MANIFEST)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error
    return manifest


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(digest, file.tell())


def _checksum(raw: dict[str, Any]) -> str:
    # Over the values, not the text: another indent is no damage, and fields a later version adds are covered.
    return hashlib.sha256(msgspec.json.encode(raw, order="deterministic")).hexdigest()


def _damaged(path: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{path} is damaged ({why}); export the bundle again")
