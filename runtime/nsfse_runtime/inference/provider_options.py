"""Options of ONNX Runtime's TensorRT providers for the graphs of a bundle: their shapes, and a private cache.

Sources: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html and
https://nvidia.github.io/TensorRT-RTX-EP-ABI/_generated/provider-options.html.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from nsfse_runtime.errors import IntegrityError, OutputError, UsageError
from nsfse_runtime.extras import installed_version
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import TENSORRT, TENSORRT_RTX, TF32_VARIABLE, ExecutionDevice, reason_of
from nsfse_runtime.inference.onnx_reader import input_shapes
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.onnx_session import Session
from nsfse_runtime.inference.tensorrt.cache import EngineCache, ShapeRange, profiles_of


def _tensorrt(shapes: Mapping[str, str], cache: str) -> dict[str, str]:
    # Flags for fp16, bf16 and int8 stay off. Python takes "True" here, not "1".
    named = {f"trt_profile_{bound}_shapes": text for bound, text in shapes.items()}
    return {**named, "trt_engine_cache_enable": "True", "trt_engine_cache_path": cache}


def _tensorrt_rtx(shapes: Mapping[str, str], cache: str) -> dict[str, str]:
    named = {f"nv_profile_{bound}_shapes": text for bound, text in shapes.items()}
    return {**named, "nv_runtime_cache_path": cache}


OPTIONS: dict[str, Callable[[Mapping[str, str], str], dict[str, str]]] = {
    TENSORRT: _tensorrt,
    TENSORRT_RTX: _tensorrt_rtx,
}
"""By provider, the function from a graph's shapes (see shape_texts) and a folder for its cache to options."""


def shape_texts(
    inputs: Mapping[str, Sequence[int | str]], profiles: Sequence[Mapping[str, ShapeRange]]
) -> dict[str, str]:
    """Return the shapes of inputs as the providers write them, `pixels:1x224x224x3,...`, by min, opt and max.

    They are one profile over all of `profiles`: a run need not choose.

    Args:
        inputs: The shape of each input. A name is one of a profile, or one plus a number:
            `words + 7` is seven more than `words`. Inputs whose shape does not vary are left out.
        profiles: The (min, opt, max) of each name.
    """
    varying = {name: shape for name, shape in inputs.items() if any(isinstance(size, str) for size in shape)}

    def size(dimension: int | str, bound: int) -> int:
        if isinstance(dimension, int):
            return dimension
        name, _, more = dimension.replace(" ", "").partition("+")
        sizes = [profile[name][bound] for profile in profiles]
        return (max(sizes) if bound else min(sizes)) + int(more or 0)

    def text(bound: int) -> str:
        return ",".join(f"{name}:{'x'.join(str(size(one, bound)) for one in shape)}" for name, shape in varying.items())

    return {"min": text(0), "opt": text(1), "max": text(2)}


def private_folder(key: Mapping[str, str]) -> Path:
    """Return the folder for what a provider builds of all in `key`, within that of EngineCache. Raises OutputError.

    The providers name a file by the names in a graph, not by its weights (onnxruntime issue 6455):
    two models of one architecture in one folder would take each other's engines.
    """
    digest = hashlib.sha256(msgspec.json.encode(key, order="deterministic")).hexdigest()[:32]
    folder = EngineCache.open().folder / digest
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot keep engines in {folder}: {error.strerror}; set XDG_CACHE_HOME") from error
    return folder


class ProviderSession(Session):
    """A graph on a provider that takes the shapes of a profile alone."""

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the graph. Raises UsageError where the provider does not, as for a shape out of the profile."""
        try:
            return super().__call__(**inputs)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise UsageError(
                f"{self.device.provider} does not run {shapes} ({reason_of(error)}); take fewer, or --device cuda"
            ) from error


class ProviderScorer(OnnxScorer):
    """The Scorer of a bundle on a provider of OPTIONS, each graph with options of its own."""

    def __init__(self, bundle: Bundle, device: ExecutionDevice) -> None:
        """Raises UsageError for a bundle in int8, whose matrices TensorRT does not take."""
        if bundle.manifest.precision == "int8":
            raise UsageError(
                f"{bundle.path}: int8 is for CPUs, and TensorRT takes none of its matrices; use fp32, fp16 or bf16"
            )
        super().__init__(bundle, device)

    def _open(self, name: str, data: bytes, origin: str) -> Session:
        device = replace(self.device, options={**self._options(name, data), **self.device.options})
        try:
            return ProviderSession(data, device, self._threads, origin)
        except IntegrityError as error:  # the bundle is whole: it has been compared with its manifest
            reason = reason_of(error.__cause__ or error)
            raise UsageError(
                f"{device.provider} does not take {origin} ({reason}); use --device cuda or cpu"
            ) from error

    def _options(self, name: str, data: bytes) -> dict[str, str]:
        import onnxruntime

        manifest, provider = self.bundle.manifest, self.device.provider
        shapes = shape_texts(input_shapes(data), profiles_of(name, manifest))
        key = {
            **{"provider": provider, "graph": manifest.files[f"{name}.onnx"].sha256, "machine": platform.node()},
            **{"onnxruntime": onnxruntime.__version__, "tensorrt": installed_version("tensorrt") or ""},
            **{TF32_VARIABLE: os.environ.get(TF32_VARIABLE, ""), **shapes, **self.device.options},
        }
        return OPTIONS[provider](shapes, str(private_folder(key)))
