"""A bundle's ONNX graphs → TensorRT engines in this machine's cache; precision is what the graphs' types say.

Needs TensorRT, a GPU and ONNX Runtime, no torch: engines are built where they serve.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsfse_export.verify import draw_sample
from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import ON_CPU, resolve_device
from nsfse_runtime.inference.manifest import MANIFEST, TOKENIZER, Precision
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.tensorrt.cache import EngineCache, EngineKey, ShapeRange, StoredEngine, engine_key
from nsfse_runtime.inference.tensorrt.cuda import gpu, load_tensorrt
from nsfse_runtime.inference.tensorrt.engine import EngineScorer
from nsfse_runtime.types import Floats, Scorer

LEAST_COSINE = 0.999
"""Of any row that engines and ONNX Runtime make of the same images and texts."""
_NO_FOLDER = f"{os.devnull}/none/graph.onnx"  # weights outside the graph are looked for where none can be


@dataclass(frozen=True)
class EnginesReport:
    """What was done: by graph, `built` or `kept`; `least_cosine` is how far the engines are from ONNX Runtime."""

    bundle: Path
    folder: Path
    gpu: str
    tensorrt: str
    engines: dict[str, str]
    least_cosine: dict[str, float]


def bundle_for_engines(path: Path, out: Path | None, *, precision: Precision = "fp32", **options: Any) -> Path:
    """Return the bundle at `path`, or the bundle `out` that the run at `path` is exported to first.

    `precision` and `options` are those of export_bundle. Whether engines can be built here is asked before anything is
    written. Raises as build_engines and export_bundle, and UsageError where `out` is missing, or given for a bundle.
    """
    load_tensorrt()
    gpu()
    if (path / MANIFEST).exists():
        if out is not None:
            raise UsageError(f"{path} is a bundle already, and engines lie in a cache of their own; leave -o out")
        if precision != "fp32" or options.get("verify_on") or options.get("unverified"):
            raise UsageError(f"{path} is a bundle already, whose precision its engines take; export its run in another")
        return path
    if out is None:
        raise UsageError(f"{path} is exported to a bundle first; name its folder with -o BUNDLE")
    _refuse_int8(out, precision)
    from nsfse_export.export import export_bundle

    return export_bundle(path, out, precision=precision, **options).path


def build_engines(path: Path) -> EnginesReport:
    """Build the engines of the bundle at `path` that are not there, or not as they were built, and compare them.

    Raises MissingExtraError (TensorRT is not here), VersionError (another TensorRT), UsageError (no GPU, or a precision
    for CPUs), OutputError, or IntegrityError: a graph that TensorRT does not take, or engines that do not agree, which
    are then removed.
    """
    trt, device = load_tensorrt(), gpu()
    bundle, cache = Bundle.open(path), EngineCache.open()
    manifest = bundle.manifest
    _refuse_int8(path, manifest.precision)
    reference = OnnxScorer(bundle, resolve_device("cuda") if manifest.precision == "bf16" else ON_CPU)
    files = [name for name in manifest.required_files if name != TOKENIZER]
    keys = {
        file.removesuffix(".onnx"): engine_key(
            file.removesuffix(".onnx"), manifest.files[file].sha256, manifest, trt.__version__, device
        )
        for file in files
    }
    done = {graph: _engine(trt, bundle, cache, graph, key) for graph, key in keys.items()}
    cosines = agreement(reference, EngineScorer(bundle), bundle)
    if not min(cosines.values()) >= LEAST_COSINE:  # so that a NaN is refused, too
        for key in keys.values():
            cache.remove(key)
        told = ", ".join(f"{name} {value:.6f}" for name, value in cosines.items())
        raise IntegrityError(
            f"the engines of {path} do not agree with ONNX Runtime (least cosines: {told}); they were removed: "
            "try another TensorRT, or a bundle of higher precision"
        )
    return EnginesReport(path, cache.folder, f"{device.name} ({device.capability})", trt.__version__, done, cosines)


def _refuse_int8(path: Path, precision: Precision) -> None:
    if precision == "int8":
        raise UsageError(f"{path}: int8 is for CPUs, and TensorRT takes none of its matrices; use fp32, fp16 or bf16")


def _engine(trt: Any, bundle: Bundle, cache: EngineCache, graph: str, key: EngineKey) -> str:
    try:
        if cache.load(key) is not None:
            return "kept"
    except IntegrityError:  # not as it was built: built again in its place
        cache.remove(key)
    origin = str(bundle.path / f"{graph}.onnx")
    plan, timings = build_engine(trt, bundle.read(f"{graph}.onnx"), key.profiles, cache.timings(key), origin)
    cache.store(key, plan)
    cache.store_timings(key, timings)
    return "built"


def build_engine(
    trt: Any, graph: bytes, profiles: Sequence[Mapping[str, ShapeRange]], timings: bytes, origin: str
) -> tuple[StoredEngine, bytes]:
    """Return the engine of an ONNX `graph` for `profiles`, and what TensorRT now knows of its kernels' times.

    `trt` is the module tensorrt, or another of its interface. Raises IntegrityError for a graph that it does not take.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    # Version 11 knows strongly typed networks alone and ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))  # its errors are told below, once
    if not parser.parse(graph, _NO_FOLDER):
        raise _refused(origin, parser.get_error(0).desc() if parser.num_errors else "it gives no reason")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
    inputs = [network.get_input(at) for at in range(network.num_inputs)]
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            if -1 in tuple(tensor.shape):
                profile.set_shape(tensor.name, *shapes(tensor, sizes))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(origin, "it builds no engine; TensorRT's own lines above say why")
    outputs = tuple(network.get_output(at).name for at in range(network.num_outputs))
    return StoredEngine(bytes(plan), outputs), bytes(config.get_timing_cache().serialize())


def shapes(tensor: Any, sizes: Mapping[str, ShapeRange]) -> list[tuple[int, ...]]:
    """Return the least, usual and greatest shape of an input whose dimensions are numbers or names.

    A name is one of `sizes`, or such a one and a number: `words + 16` is sixteen more than `words`.
    """

    def size(at: int, which: int) -> int:
        if tensor.shape[at] != -1:
            return int(tensor.shape[at])
        name, _, more = tensor.get_dimension_name(at).replace(" ", "").partition("+")
        return sizes[name][which] + int(more or 0)

    return [tuple(size(at, which) for at in range(len(tensor.shape))) for which in range(3)]


def agreement(ours: Scorer, theirs: Scorer, bundle: Bundle) -> dict[str, float]:
    """Return the least cosine, by name, of all rows that two scorers of a bundle make of drawn images and texts."""
    manifest = bundle.manifest
    sample = draw_sample(manifest.image_size, bundle.read(TOKENIZER), manifest.max_words)
    found = [_rows(scorer, sample.images[: len(sample.texts)], sample.texts) for scorer in (ours, theirs)]
    return {name: _least_cosine(rows, found[1][name]) for name, rows in found[0].items()}


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


def _least_cosine(a: Floats, b: Floats) -> float:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / np.maximum(norms, 1e-12)).min())


def _refused(origin: str, reason: str) -> IntegrityError:
    why = " ".join(reason.split())[:300]
    return IntegrityError(f"TensorRT does not take {origin} ({why}); export the bundle again with this nsfse")
