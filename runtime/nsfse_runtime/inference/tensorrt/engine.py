"""TensorRT engines as callables, and a bundle's four as a Scorer, by either library and cuda-bindings; no torch."""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import IntegrityError, NotFoundError, UsageError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import CudaMemory, Memory, gpu
from nsfse_runtime.inference.devices import ExecutionDevice
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.tensorrt.cache import EngineCache, EngineKey, engine_graphs, engine_key
from nsfse_runtime.inference.tensorrt_library import TensorRT, available_libraries


class Context(Protocol):
    """What is used of tensorrt.IExecutionContext."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Take the shapes of one profile."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set an input's shape; False where the profile does not hold it."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return a tensor's shape; an output's is known when those of all inputs are."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Set the address of a tensor on the device."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue the engine's work."""


class Engine(Protocol):
    """What is used of tensorrt.ICudaEngine."""

    num_io_tensors: int
    num_optimization_profiles: int

    def create_execution_context(self) -> Context | None:
        """Return a context with memory of its own; None where there is too little."""

    def get_tensor_name(self, index: int) -> str:
        """Return the name of one input or output."""

    def get_tensor_dtype(self, name: str) -> Any:
        """Return a tensor's TensorRT type."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return a tensor's shape, -1 where it varies."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        """Return an input's (min, opt, max) shapes in a profile."""


class EngineSession:
    """One engine, ready to run: `session(pixels=...)` → its outputs in order, as onnx_session.Session does."""

    def __init__(
        self, engine: Engine, memory: Memory, outputs: Sequence[str], nptype: Callable[[Any], Any], origin: str
    ) -> None:
        """Make a context for each profile; `nptype` turns a TensorRT type into numpy's. Raises UsageError."""
        self._engine, self._memory, self._origin, self._running = engine, memory, origin, Lock()
        self.outputs = tuple(outputs)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._types = {name: np.dtype(nptype(engine.get_tensor_dtype(name))) for name in names}
        self._inputs = [name for name in names if name not in self.outputs]
        self._contexts = [self._context(profile) for profile in range(engine.num_optimization_profiles)]

    def _context(self, profile: int) -> Context:
        context = self._engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(profile, self._memory.stream):
            raise UsageError(f"the engine of {self._origin} does not fit the GPU's memory; use --device cuda")
        self._memory.synchronize()
        return context

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the engine on its inputs by name. Raises UsageError for shapes that no profile holds."""
        # A graph that leaves an input unread may have become an engine without it.
        arrays = {name: np.ascontiguousarray(inputs[name], self._types[name]) for name in self._inputs}
        with self._running:
            context = self._contexts[self._profile({name: array.shape for name, array in arrays.items()})]
            for name, array in arrays.items():
                context.set_input_shape(name, array.shape)
                self._memory.upload(self._bind(context, name, array.nbytes), array)
            outputs = {
                name: np.empty(tuple(context.get_tensor_shape(name)), self._types[name]) for name in self.outputs
            }
            addresses = {name: self._bind(context, name, array.nbytes) for name, array in outputs.items()}
            if not context.execute_async_v3(self._memory.stream):
                raise IntegrityError(f"the engine of {self._origin} failed; build it again with: nsfse export --trt")
            for name, array in outputs.items():
                self._memory.download(array, addresses[name])
            self._memory.synchronize()
        return tuple(outputs[name] for name in self.outputs)

    def _bind(self, context: Context, name: str, size: int) -> int:
        address = self._memory.buffer(name, max(size, 1))
        context.set_tensor_address(name, address)
        return address

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the first profile that holds `shapes`."""
        for profile in range(self._engine.num_optimization_profiles):
            if all(self._holds(profile, name, shape) for name, shape in shapes.items()):
                return profile
        name, shape = next(iter(shapes.items()))
        raise UsageError(f"the engine of {self._origin} is not built for {name} {list(shape)}; use a smaller batch")

    def _holds(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
        if -1 not in tuple(self._engine.get_tensor_shape(name)):
            return True
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        sizes = zip(smallest, shape, largest, strict=True)
        return len(shape) == len(smallest) and all(low <= size <= high for low, size, high in sizes)


class EngineScorer(OnnxScorer):
    """The Scorer of a bundle on the engines of this machine's cache, by either of the two libraries."""

    def __init__(self, bundle: Bundle, library: TensorRT | None = None) -> None:
        """Take `library`, or the installed one that has an engine of every graph.

        Raises MissingExtraError, UsageError (no GPU), VersionError (another interface) or OutputError.
        """
        super().__init__(bundle, ExecutionDevice(tensorrt=True))
        self._cache = EngineCache.open()
        libraries = [library] if library else available_libraries()
        self._gpu = gpu()
        self._library = next((one for one in libraries if self._complete(one)), libraries[0])
        self._runtime = self._library.module.Runtime(self._library.logger)

    def _complete(self, library: TensorRT) -> bool:
        keys = (self._key(graph, library) for graph in engine_graphs(self.bundle.manifest))
        return all(self._cache.has(key) for key in keys)

    def _key(self, graph: str, library: TensorRT) -> EngineKey:
        return engine_key(graph, self.bundle.manifest, library, self._gpu)

    def _open(self, name: str, data: bytes, origin: str) -> Callable[..., tuple[NDArray[Any], ...]]:
        stored = self._cache.load(self._key(name, self._library))
        if stored is None:
            raise NotFoundError(
                f"no engine of {origin} for {self._gpu.name} ({self._gpu.capability}) and {self._library.title}; "
                f"build it with: nsfse export {self.bundle.path} --trt, or add a pack: nsfse engines add PACK"
            )
        engine = self._runtime.deserialize_cuda_engine(stored.plan)
        if engine is None:
            reason = self._library.last_error()[:200] or "it gives no reason"
            raise IntegrityError(
                f"{self._library.title} does not open the engine of {origin} ({reason}); "
                f"build it again: nsfse export {self.bundle.path} --trt"
            )
        return EngineSession(engine, CudaMemory(), stored.outputs, self._library.module.nptype, origin)
