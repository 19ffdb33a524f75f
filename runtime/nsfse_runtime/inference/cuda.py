"""The GPU's name, memory and one stream through cuda-bindings: what an engine needs, and no more."""

import weakref
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from nsfse_runtime.errors import NsfseError, UsageError
from nsfse_runtime.extras import need


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: its name and compute capability, such as 9.0."""

    name: str
    capability: str


class Memory(Protocol):
    """Buffers on a device by name, and one stream that copies and work are queued on."""

    stream: int

    def buffer(self, name: str, size: int) -> int:
        """Return the address of the buffer `name`, of `size` bytes or more; it may move when it grows."""

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Queue a copy of `array`, contiguous, to `address`."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy from `address` into `array`, contiguous."""

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""


def gpu() -> Gpu:
    """Return the first GPU. Raises MissingExtraError, or UsageError where there is none that works."""
    properties = _check(_runtime().cudaGetDeviceProperties(0))
    name = bytes(properties.name).split(b"\0")[0].decode("utf-8", "replace")
    return Gpu(name, f"{properties.major}.{properties.minor}")


def find_gpu() -> Gpu | None:
    """Return the first GPU; None where there is none that works."""
    try:
        return gpu()
    except NsfseError:
        return None


class CudaMemory:
    """The memory of the first GPU; all buffers are freed with the object."""

    def __init__(self) -> None:
        """Raises MissingExtraError, or UsageError where there is no GPU that works."""
        self._cuda = _runtime()
        _check(self._cuda.cudaSetDevice(0))
        self.stream = int(_check(self._cuda.cudaStreamCreate()))
        self._buffers: dict[str, tuple[int, int]] = {}
        weakref.finalize(self, _free, self._cuda, self._buffers, self.stream)

    def buffer(self, name: str, size: int) -> int:
        """See Memory."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity < size:
            if address:
                self.synchronize()
                _check(self._cuda.cudaFree(address))
                del self._buffers[name]
            address = int(_check(self._cuda.cudaMalloc(size)))
            self._buffers[name] = (address, size)
        return address

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See Memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _check(self._cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.stream))

    def download(self, array: NDArray[Any], address: int) -> None:
        """See Memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _check(self._cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self.stream))

    def synchronize(self) -> None:
        """See Memory."""
        _check(self._cuda.cudaStreamSynchronize(self.stream))


def _runtime() -> Any:
    need("cuda.bindings", "trt-rtx")
    from cuda.bindings import runtime

    return runtime


def _check(result: tuple[Any, ...]) -> Any:
    """Return what a CUDA call returned beside its error code. Raises UsageError where that is one."""
    error, *values = result
    if int(error):
        raise UsageError(f"no NVIDIA GPU works here (CUDA says {error.name}); nsfse doctor shows what is missing")
    return values[0] if values else None


def _free(cuda: Any, buffers: dict[str, tuple[int, int]], stream: int) -> None:
    for address, _ in buffers.values():
        cuda.cudaFree(address)
    cuda.cudaStreamDestroy(stream)
