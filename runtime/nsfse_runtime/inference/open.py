"""From a bundle and a device to a scorer: the only place that makes one."""

import os

from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.devices import DeviceName, ExecutionDevice, resolve_device
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.provider_options import OPTIONS, ProviderScorer


def open_model(path: str | os.PathLike[str], device: DeviceName | None = "auto") -> OnnxScorer:
    """Open the model of a bundle.

    Args:
        path: The bundle's folder.
        device: "cpu", "cuda", "tensorrt", or "auto": CUDA where it works, else the CPU, and then
            the `note` of the model's `device` says why.

    Returns:
        The model, for `Gallery.open` and `Retriever`. A graph is opened when it is first used.

    Raises:
        NotFoundError: There is no bundle at `path`.
        VersionError: The bundle has a newer format.
        IntegrityError: A file of the bundle is damaged.
        UsageError: The device does not work here, or does not compute in the bundle's number type.
        MissingExtraError: ONNX Runtime or TensorRT is not installed.
    """
    return load_scorer(Bundle.open(path), resolve_device(device))


def load_scorer(bundle: Bundle, device: ExecutionDevice) -> OnnxScorer:
    """Return the scorer of `bundle` on `device`. Raises as their classes do."""
    if device.tensorrt:
        from nsfse_runtime.inference.tensorrt.engine import EngineScorer

        return EngineScorer(bundle)
    if device.provider in OPTIONS:
        return ProviderScorer(bundle, device)
    return OnnxScorer(bundle, device)
