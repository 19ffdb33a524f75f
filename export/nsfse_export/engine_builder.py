"""One ONNX graph → one engine, by TensorRT or TensorRT for RTX; the types in the graph decide the precision."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.tensorrt.cache import EngineKey, ShapeRange, StoredEngine
from nsfse_runtime.inference.tensorrt_library import TensorRT

_NO_FOLDER = f"{os.devnull}/none/graph.onnx"  # external weights are searched where no file can be


@dataclass(frozen=True)
class EngineState:
    """One engine: `state` is `built`, `kept` or `removed`; its size in `bytes`; `seconds` it took to build."""

    state: str
    bytes: int
    seconds: float


def timed_build(
    library: TensorRT, bundle: Bundle, graph: str, key: EngineKey, timings: bytes = b""
) -> tuple[StoredEngine, bytes, EngineState]:
    """Return the engine of a bundle's `graph` for `key`, the timing cache after it, and its size and seconds."""
    started, origin = time.perf_counter(), str(bundle.path / f"{graph}.onnx")
    data = bundle.read(f"{graph}.onnx")
    engine, after = build_engine(library, data, key.profiles, key.capability, timings, origin)
    state = EngineState("built", len(engine.plan), round(time.perf_counter() - started, 2))
    return engine, after, state


def build_engine(
    library: TensorRT,
    graph: bytes,
    profiles: Sequence[Mapping[str, ShapeRange]],
    capability: str,
    timings: bytes,
    origin: str,
) -> tuple[StoredEngine, bytes]:
    """Return the engine of an ONNX `graph` for `profiles`, and TensorRT's timing cache after it.

    Args:
        library: What builds it.
        graph: The ONNX graph.
        profiles: By profile, the (min, opt, max) of each named dimension.
        capability: Compute capability of the GPU that it is for. TensorRT itself builds for this machine's.
        timings: TensorRT's timing cache before; b"" for none. TensorRT for RTX has none.
        origin: The graph's file, for messages.

    Raises:
        IntegrityError: The library does not take the graph.
    """
    trt = library.module
    builder = trt.Builder(library.logger)
    # TensorRT 11 only has strongly typed networks and ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    library.last_error()  # forget those of an earlier graph
    if not parser.parse(graph, _NO_FOLDER):
        raise _refused(library, origin, parser.get_error(0).desc() if parser.num_errors else "it gives no reason")
    _let_attention_decompose(trt, network)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    if library.name == "rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    else:
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
        raise _refused(library, origin, library.last_error() or "it builds no engine and gives no reason")
    outputs = tuple(network.get_output(index).name for index in range(network.num_outputs))
    after = b"" if library.name == "rtx" else bytes(config.get_timing_cache().serialize())
    return StoredEngine(bytes(plan), outputs), after


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Let attention of a shape or type without a kernel of its own become products and a softmax, not a refusal."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # since TensorRT 10.14
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # the network hands out the base class
            layer.attention.decomposable = True


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


def _refused(library: TensorRT, origin: str, reason: str) -> IntegrityError:
    why = " ".join(reason.split())[:300]
    return IntegrityError(f"{library.title} does not take {origin} ({why}); export the bundle again with this nsfse")
