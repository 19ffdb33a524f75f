"""Execution devices: a device or provider by name → one of ONNX Runtime's providers, or TensorRT's engines."""

import contextlib
import ctypes
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nsfse_runtime.errors import NotFoundError, UsageError
from nsfse_runtime.extras import need
from nsfse_runtime.inference.onnx_graphs import search_graph

DeviceName = Literal["auto", "cpu", "cuda", "tensorrt"]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

# float32 is computed in float32, not in TF32; memory grows by what is needed, not to the next power
# of two.
PROVIDER_OPTIONS = {CUDA: {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}}
# The providers for operators that a provider lacks; the CPU is always last.
FALLBACK_PROVIDERS = {TENSORRT: (CUDA,)}
# The memory that a provider computes in; all others use that of the CPU.
PROVIDER_MEMORY = {CUDA: "cuda", TENSORRT: "cuda"}
# Each provider's own file in ONNX Runtime; loading it alone shows which library is missing.
PROVIDER_LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}


@dataclass(frozen=True, slots=True)
class ExecutionDevice:
    """Where graphs run.

    Attributes:
        provider: ONNX Runtime's name of an execution provider.
        library: The file of a provider that is a plug-in.
        tensorrt: Graphs run as TensorRT engines instead.
        note: One line where "auto" had to take the CPU.
    """

    provider: str = CPU
    library: str = ""
    tensorrt: bool = False
    note: str = ""

    @property
    def memory(self) -> str:
        """Return the memory that tensors are in, by ONNX Runtime's name: cpu or cuda."""
        return PROVIDER_MEMORY.get(self.provider, "cpu")

    @property
    def name(self) -> str:
        """Return the device in one word: "cpu", "cuda", "tensorrt" ..."""
        return "tensorrt" if self.tensorrt else self.provider.removesuffix("ExecutionProvider").lower()

    @property
    def on_cpu(self) -> bool:
        """Tell whether graphs run on the CPU, by ONNX Runtime's own provider."""
        return self.provider == CPU and not self.tensorrt


ON_CPU = ExecutionDevice()


def resolve_device(device: DeviceName | None = None, provider: str | None = None) -> ExecutionDevice:
    """Find out where graphs run, and try it.

    Args:
        device: "auto" is CUDA where it works, else the CPU with a note. None is the same, but
            without a note where ONNX Runtime was built without CUDA.
        provider: ONNX Runtime's provider by NAME or, for a plug-in, by NAME=LIBRARY, in place of
            `device`.

    Raises:
        UsageError: The device or provider does not work here.
        NotFoundError: There is no such library.
        MissingExtraError: ONNX Runtime or TensorRT is not installed.
    """
    if provider is not None:
        if device is not None:
            raise UsageError("--device and --provider both say where graphs run; give one of them")
        return _device_of(provider)
    if device == "tensorrt":
        from nsfse_runtime.inference.cuda import load_tensorrt

        load_tensorrt()
        return ExecutionDevice(tensorrt=True)
    if device == "cpu" or (device is None and CUDA not in available()):
        return ON_CPU
    cuda = ExecutionDevice(CUDA)
    try:
        _check_starts(cuda)
    except UsageError as error:
        if device == "cuda":
            raise
        return ExecutionDevice(note=f"{error}; running on the CPU")
    return cuda


def _device_of(provider: str) -> ExecutionDevice:
    name, _, library = provider.partition("=")
    if library and not Path(library).is_file():
        raise NotFoundError(f"no provider library at {library}; give --provider NAME=FILE")
    device = ExecutionDevice(name, library)
    _check_starts(device)
    return device


def _check_starts(device: ExecutionDevice) -> None:
    """Start a small graph on `device`. Raises UsageError where that fails, whatever the provider throws."""
    try:
        create_session(search_graph(), device)
    except UsageError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise _start_error(device, str(error)) from error


def available() -> list[str]:
    """Return the providers that ONNX Runtime was built with. Raises MissingExtraError."""
    need("onnxruntime", "cpu")
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def create_session(model: bytes, device: ExecutionDevice, options: Any = None) -> Any:
    """Return an onnxruntime.InferenceSession of `model` on `device`.

    ONNX Runtime alone would silently take the CPU where a provider does not start.

    Args:
        model: The ONNX graph.
        device: Where it runs.
        options: onnxruntime.SessionOptions; None for the defaults.

    Raises:
        UsageError: The provider is absent or does not start. What onnxruntime raises for a broken
            model passes through.
    """
    import onnxruntime

    options = options or onnxruntime.SessionOptions()
    if device.library:
        return _start_plugin(model, device, options)
    if device.provider not in available():
        how = (
            'pip uninstall onnxruntime, then pip install "nsfse[gpu]"' if device.provider == CUDA else "choose another"
        )
        raise UsageError(f"ONNX Runtime has no {device.provider} here, only {', '.join(available())}; {how}")
    if device.provider == CPU:
        return _release_model_bytes(onnxruntime.InferenceSession(model, options, providers=[CPU], enable_fallback=0))
    try:
        with _silenced():
            _load_cuda_libraries()
            session = onnxruntime.InferenceSession(model, options, providers=_providers(device), enable_fallback=0)
    except RuntimeError as error:  # the GPU or a library is missing
        raise _start_error(device, str(error)) from error
    if device.provider not in session.get_providers():
        raise _start_error(device, "")
    return _release_model_bytes(session)


def _release_model_bytes(session: Any) -> Any:
    """Return `session` without the graph's bytes, which take as much memory as the weights.

    ONNX Runtime holds them to start again on another provider, which `enable_fallback=0` forbids.
    The attribute is private: where it is absent, nothing happens.
    """
    if hasattr(session, "_model_bytes"):
        session._model_bytes = None
    return session


def _providers(device: ExecutionDevice) -> list[tuple[str, dict[str, str]]]:
    return [
        (name, PROVIDER_OPTIONS.get(name, {}))
        for name in (device.provider, *FALLBACK_PROVIDERS.get(device.provider, ()), CPU)
    ]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Hide ONNX Runtime's own reports of a provider that does not start; we raise one line in their place."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default: the setting is of the whole process


def _load_cuda_libraries() -> None:
    """Let ONNX Runtime find CUDA in pip's packages; its report on stdout is not shown."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def _start_error(device: ExecutionDevice, reason: str) -> UsageError:
    """Return the one line that says why `device` does not start."""
    import onnxruntime

    file = Path(onnxruntime.__file__).parent / "capi" / PROVIDER_LIBRARIES.get(device.provider, "")
    why = missing_library(file) or " ".join(reason.split())[:200] or "no GPU that it can use"
    return UsageError(f"{device.provider} does not start here ({why}); nsfse doctor shows what is missing")


def missing_library(file: Path) -> str:
    """Return which library the shared object `file` lacks, in the loader's words; "" where it loads or is none."""
    if not file.is_file():
        return ""
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        return str(error)
    return ""


def _start_plugin(model: bytes, device: ExecutionDevice, options: Any) -> Any:
    import onnxruntime

    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise UsageError("plug-in providers need ONNX Runtime 1.23 or newer; run: pip install -U onnxruntime")
    plugin_devices: Sequence[Any] = _plugin_devices(device)
    if not plugin_devices:
        try:
            onnxruntime.register_execution_provider_library(device.provider, device.library)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = str(error).splitlines()[0][:200]
            raise UsageError(f"{device.library} does not load as a provider ({reason}); see nsfse doctor") from error
        plugin_devices = _plugin_devices(device)
    if not plugin_devices:
        raise UsageError(
            f"{device.library} has no device called {device.provider} here; check the name and the hardware"
        )
    options.add_provider_for_devices(plugin_devices, {})
    return _release_model_bytes(onnxruntime.InferenceSession(model, options))


def _plugin_devices(device: ExecutionDevice) -> list[Any]:
    import onnxruntime

    return [candidate for candidate in onnxruntime.get_ep_devices() if candidate.ep_name == device.provider]
