"""Engine packs: engines built ahead of time for other machines, in a folder beside the bundle, sealed by a key.

Engines are native code. A pack only enters a machine's cache when its key is known there, or by an
explicit word: see `add_pack`.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nsfse_runtime.atomic_write import atomic_write
from nsfse_runtime.errors import IntegrityError, NotFoundError, UsageError, VersionError
from nsfse_runtime.inference.cuda import Gpu, find_gpu
from nsfse_runtime.inference.tensorrt.cache import EngineCache, EngineKey, StoredEngine
from nsfse_runtime.inference.tensorrt_library import KINDS, load_library
from nsfse_runtime.regular_files import read_regular

FORMAT_VERSION = 1
PACK = "engines.json"
MAX_MANIFEST = 1 << 20
KEY_BYTES = (16, 4096)
_FILE_NAME = re.compile(r"[a-z]+-\d+\.\d+-[0-9a-f]{8}\.engine", re.ASCII)
_DOMAIN = b"nsfse engine pack\0"  # so that no other text of the same key is a seal


class PackedEngine(msgspec.Struct, frozen=True):
    """One engine of a pack: its `graph` by name, `key`, `file`, `size` in bytes, `sha256`, and `outputs` in order."""

    graph: str
    key: EngineKey
    file: str
    size: int
    sha256: str
    outputs: tuple[str, ...]


class PackManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of engines.json: what built it, its bundle, its engines, and the `seal` over all the rest."""

    format_version: int = FORMAT_VERSION
    created_with: str
    bundle: str
    fingerprint: str
    engines: tuple[PackedEngine, ...]
    seal: str = ""


class EnginePack:
    """A pack's folder. Made by `open`."""

    def __init__(self, path: Path, manifest: PackManifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path) -> "EnginePack":
        """Open a pack; its engines are checked when they are read.

        Raises NotFoundError (no pack there), VersionError (a newer format) or IntegrityError (damaged).
        """
        file = path / PACK
        try:
            data = read_regular(file, MAX_MANIFEST + 1, follow=False)
        except FileNotFoundError:
            raise NotFoundError(f"there is no engine pack at {path}; give the folder that has {PACK}") from None
        except OSError as error:
            raise _damaged(file, error.strerror or "it cannot be read") from error
        try:
            version = msgspec.json.decode(data, type=_Versioned).format_version
            if version > FORMAT_VERSION:
                raise VersionError(f"{file} has format {version}, and this nsfse reads {FORMAT_VERSION}; update nsfse")
            manifest = msgspec.json.decode(data, type=PackManifest)
        except msgspec.MsgspecError as error:
            raise _damaged(file, str(error)) from error
        for engine in manifest.engines:
            if not _FILE_NAME.fullmatch(engine.file):
                raise _damaged(file, "it lists a file outside the pack")
        return cls(path, manifest)

    def is_sealed_by(self, secret: bytes) -> bool:
        """Tell whether the manifest is as it was when `secret` sealed it."""
        return hmac.compare_digest(self.manifest.seal.encode(), seal_of(self.manifest, secret).encode())

    def read(self, engine: PackedEngine) -> StoredEngine:
        """Return an engine, hashed as it is returned. Raises IntegrityError."""
        file = self.path / engine.file
        try:
            plan = read_regular(file, engine.size + 1, follow=False)
        except OSError as error:
            raise _damaged(file, error.strerror or "it cannot be read") from error
        if len(plan) != engine.size or hashlib.sha256(plan).hexdigest() != engine.sha256:
            raise _damaged(file, "its content is not what was built")
        return StoredEngine(plan, engine.outputs)


class _Versioned(msgspec.Struct):
    format_version: int


@dataclass(frozen=True)
class AddedEngines:
    """What `add_pack` did.

    Attributes:
        pack: Folder of the pack.
        cache: Folder of this machine's engines.
        library: Name and version of the library.
        engines: By compute capability and graph, `added`, or `kept` where the cache had it.
        note: What was not shown here.
    """

    pack: Path
    cache: Path
    library: str
    engines: dict[str, dict[str, str]]
    note: str


def pack_folder(bundle: Path) -> Path:
    """Return where the pack of a bundle is: beside it, never inside."""
    bundle = bundle.absolute()
    return bundle.with_name(f"{bundle.name}.engines")


def read_key(file: Path) -> bytes:
    """Return the key in `file`, without blanks around it. Raises NotFoundError or UsageError."""
    try:
        secret = read_regular(file, KEY_BYTES[1] + 1).strip()  # a mounted secret is a link
    except FileNotFoundError:
        raise NotFoundError(f"there is no key at {file}; make one with: openssl rand -hex 32 > {file}") from None
    except OSError as error:
        raise UsageError(f"the key {file} cannot be read: {error.strerror}; give a file of one line") from error
    least, most = KEY_BYTES
    if not least <= len(secret) <= most:
        raise UsageError(
            f"{file} is no key: it has {len(secret)} bytes, not {least} to {most}; make one with: "
            f"openssl rand -hex 32 > {file}"
        )
    return secret


def seal_of(manifest: PackManifest, secret: bytes) -> str:
    """Return the seal that `secret` gives to a manifest: HMAC-SHA256 over all of it but the seal."""
    bare = msgspec.json.encode(msgspec.structs.replace(manifest, seal=""), order="deterministic")
    return hmac.new(secret, _DOMAIN + bare, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: PackManifest, secret: bytes) -> None:
    """Seal a manifest and write it. Raises OutputError."""
    sealed = msgspec.structs.replace(manifest, seal=seal_of(manifest, secret))
    text = msgspec.json.format(msgspec.json.encode(sealed), indent=2)
    atomic_write(folder / PACK, text, hint="free disk space or choose another place for the bundle")


def packed(graph: str, key: EngineKey, engine: StoredEngine) -> PackedEngine:
    """Return the entry of an engine; its file is named by graph, compute capability and key."""
    file = f"{graph}-{key.capability}-{key.name[:8]}.engine"
    return PackedEngine(graph, key, file, len(engine.plan), hashlib.sha256(engine.plan).hexdigest(), engine.outputs)


def add_pack(path: Path, key_file: Path | None = None, *, trust: bool = False) -> AddedEngines:
    """Copy the engines of a pack into this machine's cache, sealed by this user's own key.

    With a GPU, those for its compute capability; without one, all. Every engine is checked before the
    first is copied.

    Args:
        path: The pack's folder.
        key_file: The key that sealed it; by default this user's own.
        trust: Take it whoever sealed it: the caller knows where it comes from. Hashes are checked still.

    Returns:
        What was added.

    Raises:
        UsageError: Nothing says that it can be trusted, or it has no engine for this GPU.
        IntegrityError: It is damaged, or not sealed by that key.
        VersionError: It is by another version of its library.
        MissingExtraError: Its library is not installed.
        NotFoundError: There is no pack, or no key.
        OutputError: The cache cannot be written.
    """
    pack, cache = EnginePack.open(path), EngineCache.open()
    _check_trust(pack, cache, key_file, trust)
    gpu = find_gpu()
    chosen = _usable(pack, gpu)
    for engine in chosen:
        pack.read(engine)
    engines: dict[str, dict[str, str]] = {}
    for engine in chosen:
        state = "kept" if _has_whole(cache, engine.key) else "added"
        if state == "added":
            cache.store(engine.key, pack.read(engine))
        engines.setdefault(engine.key.capability, {})[engine.graph] = state
    library = load_library(chosen[0].key.library).title
    return AddedEngines(path, cache.folder, library, engines, "" if gpu else not_run(engines))


def not_run(capabilities: Iterable[str]) -> str:
    """Return what is said of engines that no GPU has run."""
    return f"built for {', '.join(capabilities)}, not run here: no NVIDIA GPU works"


def _check_trust(pack: EnginePack, cache: EngineCache, key_file: Path | None, trust: bool) -> None:
    if key_file:
        if not pack.is_sealed_by(read_key(key_file)):
            raise IntegrityError(
                f"{pack.path} is not sealed by the key in {key_file}, or was changed since; build the pack again "
                "with --pack-key, or give the key that sealed it"
            )
    elif not trust and not pack.is_sealed_by(cache.secret):
        raise UsageError(
            f"{pack.path} holds native code, and was not sealed by this user on this machine; give the key that "
            "sealed it with --pack-key FILE, or --trust where you know who made it"
        )


def _usable(pack: EnginePack, gpu: Gpu | None) -> list[PackedEngine]:
    """Return the engines for this GPU, or any without one, by the library here. Raises as `add_pack`."""
    chosen = [engine for engine in pack.manifest.engines if gpu is None or engine.key.capability == gpu.capability]
    if not chosen:
        there = ", ".join(sorted({engine.key.capability for engine in pack.manifest.engines})) or "no GPU"
        wanted = f"; this GPU, {gpu.name}, has {gpu.capability}" if gpu else ""
        raise UsageError(f"{pack.path} is built for {there}{wanted}; build it again with --compute-capability")
    usable = []
    for engine in chosen:
        if engine.key.version == load_library(engine.key.library).version:
            usable.append(engine)
    if not usable:
        key = chosen[0].key
        raise VersionError(
            f"{pack.path} is built by {KINDS[key.library].title} {key.version}, and here is "
            f"{load_library(key.library).title}; install that version, or build the pack again by this one"
        )
    return usable


def _has_whole(cache: EngineCache, key: EngineKey) -> bool:
    try:
        return cache.load(key) is not None
    except IntegrityError:  # changed since it was stored: it is replaced
        return False


def _damaged(file: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"{file} is damaged ({reason}); build the pack again: nsfse export BUNDLE --trt")
