"""TensorRT engines on this machine: a private folder, each engine beside what it was built from and a seal over both.

An engine is native code. It is opened only where this user's own key sealed exactly these bytes, for
this graph, library, GPU and precision. A copied, edited or renamed engine is not opened.
"""

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nsfse_runtime.atomic_write import atomic_write
from nsfse_runtime.errors import IntegrityError, OutputError
from nsfse_runtime.inference.cuda import Gpu
from nsfse_runtime.inference.manifest import TOKENIZER, Manifest, Precision
from nsfse_runtime.inference.tensorrt_library import LibraryName, TensorRT
from nsfse_runtime.output_files import cache_folder

ShapeRange = tuple[int, int, int]
"""(min, opt, max) sizes of a dimension that varies."""
Profile = Mapping[str, ShapeRange]

MAX_WORDS = 0  # in the place of the bundle's max_words
PROFILES: dict[str, tuple[Profile, ...]] = {
    "image": ({"batch": (1, 1, 1)}, {"batch": (2, 32, 64)}),
    "text": ({"batch": (1, 1, 64), "words": (1, 6, MAX_WORDS)},),
    "query": ({"batch": (1, 1, 64), "words": (1, 6, MAX_WORDS)},),
    "pair": ({"candidates": (1, 100, 512), "words": (1, 6, MAX_WORDS)},),
}
"""The shapes that an engine is built for, by graph; a profile is tuned for its opt sizes."""

_KEY = "secret"


class EngineKey(msgspec.Struct, frozen=True):
    """What an engine belongs to.

    Attributes:
        graph: SHA-256 of the ONNX graph.
        library: "tensorrt" or "rtx".
        version: The library's version.
        gpu: Name of the GPU that TensorRT tuned it on; "" for TensorRT for RTX, which needs none.
        capability: Compute capability of its GPUs, such as 8.9.
        precision: That of the bundle.
        profiles: Its shapes.
    """

    graph: str
    library: LibraryName
    version: str
    gpu: str
    capability: str
    precision: Precision
    profiles: tuple[dict[str, ShapeRange], ...]

    @property
    def name(self) -> str:
        """Return the name of its files: a digest of all of it."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:32]


class Sidecar(msgspec.Struct, frozen=True):
    """The file beside an engine: its `key`, the graph's `outputs` in order, `sha256` of the engine, and the `seal`."""

    key: EngineKey
    outputs: tuple[str, ...]
    sha256: str
    seal: str = ""


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine's bytes, `plan`, and the names of its graph's `outputs` in order."""

    plan: bytes
    outputs: tuple[str, ...]


def profiles_of(graph: str, manifest: Manifest) -> tuple[dict[str, ShapeRange], ...]:
    """Return the shapes that the engine of `graph` is built for, with the bundle's longest text filled in."""

    def filled(sizes: ShapeRange) -> ShapeRange:
        smallest, optimal, largest = sizes
        largest = largest or manifest.max_words
        return smallest, min(optimal, largest), largest

    return tuple({name: filled(sizes) for name, sizes in profile.items()} for profile in PROFILES[graph])


def engine_key(graph: str, manifest: Manifest, library: TensorRT, gpu: Gpu) -> EngineKey:
    """Return the key of the engine of a bundle's `graph` for a library and a GPU."""
    return EngineKey(
        graph=manifest.files[f"{graph}.onnx"].sha256,
        library=library.name,
        version=library.version,
        gpu="" if library.name == "rtx" else gpu.name,
        capability=gpu.capability,
        precision=manifest.precision,
        profiles=profiles_of(graph, manifest),
    )


def engine_graphs(manifest: Manifest) -> list[str]:
    """Return the graphs of a bundle that become engines: image, text, query, and pair where it has one."""
    return [name.removesuffix(".onnx") for name in manifest.required_files if name != TOKENIZER]


class EngineCache:
    """The folder of engines, of this user and no other. Made by `open`."""

    def __init__(self, folder: Path, secret: bytes) -> None:
        self.folder, self._secret = folder, secret

    @classmethod
    def open(cls, folder: Path | None = None) -> "EngineCache":
        """Open or make the folder, mode 0700. Raises OutputError where it cannot be made or others can enter it."""
        folder = folder or cache_folder("engines")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            _refuse_shared(folder)
            return cls(folder, _secret(folder / _KEY))
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot keep engines in {folder}: {error.strerror}; set XDG_CACHE_HOME") from error

    @property
    def secret(self) -> bytes:
        """Return this user's own key."""
        return self._secret

    def has(self, key: EngineKey) -> bool:
        """Tell whether there is an engine of `key`, without checking it."""
        return all(file.exists() for file in self._files(key))

    def load(self, key: EngineKey) -> StoredEngine | None:
        """Return the engine of `key`, None where there is none. Raises IntegrityError where it is not as sealed."""
        plan_file, sidecar_file = self._files(key)
        try:
            plan, text = plan_file.read_bytes(), sidecar_file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            sidecar = msgspec.json.decode(text, type=Sidecar)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise _damaged(sidecar_file) from error
        if not self._is_sealed(sidecar):
            raise _damaged(sidecar_file)
        if sidecar.key != key or hashlib.sha256(plan).hexdigest() != sidecar.sha256:
            raise _damaged(plan_file)
        return StoredEngine(plan, sidecar.outputs)

    def store(self, key: EngineKey, engine: StoredEngine) -> None:
        """Keep an engine that was built or added here, its sidecar last. Raises OutputError."""
        plan_file, sidecar_file = self._files(key)
        bare = Sidecar(key, engine.outputs, hashlib.sha256(engine.plan).hexdigest())
        sidecar = msgspec.structs.replace(bare, seal=self._seal(bare))
        sidecar_file.unlink(missing_ok=True)
        self._write(plan_file, engine.plan)
        self._write(sidecar_file, msgspec.json.format(msgspec.json.encode(sidecar), indent=2))

    def remove(self, key: EngineKey) -> None:
        """Forget the engine of `key`, if there is one."""
        for file in reversed(self._files(key)):
            file.unlink(missing_ok=True)

    def sidecars(self) -> list[Sidecar]:
        """Return what is known of each engine here; those that are not as sealed are left out."""
        read = (self._sidecar(file) for file in sorted(self.folder.glob("*.json")))
        known = [sidecar for sidecar in read if sidecar]
        return sorted(known, key=lambda sidecar: (sidecar.key.library, sidecar.key.capability, sidecar.key.graph))

    def _sidecar(self, file: Path) -> Sidecar | None:
        try:
            sidecar = msgspec.json.decode(file.read_bytes(), type=Sidecar)
        except (OSError, msgspec.MsgspecError):
            return None
        return sidecar if self._is_sealed(sidecar) else None

    def timings(self, key: EngineKey) -> bytes:
        """Return what TensorRT measured of its kernels here before; empty at first."""
        file = self._timing_file(key)
        return file.read_bytes() if file.exists() else b""

    def store_timings(self, key: EngineKey, data: bytes) -> None:
        """Keep what TensorRT measured. Raises OutputError."""
        self._write(self._timing_file(key), data)

    def _timing_file(self, key: EngineKey) -> Path:
        where = f"{key.version}\0{key.gpu}\0{key.capability}".encode()
        return self.folder / f"{hashlib.sha256(where).hexdigest()[:32]}.timing"

    def _files(self, key: EngineKey) -> tuple[Path, Path]:
        return self.folder / f"{key.name}.engine", self.folder / f"{key.name}.json"

    def _seal(self, sidecar: Sidecar) -> str:
        bare = msgspec.structs.replace(sidecar, seal="")
        return hmac.new(self._secret, msgspec.json.encode(bare, order="deterministic"), "sha256").hexdigest()

    def _is_sealed(self, sidecar: Sidecar) -> bool:
        return hmac.compare_digest(sidecar.seal.encode(), self._seal(sidecar).encode())

    def _write(self, file: Path, data: bytes) -> None:
        atomic_write(file, data, hint="free disk space or set XDG_CACHE_HOME")


def _refuse_shared(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{folder} is not a folder; move it away or set XDG_CACHE_HOME")
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise OutputError(f"{folder} belongs to another user, and engines are code; set XDG_CACHE_HOME")
    if hasattr(os, "getuid") and status.st_mode & 0o077:
        raise OutputError(f"{folder} is open to others, and engines are code; run: chmod 700 {folder}")


def _secret(file: Path) -> bytes:
    """Return this user's key, made on the first call."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_bytes()
    with os.fdopen(handle, "wb") as opened:
        opened.write(key := secrets.token_bytes(32))
    return key


def _damaged(file: Path) -> IntegrityError:
    return IntegrityError(f"{file} is not as it was built here; build it again with: nsfse export BUNDLE --trt")
