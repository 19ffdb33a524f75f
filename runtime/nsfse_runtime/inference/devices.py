"""Where graphs run: what was asked for → one of ONNX Runtime's providers, or TensorRT's engines."""

import contextlib
import ctypes
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nsfse_runtime.errors import NotFoundError, UsageError
from nsfse_runtime.extras import need
from nsfse_runtime.inference.onnx_graphs import search_graph

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

# What is float32 in a graph is computed in float32, not in TF32; memory grows by what is asked, not to the next power.
OPTIONS = {CUDA: {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}}
# Who takes the operators that a provider leaves; the CPU is always last.
NEXT = {TENSORRT: (CUDA,)}
# Where the tensors of a provider lie; of all others on the CPU.
MEMORY = {CUDA: "cuda", TENSORRT: "cuda"}
# Each provider's own file in ONNX Runtime: loading it alone tells what it lacks.
FILES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where graphs run: `provider` by ONNX Runtime's name, from the file `library` where it is a plug-in.

    With `engines` the graphs run as TensorRT engines instead. `note` is one line where this is not what was hoped for.
    """

    provider: str = CPU
    library: str = ""
    engines: bool = False
    note: str = ""

    @property
    def memory(self) -> str:
        """Return where this place's tensors lie, in ONNX Runtime's words: cpu or cuda."""
        return MEMORY.get(self.provider, "cpu")

    @property
    def device(self) -> str:
        """Return what computes here in one word: "cpu", "cuda", "tensorrt" ..."""
        return "tensorrt" if self.engines else self.provider.removesuffix("ExecutionProvider").lower()

    @property
    def on_cpu(self) -> bool:
        """Tell whether graphs run on the CPU, by ONNX Runtime's own provider."""
        return self.provider == CPU and not self.engines


ON_CPU = Place()


def choose(device: Device | None = None, provider: str | None = None) -> Place:
    """Return the place of a `device`, or of a `provider` by NAME or, a plug-in, by NAME=LIBRARY.

    `auto` is CUDA where it works, else the CPU with a note; None is auto without the note where ONNX Runtime was built
    without CUDA. Raises UsageError (what was named does not work here), NotFoundError (no such library) or
    MissingExtraError.
    """
    if provider is not None:
        return _named(device, provider)
    if device == "tensorrt":
        from nsfse_runtime.inference.tensorrt.engine import load_tensorrt

        load_tensorrt()
        return Place(engines=True)
    if device == "cpu" or (device is None and CUDA not in available()):
        return ON_CPU
    place = Place(CUDA)
    try:
        _try(place)
    except UsageError as error:
        if device == "cuda":
            raise
        return Place(note=f"{error}; running on the CPU")
    return place


def _named(device: Device | None, provider: str) -> Place:
    if device is not None:
        raise UsageError("--device and --provider both say where graphs run; give one of them")
    name, _, library = provider.partition("=")
    if library and not Path(library).is_file():
        raise NotFoundError(f"no provider library at {library}; give --provider NAME=FILE")
    place = Place(name, library)
    _try(place)
    return place


def _try(place: Place) -> None:
    """Start a small graph on `place`. Raises UsageError where that fails, whatever the provider throws."""
    try:
        start(search_graph(), place)
    except UsageError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise _stopped(place, str(error)) from error


def available() -> list[str]:
    """Return the providers that ONNX Runtime was built with. Raises MissingExtraError."""
    need("onnxruntime", "cpu")
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def start(model: bytes, place: Place, options: Any = None) -> Any:
    """Return an onnxruntime.InferenceSession of `model` on `place`.

    Raises UsageError where the provider is not there or does not start: ONNX Runtime alone would take the CPU and say
    nothing. What onnxruntime raises for a broken model passes through.
    """
    import onnxruntime

    options = options or onnxruntime.SessionOptions()
    if place.library:
        return _start_plugin(model, place, options)
    if place.provider not in available():
        how = 'pip uninstall onnxruntime, then pip install "nsfse[gpu]"' if place.provider == CUDA else "choose another"
        raise UsageError(f"ONNX Runtime has no {place.provider} here, only {', '.join(available())}; {how}")
    if place.provider == CPU:
        return _light(onnxruntime.InferenceSession(model, options, providers=[CPU], enable_fallback=0))
    _prepare()
    try:
        session = onnxruntime.InferenceSession(model, options, providers=_providers(place), enable_fallback=0)
    except RuntimeError as error:  # the GPU or a library is missing
        raise _stopped(place, str(error)) from error
    if place.provider not in session.get_providers():
        raise _stopped(place, "")
    return _light(session)


def _light(session: Any) -> Any:
    """Return `session` without the graph's bytes, kept by ONNX Runtime to start again elsewhere, as we never let it.

    They are as much memory as the weights.
    """
    if hasattr(session, "_model_bytes"):
        session._model_bytes = None
    return session


def _providers(place: Place) -> list[tuple[str, dict[str, str]]]:
    return [(name, OPTIONS.get(name, {})) for name in (place.provider, *NEXT.get(place.provider, ()), CPU)]


def _prepare() -> None:
    """Let ONNX Runtime find CUDA in pip's packages; its own reports, many lines on stderr and stdout, are not shown."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def _stopped(place: Place, reason: str) -> UsageError:
    """Return the one line that says why `place` does not start."""
    import onnxruntime

    file = Path(onnxruntime.__file__).parent / "capi" / FILES.get(place.provider, "")
    why = missing_library(file) or " ".join(reason.split())[:200] or "no GPU that it can use"
    return UsageError(f"{place.provider} does not start here ({why}); nsfse doctor tells what is missing")


def missing_library(file: Path) -> str:
    """Return which library the shared object `file` lacks, in the loader's words; "" where it loads or is none."""
    if not file.is_file():
        return ""
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        return str(error)
    return ""


def _start_plugin(model: bytes, place: Place, options: Any) -> Any:
    import onnxruntime

    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise UsageError("plug-in providers need ONNX Runtime 1.23 or newer; run: pip install -U onnxruntime")
    devices: Sequence[Any] = _devices(place)
    if not devices:
        try:
            onnxruntime.register_execution_provider_library(place.provider, place.library)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = str(error).splitlines()[0][:200]
            raise UsageError(f"{place.library} does not load as a provider ({reason}); see nsfse doctor") from error
        devices = _devices(place)
    if not devices:
        raise UsageError(f"{place.library} has no device called {place.provider} here; check the name and the hardware")
    options.add_provider_for_devices(devices, {})
    return _light(onnxruntime.InferenceSession(model, options))


def _devices(place: Place) -> list[Any]:
    import onnxruntime

    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == place.provider]
