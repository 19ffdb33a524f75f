"""TensorRT engines of a bundle's ONNX graphs, built into this machine's cache.

The types in the graphs decide the precision. Needs TensorRT, a GPU and ONNX Runtime, and no torch:
engines are built where they serve.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsfse_export.options import ExportOptions
from nsfse_export.verify import draw_sample, least_cosine
from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import gpu, load_tensorrt
from nsfse_runtime.inference.devices import ON_CPU, resolve_device
from nsfse_runtime.inference.manifest import MANIFEST, TOKENIZER, Precision
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.tensorrt.cache import EngineCache, EngineKey, ShapeRange, StoredEngine, engine_key
from nsfse_runtime.inference.tensorrt.engine import EngineScorer
from nsfse_runtime.types import Floats, Scorer

LEAST_COSINE = 0.999
"""The least allowed, of any row that engines and ONNX Runtime compute of the same images and texts."""
_NO_FOLDER = f"{os.devnull}/none/graph.onnx"  # external weights are searched where no file can be


@dataclass(frozen=True)
class EnginesReport:
    """What was built.

    Attributes:
        bundle: Folder of the bundle.
        folder: Folder of the engines.
        gpu: Name and compute capability of the GPU.
        tensorrt: Version of TensorRT.
        engines: By graph, `built`, or `kept` where it was in the cache.
        least_cosine: By output, the least cosine of any row with ONNX Runtime's.
    """

    bundle: Path
    folder: Path
    gpu: str
    tensorrt: str
    engines: dict[str, str]
    least_cosine: dict[str, float]


def bundle_for_engines(
    path: Path,
    out: Path | None,
    options: ExportOptions | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    report_scores: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the bundle whose engines are to be built; a run is exported to one first.

    Whether engines can be built on this machine is checked before anything is written.

    Args:
        path: A bundle, or a run.
        out: Folder of the bundle that a run is exported to; None for a bundle.
        options: As in `export_bundle`; by default the last weights in fp32.
        progress: As in `export_bundle`.
        report_scores: As in `export_bundle`.

    Returns:
        `path`, or `out`.

    Raises:
        UsageError: `out` is missing for a run or given for a bundle, or the precision is for CPUs.
        MissingExtraError: TensorRT is not installed.
        NsfseError: What `export_bundle` raises.
    """
    options = options or ExportOptions()
    load_tensorrt()
    gpu()
    if (path / MANIFEST).exists():
        if out is not None:
            raise UsageError(f"{path} is a bundle already, and its engines go to a cache of their own; leave -o out")
        if options.precision != "fp32" or options.verify_on or options.skip_verification:
            raise UsageError(f"{path} is a bundle already, whose precision its engines take; export its run in another")
        return path
    if out is None:
        raise UsageError(f"{path} is exported to a bundle first; name its folder with -o BUNDLE")
    _refuse_int8(out, options.precision)
    from nsfse_export.export import export_bundle

    return export_bundle(path, out, options, progress=progress, report_scores=report_scores).path


def build_engines(path: Path) -> EnginesReport:
    """Build the engines of a bundle that the cache lacks, and compare all of them with ONNX Runtime.

    Args:
        path: Folder of the bundle.

    Returns:
        The state of each engine, and the least cosine between its outputs and ONNX Runtime's.

    Raises:
        MissingExtraError: TensorRT is not installed.
        VersionError: TensorRT has a version that is not supported.
        UsageError: There is no GPU, or the precision is for CPUs.
        OutputError: The cache cannot be written.
        IntegrityError: TensorRT does not take a graph, or the engines do not agree and were removed.
    """
    trt, device = load_tensorrt(), gpu()
    bundle, cache = Bundle.open(path), EngineCache.open()
    manifest = bundle.manifest
    _refuse_int8(path, manifest.precision)
    reference = OnnxScorer(bundle, resolve_device("cuda") if manifest.precision == "bf16" else ON_CPU)
    graphs = [name.removesuffix(".onnx") for name in manifest.required_files if name != TOKENIZER]
    keys = {
        graph: engine_key(graph, manifest.files[f"{graph}.onnx"].sha256, manifest, trt.__version__, device)
        for graph in graphs
    }
    states = {graph: _ensure_engine(trt, bundle, cache, graph, key) for graph, key in keys.items()}
    cosines = compare(reference, EngineScorer(bundle), bundle)
    if not min(cosines.values()) >= LEAST_COSINE:  # so that a NaN is refused, too
        for key in keys.values():
            cache.remove(key)
        listed = ", ".join(f"{name} {value:.6f}" for name, value in cosines.items())
        raise IntegrityError(
            f"the engines of {path} do not agree with ONNX Runtime (least cosines: {listed}); they were removed: "
            "try another TensorRT, or a bundle of higher precision"
        )
    return EnginesReport(path, cache.folder, f"{device.name} ({device.capability})", trt.__version__, states, cosines)


def _refuse_int8(path: Path, precision: Precision) -> None:
    if precision == "int8":
        raise UsageError(f"{path}: int8 is for CPUs, and TensorRT takes none of its matrices; use fp32, fp16 or bf16")


def _ensure_engine(trt: Any, bundle: Bundle, cache: EngineCache, graph: str, key: EngineKey) -> str:
    try:
        if cache.load(key) is not None:
            return "kept"
    except IntegrityError:  # changed since it was built
        cache.remove(key)
    origin = str(bundle.path / f"{graph}.onnx")
    plan, timings = build_engine(trt, bundle.read(f"{graph}.onnx"), key.profiles, cache.timings(key), origin)
    cache.store(key, plan)
    cache.store_timings(key, timings)
    return "built"


def build_engine(
    trt: Any, graph: bytes, profiles: Sequence[Mapping[str, ShapeRange]], timings: bytes, origin: str
) -> tuple[StoredEngine, bytes]:
    """Return the engine of an ONNX `graph` for `profiles`, and TensorRT's timing cache after it.

    Args:
        trt: The module tensorrt, or one of the same interface.
        graph: The ONNX graph.
        profiles: By profile, the (min, opt, max) of each named dimension.
        timings: TensorRT's timing cache before; b"" for none.
        origin: The graph's file, for messages.

    Raises:
        IntegrityError: TensorRT does not take the graph.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    # TensorRT 11 only has strongly typed networks and ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))  # its errors are reported below, once
    if not parser.parse(graph, _NO_FOLDER):
        raise _refused(origin, parser.get_error(0).desc() if parser.num_errors else "it gives no reason")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            if -1 in tuple(tensor.shape):
                profile.set_shape(tensor.name, *min_opt_max_shapes(tensor, sizes))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(origin, "it builds no engine; TensorRT's own lines above say why")
    outputs = tuple(network.get_output(index).name for index in range(network.num_outputs))
    return StoredEngine(bytes(plan), outputs), bytes(config.get_timing_cache().serialize())


def min_opt_max_shapes(tensor: Any, sizes: Mapping[str, ShapeRange]) -> list[tuple[int, ...]]:
    """Return the min, opt and max shape of an input whose dimensions are numbers or names.

    A name is one of `sizes`, or one plus a number: `words + 16` is sixteen more than `words`.
    """

    def size(axis: int, bound: int) -> int:
        if tensor.shape[axis] != -1:
            return int(tensor.shape[axis])
        name, _, offset = tensor.get_dimension_name(axis).replace(" ", "").partition("+")
        return sizes[name][bound] + int(offset or 0)

    return [tuple(size(axis, bound) for axis in range(len(tensor.shape))) for bound in range(3)]


def compare(reference: Scorer, candidate: Scorer, bundle: Bundle) -> dict[str, float]:
    """Return the least cosine, by output, of all rows that two scorers compute of the same random images and texts."""
    manifest = bundle.manifest
    sample = draw_sample(manifest.image_size, bundle.read(TOKENIZER), manifest.max_words)
    images = sample.images[: len(sample.texts)]
    expected, actual = (_rows(scorer, images, sample.texts) for scorer in (reference, candidate))
    return {name: least_cosine(rows, actual[name]) for name, rows in expected.items()}


def _rows(scorer: Scorer, images: Any, texts: Sequence[str]) -> dict[str, Floats]:
    targets = scorer.encode_images(images)
    queries = scorer.compose(targets, texts)
    pairs = [scorer.score_pairs(query, targets) for query in queries]
    rows = {"vectors": targets.vectors, "queries": np.stack([query.vector for query in queries])}
    rows["scores"] = np.stack([pair.score for pair in pairs])
    if len(queries[0].words):
        rows["regions"] = targets.regions.reshape(-1, targets.regions.shape[-1])
        rows["words"] = np.concatenate([query.words for query in queries])
        rows["probes"] = np.concatenate([query.probes for query in queries])
    return rows


def _refused(origin: str, reason: str) -> IntegrityError:
    why = " ".join(reason.split())[:300]
    return IntegrityError(f"TensorRT does not take {origin} ({why}); export the bundle again with this nsfse")
