"""TensorRT and TensorRT for RTX behind one door: which is installed, its version, and the GPUs it builds for."""

from collections import deque
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, Literal

from nsfse_runtime.errors import MissingExtraError, NsfseError, UsageError, VersionError
from nsfse_runtime.extras import installed, need

LibraryName = Literal["tensorrt", "rtx"]


@dataclass(frozen=True)
class Kind:
    """One of NVIDIA's two libraries: its Python `module`, `title`, our `extra`, and the versions of this interface."""

    module: str
    title: str
    extra: str
    least: tuple[int, int]
    below: tuple[int, ...]
    hint: str


KINDS: dict[LibraryName, Kind] = {
    "tensorrt": Kind(
        "tensorrt",
        "TensorRT",
        "trt",
        (10, 13),
        (12,),
        "if pip does not find it, see NVIDIA's installation guide for TensorRT",
    ),
    "rtx": Kind("tensorrt_rtx", "TensorRT for RTX", "trt-rtx", (1, 7), (2,), "it is for PCs and workstations"),
}


class TensorRT:
    """A library that is installed. Made by `load_library`.

    Attributes:
        name: "tensorrt" or "rtx".
        module: Its Python module; both have the same interface.
    """

    def __init__(self, name: LibraryName, module: Any) -> None:
        self.name, self.module = name, module

    @property
    def version(self) -> str:
        """Return its version, such as 1.7.1.116."""
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """Return its name and version, for people."""
        return f"{KINDS[self.name].title} {self.version}"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Return the compute capabilities that it builds for without such a GPU; none for TensorRT itself."""
        if self.name == "tensorrt":
            return ()
        names = (name.removeprefix("SM") for name in self.module.ComputeCapability.__members__ if name.startswith("SM"))
        return tuple(f"{digits[:-1]}.{digits[-1]}" for digits in sorted(names, key=int))

    @cached_property
    def logger(self) -> Any:
        """Return its logger, which keeps the last errors instead of printing them; a process has one."""
        return _logger(self.module)

    def last_error(self) -> str:
        """Return the first of the errors it reported since the last call; "" for none."""
        lines = list(self.logger.errors)
        self.logger.errors.clear()
        return lines[0] if lines else ""

    def check_capability(self, capability: str) -> None:
        """Raise UsageError where it builds nothing for `capability` on a machine without that GPU."""
        if self.name == "tensorrt":
            raise UsageError(
                f"{self.title} builds for the GPU of the machine it runs on, not for {capability}; leave "
                "--compute-capability out there, or build with TensorRT for RTX: --trt=rtx"
            )
        if capability not in self.capabilities:
            raise UsageError(
                f"{self.title} builds for compute capability {', '.join(self.capabilities)}, not for {capability!r}; "
                "a data-centre GPU takes TensorRT's engines, built on its own machine: --trt=tensorrt"
            )


def load_library(name: LibraryName | None = None) -> TensorRT:
    """Return the library `name`, or the first one available (see `available_libraries`)."""
    return _load(name) if name else available_libraries()[0]


def available_libraries() -> list[TensorRT]:
    """Return the libraries that are installed and load, TensorRT before TensorRT for RTX.

    Raises:
        MissingExtraError: Neither is installed, or its shared objects are missing.
        VersionError: The only one has a version of another interface.
    """
    loaded: list[TensorRT] = []
    failures: list[NsfseError] = []
    for name in installed_libraries():
        try:
            loaded.append(_load(name))
        except (MissingExtraError, VersionError) as error:
            failures.append(error)
    if not loaded:
        raise (
            failures[0]
            if failures
            else MissingExtraError(
                'neither TensorRT nor TensorRT for RTX is installed; run: pip install "nsfse[trt-rtx]" for a PC or '
                'workstation, "nsfse[trt]" for a data-centre GPU'
            )
        )
    return loaded


def installed_libraries() -> list[LibraryName]:
    """Return which of the two are installed, without loading them."""
    return [name for name, kind in KINDS.items() if installed(kind.module)]


def _load(name: LibraryName) -> TensorRT:
    kind = KINDS[name]
    need(kind.module, kind.extra, kind.hint)
    try:
        module = import_module(kind.module)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MissingExtraError(
            f'{kind.module} does not load ({reason}); run: pip install --force-reinstall "nsfse[{kind.extra}]"; '
            f"{kind.hint}"
        ) from error
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    if not kind.least <= version < kind.below:
        least, below = ".".join(map(str, kind.least)), ".".join(map(str, kind.below))
        raise VersionError(
            f"{kind.title} {module.__version__} is not from {least} up to {below}; "
            f'run: pip install -U "nsfse[{kind.extra}]"; {kind.hint}'
        )
    return TensorRT(name, module)


@cache
def _logger(module: Any) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        """Keeps errors; TensorRT takes one logger for all that a process does with it."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=16)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(module.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))

    return Logger()
