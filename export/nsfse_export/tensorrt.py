"""TensorRT engines of a bundle's ONNX graphs: into this machine's cache, or ahead of time into a pack for others.

Needs TensorRT or TensorRT for RTX, and no torch. A pack needs no GPU; the cache needs one and ONNX Runtime.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsfse_export.engine_builder import EngineState, timed_build
from nsfse_export.engine_comparison import compare_or_remove, reference_scorer
from nsfse_export.engine_pack import build_pack
from nsfse_export.options import ExportOptions
from nsfse_runtime.errors import IntegrityError, NotFoundError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import Gpu, find_gpu, gpu
from nsfse_runtime.inference.manifest import MANIFEST, Precision
from nsfse_runtime.inference.tensorrt.cache import EngineCache, EngineKey, engine_graphs, engine_key
from nsfse_runtime.inference.tensorrt.pack import not_run
from nsfse_runtime.inference.tensorrt_library import LibraryName, TensorRT, installed_libraries, load_library


@dataclass(frozen=True)
class EngineTarget:
    """What engines are built by, and for. Made by `engine_target`.

    Attributes:
        library: What builds them.
        gpu: This machine's GPU; None without one.
        capabilities: Compute capabilities of the GPUs that a pack is for; none: for this machine's, into its cache.
        secret: What seals a pack; None for this user's own key.
    """

    library: TensorRT
    gpu: Gpu | None
    capabilities: tuple[str, ...] = ()
    secret: bytes | None = None

    @property
    def all_capabilities(self) -> tuple[str, ...]:
        """Return the compute capabilities of the GPUs that engines are built for."""
        return self.capabilities or ((self.gpu.capability,) if self.gpu else ())


@dataclass(frozen=True)
class EnginesReport:
    """What was built.

    Attributes:
        bundle: Folder of the bundle.
        folder: Folder of the engines: the cache, or the pack.
        library: Name and version of what built them.
        gpu: Name and compute capability of the GPU that ran them; "" where none did.
        engines: By compute capability and graph.
        least_cosine: By output, the least cosine of any row with ONNX Runtime's; nothing where no GPU ran them.
        note: What was not shown here.
    """

    bundle: Path
    folder: Path
    library: str
    gpu: str
    engines: dict[str, dict[str, EngineState]]
    least_cosine: dict[str, float]
    note: str = ""


def engine_target(
    name: LibraryName | None = None, capabilities: Sequence[str] = (), secret: bytes | None = None
) -> EngineTarget:
    """Find out what engines can be built here, before anything is written.

    Args:
        name: The library; by default the one that is installed, and TensorRT for RTX where both are and
            `capabilities` are given.
        capabilities: GPUs of other machines to build for, as compute capabilities such as 8.9.
        secret: What seals the pack.

    Raises:
        MissingExtraError: The library is not installed.
        VersionError: It has a version that is not supported.
        UsageError: It does not build for such a GPU, or there is none here.
    """
    if name is None and capabilities and "rtx" in installed_libraries():
        name = "rtx"
    library, device = load_library(name), find_gpu()
    for capability in capabilities:
        library.check_capability(capability)
    if not capabilities and device is None:
        if library.name == "rtx":
            raise UsageError(
                "no NVIDIA GPU works here; name the GPUs to build for, such as --compute-capability 8.9 "
                f"({library.title} knows {', '.join(library.capabilities)}); nsfse doctor shows what is missing"
            )
        gpu()  # raises why
    if not capabilities and device and library.name == "rtx":
        library.check_capability(device.capability)
    return EngineTarget(library, device, tuple(dict.fromkeys(capabilities)), secret)


def bundle_for_engines(
    path: Path,
    out: Path | None,
    options: ExportOptions | None = None,
    *,
    target: EngineTarget | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    report_scores: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the bundle whose engines are to be built; a run is exported to one first.

    Args:
        path: A bundle, or a run.
        out: Folder of the bundle that a run is exported to; None for a bundle.
        options: As in `export_bundle`; by default the last weights in fp32.
        target: What the engines are for, so that a precision it lacks is refused before the export.
        progress: As in `export_bundle`.
        report_scores: As in `export_bundle`.

    Returns:
        `path`, or `out`.

    Raises:
        NotFoundError: There is nothing at `path`.
        UsageError: `out` is missing for a run or given for a bundle, or the target lacks the precision.
        NsfseError: What `export_bundle` raises.
    """
    options = options or ExportOptions()
    if not path.exists():
        raise NotFoundError(f"there is nothing at {path}; give a run, or a bundle")
    if (path / MANIFEST).exists():
        if out is not None:
            raise UsageError(f"{path} is a bundle already, and its engines have a place of their own; leave -o out")
        if options.precision != "fp32" or options.verify_on or options.skip_verification:
            raise UsageError(f"{path} is a bundle already, whose precision its engines take; export its run in another")
        return path
    if out is None:
        raise UsageError(f"{path} is not a bundle; if it is a run, name the folder of its bundle with -o BUNDLE")
    _check_precision(out, options.precision, target)
    from nsfse_export.export import export_bundle

    return export_bundle(path, out, options, progress=progress, report_scores=report_scores).path


def build_engines(path: Path, target: EngineTarget | None = None) -> EnginesReport:
    """Build the engines of a bundle that are not there yet, and compare them with ONNX Runtime where a GPU can.

    Args:
        path: Folder of the bundle.
        target: What builds them and for which GPUs; by default `engine_target()`.

    Returns:
        The state of each engine, and the least cosine between its outputs and ONNX Runtime's.

    Raises:
        NsfseError: What `engine_target` raises.
        UsageError: The target lacks the bundle's precision.
        OutputError: The cache or the pack cannot be written.
        IntegrityError: The library does not take a graph, or the engines do not agree and were removed.
    """
    target, bundle = target or engine_target(), Bundle.open(path)
    _check_precision(path, bundle.manifest.precision, target)
    library, device, cache = target.library, target.gpu, EngineCache.open()
    if target.capabilities:
        secret = target.secret or cache.secret
        folder, states, cosines = build_pack(bundle, library, target.capabilities, secret, device, cache)
    else:
        device = device or gpu()
        folder, reference = cache.folder, reference_scorer(bundle)  # refused before the engines, which take their time
        keys = {graph: engine_key(graph, bundle.manifest, library, device) for graph in engine_graphs(bundle.manifest)}
        engines = {graph: ensure_engine(library, bundle, cache, graph, key) for graph, key in keys.items()}
        states, cosines = {device.capability: engines}, compare_or_remove(reference, bundle, library, device, cache)
    unseen = [capability for capability in states if not device or capability != device.capability]
    ran = f"{device.name} ({device.capability})" if device and cosines else ""
    return EnginesReport(path, folder, library.title, ran, states, cosines, not_run(unseen) if unseen else "")


def ensure_engine(library: TensorRT, bundle: Bundle, cache: EngineCache, graph: str, key: EngineKey) -> EngineState:
    """Return the state of an engine of the cache, built where it was missing or damaged."""
    try:
        stored = cache.load(key)
    except IntegrityError:  # changed since it was built
        cache.remove(key)
        stored = None
    if stored is not None:
        return EngineState("kept", len(stored.plan), 0.0)
    stored, timings, state = timed_build(library, bundle, graph, key, cache.timings(key))
    cache.store(key, stored)
    if timings:
        cache.store_timings(key, timings)
    return state


def _check_precision(path: Path, precision: Precision, target: EngineTarget | None) -> None:
    if precision == "int8":
        raise UsageError(f"{path}: int8 is for CPUs, and TensorRT takes none of its matrices; use fp32, fp16 or bf16")
    old = [capability for capability in target.all_capabilities if float(capability) < 8.0] if target else []
    if precision == "bf16" and old:
        raise UsageError(f"{path}: GPUs of {', '.join(old)} have no bf16, which is from 8.0 on; use fp16 or fp32")
