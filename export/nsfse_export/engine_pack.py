"""An engine pack beside its bundle: engines for the GPUs of other machines, built on this one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nsfse
from nsfse_export.engine_builder import EngineState, timed_build
from nsfse_export.engine_comparison import compare_or_remove, reference_scorer
from nsfse_runtime.atomic_write import atomic_write, replacing_folder
from nsfse_runtime.errors import IntegrityError, OutputError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import Gpu
from nsfse_runtime.inference.tensorrt.cache import EngineCache, EngineKey, StoredEngine, engine_graphs, engine_key
from nsfse_runtime.inference.tensorrt.pack import (
    PACK,
    EnginePack,
    PackedEngine,
    PackManifest,
    pack_folder,
    packed,
    write_manifest,
)
from nsfse_runtime.inference.tensorrt_library import TensorRT

States = dict[str, dict[str, EngineState]]
"""By compute capability and graph."""
_HINT = "free disk space, or choose another place for the bundle"


def build_pack(
    bundle: Bundle,
    library: TensorRT,
    capabilities: Sequence[str],
    secret: bytes,
    gpu: Gpu | None,
    cache: EngineCache,
) -> tuple[Path, States, dict[str, float]]:
    """Write the pack of a bundle, or add to it; engines that are in it and whole are kept.

    Args:
        bundle: The bundle.
        library: What builds.
        capabilities: The GPUs to build for.
        secret: What seals the pack.
        gpu: This machine's GPU. Engines for its capability enter `cache` and are compared with ONNX Runtime.
        cache: This machine's engines.

    Returns:
        The pack's folder, the state of each engine, and the least cosines where engines were run.

    Raises:
        UsageError: The pack there is sealed by another key.
        OutputError: The folder is something else, or cannot be written.
        IntegrityError: The library does not take a graph, or engines differ; those are not in the pack.
    """
    folder, manifest = pack_folder(bundle.path), bundle.manifest
    before = _former(folder, secret)
    keys = {
        (graph, capability): engine_key(graph, manifest, library, Gpu("", capability))
        for capability in capabilities
        for graph in engine_graphs(manifest)
    }
    states: States = {}
    cosines: dict[str, float] = {}
    failure: IntegrityError | None = None
    with _writing(folder) as draft:
        entries = [
            _copy(former, stored, draft)
            for former, stored in _still_good(before, bundle)
            if former.key not in keys.values()
        ]
        for (graph, capability), key in keys.items():
            entry, state = _ensure(library, bundle, before, graph, key, draft)
            entries.append(entry)
            states.setdefault(capability, {})[graph] = state
        if gpu and gpu.capability in capabilities:
            try:
                cosines = _run(library, bundle, draft, entries, gpu, cache)
            except IntegrityError as error:
                failure = error
                entries = _without(draft, entries, gpu.capability)
        contents = PackManifest(
            created_with=nsfse.__version__,
            bundle=bundle.path.absolute().name,
            fingerprint=bundle.fingerprint,
            engines=tuple(entries),
        )
        write_manifest(draft, contents, secret)
    if failure:
        raise failure
    return folder, states, cosines


def _former(folder: Path, secret: bytes) -> EnginePack | None:
    """Return the pack that is there; None for none. Raises OutputError or UsageError where it is not ours."""
    if not folder.exists() and not folder.is_symlink():
        return None
    if folder.is_symlink() or not (folder / PACK).is_file():
        raise OutputError(f"{folder} is the place of the engine pack, and is something else; move it away")
    pack = EnginePack.open(folder)
    if not pack.is_sealed_by(secret):
        raise UsageError(
            f"{folder} is sealed by another key, or was changed; give the key that sealed it with --pack-key, "
            "or remove the folder"
        )
    return pack


def _still_good(pack: EnginePack | None, bundle: Bundle) -> Iterator[tuple[PackedEngine, StoredEngine]]:
    """Yield the engines of a pack that are of this bundle's graphs and whole."""
    graphs = {bundle.manifest.files[f"{graph}.onnx"].sha256 for graph in engine_graphs(bundle.manifest)}
    for entry in pack.manifest.engines if pack else ():
        if pack and entry.key.graph in graphs and (stored := _whole(pack, entry)):
            yield entry, stored


def _whole(pack: EnginePack, entry: PackedEngine) -> StoredEngine | None:
    try:
        return pack.read(entry)
    except IntegrityError:
        return None


def _ensure(
    library: TensorRT, bundle: Bundle, before: EnginePack | None, graph: str, key: EngineKey, draft: Path
) -> tuple[PackedEngine, EngineState]:
    for entry in before.manifest.engines if before else ():
        if before and entry.key == key and (stored := _whole(before, entry)):
            return _copy(entry, stored, draft), EngineState("kept", entry.size, 0.0)
    stored, _, state = timed_build(library, bundle, graph, key)
    return _copy(packed(graph, key, stored), stored, draft), state


def _copy(entry: PackedEngine, stored: StoredEngine, draft: Path) -> PackedEngine:
    atomic_write(draft / entry.file, stored.plan, hint=_HINT)
    return entry


def _run(
    library: TensorRT, bundle: Bundle, draft: Path, entries: Sequence[PackedEngine], gpu: Gpu, cache: EngineCache
) -> dict[str, float]:
    for entry in entries:
        if entry.key.capability == gpu.capability and entry.key.version == library.version:
            cache.store(entry.key, StoredEngine((draft / entry.file).read_bytes(), entry.outputs))
    return compare_or_remove(reference_scorer(bundle), bundle, library, gpu, cache)


def _without(draft: Path, entries: Sequence[PackedEngine], capability: str) -> list[PackedEngine]:
    for entry in entries:
        if entry.key.capability == capability:
            (draft / entry.file).unlink(missing_ok=True)
    return [entry for entry in entries if entry.key.capability != capability]


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    try:
        with replacing_folder(folder) as draft:
            yield draft
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the engine pack {folder}: {error.strerror}; {_HINT}") from error
