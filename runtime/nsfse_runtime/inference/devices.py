"""Execution devices: a device or provider by name → one of ONNX Runtime's providers, or TensorRT's engines."""

import contextlib
import ctypes
import importlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nsfse_runtime.errors import NotFoundError, UsageError
from nsfse_runtime.extras import installed, need
from nsfse_runtime.inference.onnx_graphs import product_of_two

DeviceName = Literal["auto", "cpu", "cuda", "tensorrt"]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"
TENSORRT_RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"

# float32 is computed in float32, not in TF32; memory grows by what is needed, not to the next power
# of two.
PROVIDER_OPTIONS = {CUDA: {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}}
# These have no such option, but a variable of the environment (onnxruntime issue 26029).
WITHOUT_TF32_OPTION = (TENSORRT, TENSORRT_RTX)
# The providers for operators that a provider lacks; the CPU is always last.
FALLBACK_PROVIDERS = {TENSORRT: (CUDA,)}
# The memory that a provider takes tensors in; all others take those of the CPU. A gallery there is
# searched with its own size, for which TensorRT would build an engine each time it changes.
PROVIDER_MEMORY = {CUDA: "cuda"}
# The package of pip whose import loads the libraries that a provider is linked with.
PROVIDER_PACKAGES = {TENSORRT: "tensorrt"}
_GPU_INSTALL = 'pip uninstall onnxruntime, then pip install "nsfse[gpu]"'
SEE_DOCTOR = "; nsfse doctor shows what is missing"
# How to get a provider that ONNX Runtime was built without.
PROVIDER_INSTALL = {
    CUDA: _GPU_INSTALL,
    TENSORRT: _GPU_INSTALL,
    TENSORRT_RTX: (
        f"pip install onnxruntime-ep-nv-tensorrt-rtx, then --provider {TENSORRT_RTX}={TENSORRT_RTX_PACKAGE}"
    ),
}
# Each provider's own file in ONNX Runtime; loading it alone shows which library is missing.
PROVIDER_LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}


@dataclass(frozen=True, slots=True)
class ExecutionDevice:
    """Where graphs run.

    Attributes:
        provider: ONNX Runtime's name of an execution provider.
        library: The file of a provider that is a plug-in.
        options: The provider's own options, as its documentation names them; they win over ours.
        tensorrt: Graphs run as TensorRT engines instead.
        note: One line where "auto" had to take the CPU.
    """

    provider: str = CPU
    library: str = ""
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
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


def resolve_device(
    device: DeviceName | None = None, provider: str | None = None, options: Mapping[str, str] | None = None
) -> ExecutionDevice:
    """Find out where graphs run, and try it.

    Args:
        device: "auto" is CUDA where it works, else the CPU with a note. None is the same, but
            without a note where ONNX Runtime was built without CUDA.
        provider: ONNX Runtime's provider by NAME, in place of `device`. A plug-in is NAME=LIBRARY,
            its file, or NAME=PACKAGE, the Python package that brings it.
        options: Options of that provider, as its documentation names them.

    Raises:
        UsageError: The device or provider does not work here.
        NotFoundError: There is no such library or package.
        MissingExtraError: ONNX Runtime or TensorRT is not installed.
    """
    if provider is not None:
        if device is not None:
            raise UsageError("--device and --provider both say where graphs run; give one of them")
        return _device_of(provider, options or {})
    if options:
        raise UsageError(f"--provider-option {next(iter(options))} goes with --provider NAME; give that as well")
    if device == "tensorrt":
        from nsfse_runtime.inference.tensorrt_library import available_libraries

        available_libraries()
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


def _device_of(provider: str, options: Mapping[str, str]) -> ExecutionDevice:
    name, _, library = provider.partition("=")
    if name in WITHOUT_TF32_OPTION:  # read when NVIDIA's libraries start
        os.environ.setdefault(TF32_VARIABLE, "0")
    if library and not Path(library).is_file():
        library = _library_in(library)
    device = ExecutionDevice(name, library, options)
    _check_starts(device)
    return device


def _library_in(package: str) -> str:
    """Return the plug-in's file in a Python package, by the function that such packages have.

    Importing the package makes the libraries beside that file known to the loader.

    Source: https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/packaging.html.
    """
    if not package.isidentifier() or not installed(package):
        raise NotFoundError(f"no provider library or package {package}; give --provider NAME=FILE or NAME=PACKAGE")
    try:
        return str(importlib.import_module(package).get_library_path())
    except Exception as error:  # a package may fail in any way
        why = reason_of(error)
        raise UsageError(f"the package {package} gives no provider library ({why}); install it again") from error


def _check_starts(device: ExecutionDevice) -> None:
    """Start a small graph on `device`. Raises UsageError where that fails, whatever the provider throws."""
    try:
        create_session(product_of_two(), device)
    except UsageError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise _start_error(device, reason_of(error)) from error


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
        how = PROVIDER_INSTALL.get(device.provider, "choose another")
        raise UsageError(f"ONNX Runtime has no {device.provider} here, only {', '.join(available())}; {how}")
    if device.provider == CPU:
        return _release_model_bytes(onnxruntime.InferenceSession(model, options, providers=[CPU], enable_fallback=0))
    try:
        with _silenced():
            _load_libraries(device.provider)
            session = onnxruntime.InferenceSession(model, options, providers=_providers(device), enable_fallback=0)
    except RuntimeError as error:  # the GPU or a library is missing
        raise _start_error(device, reason_of(error)) from error
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
    others = (*FALLBACK_PROVIDERS.get(device.provider, ()), CPU)
    own = {**PROVIDER_OPTIONS.get(device.provider, {}), **device.options}
    return [(device.provider, own), *((name, PROVIDER_OPTIONS.get(name, {})) for name in others)]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Hide ONNX Runtime's own reports of a provider that does not start; we raise one line in their place."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default: the setting is of the whole process


def _load_libraries(provider: str) -> None:
    """Let ONNX Runtime find CUDA, and what else `provider` is linked with, in pip's packages."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # its report
            onnxruntime.preload_dlls()
    package = PROVIDER_PACKAGES.get(provider, "")
    if package and installed(package):
        with contextlib.suppress(ImportError, OSError):  # what is missing, the provider reports
            importlib.import_module(package)


def reason_of(error: BaseException) -> str:
    """Return the reason in ONNX Runtime's message, without places in its source and the file it names twice."""
    text = " ".join(str(error).split()).rpartition(" with error: ")[2]
    return re.sub(r"^/\S+:\d+ .*?\) ", "", text)[:200]


def _start_error(device: ExecutionDevice, reason: str) -> UsageError:
    """Return the one line that says why `device` does not start."""
    import onnxruntime

    file = Path(onnxruntime.__file__).parent / "capi" / PROVIDER_LIBRARIES.get(device.provider, "")
    why = missing_library(file) or reason or "no GPU that it can use"
    return UsageError(f"{device.provider} does not start here ({why}){SEE_DOCTOR}")


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
    name, plugin_devices = Path(device.library).name, _plugin_devices(device)
    if not plugin_devices:
        try:
            onnxruntime.register_execution_provider_library(device.provider, device.library)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            why = reason_of(error)
            raise UsageError(f"{name} does not load as a provider ({why}){SEE_DOCTOR}") from error
        plugin_devices = _plugin_devices(device)
    if not plugin_devices:
        raise UsageError(f"{name} has no device called {device.provider} here; check the name and the hardware")
    # One, as a plug-in may take no more: TensorRT for RTX refuses two GPUs.
    options.add_provider_for_devices(plugin_devices[:1], dict(device.options))
    return _release_model_bytes(onnxruntime.InferenceSession(model, options))


def _plugin_devices(device: ExecutionDevice) -> list[Any]:
    import onnxruntime

    return [candidate for candidate in onnxruntime.get_ep_devices() if candidate.ep_name == device.provider]
