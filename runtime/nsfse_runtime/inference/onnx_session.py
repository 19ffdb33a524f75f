"""An ONNX graph on one device as a callable."""

import os
from collections.abc import Collection, Mapping
from threading import Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import IntegrityError, UsageError
from nsfse_runtime.extras import need
from nsfse_runtime.hardware import cpu_threads
from nsfse_runtime.inference.devices import ON_CPU, ExecutionDevice, create_session

# Given a graph's bytes, ONNX Runtime would read weights from files of the current folder: no folder
# is this.
_NO_FOLDER = f"{os.devnull}/none"
# A graph made to run for ever is stopped. A first batch took over 120 s on two cores under a load of 28.
FIRST_RUN_SECONDS = 600.0


class Session:
    """One ONNX graph, held whole in its bytes, ready to run: `session(pixels=...)` → its outputs in order."""

    def __init__(
        self, model: bytes, device: ExecutionDevice = ON_CPU, threads: int | None = None, origin: str = "the graph"
    ) -> None:
        """Open `model` on `device`.

        `threads` caps the CPU threads of one run (see cpu_threads). Raises MissingExtraError,
        UsageError (a provider that does not work here) or IntegrityError (not a whole graph).
        """
        need("onnxruntime", "cpu")
        try:
            self._session = create_session(model, device, session_options(threads))
        except UsageError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = str(error).splitlines()[0][:200]
            raise IntegrityError(f"{origin} is not a whole ONNX graph ({reason}); export the bundle again") from error
        self.device = device
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self._has_run = False

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the graph on its inputs by name; return its outputs in the order of `outputs`.

        The first run is stopped after FIRST_RUN_SECONDS, and raises what ONNX Runtime then raises.
        """
        if self._has_run:
            return tuple(self._session.run(None, inputs))
        import onnxruntime

        options = onnxruntime.RunOptions()
        timer = Timer(FIRST_RUN_SECONDS, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            outputs = tuple(self._session.run(None, inputs, options))
        finally:
            timer.cancel()
        self._has_run = True
        return outputs

    def run_with_io_binding(self, inputs: Mapping[str, Any], on_device: Collection[str] = ()) -> dict[str, Any]:
        """Run on arrays, and on tensors that are on the device already (OrtValue).

        Returns:
            The outputs by name: those of `on_device` stay there as OrtValues, the others are
            arrays.
        """
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, self.device.memory if name in on_device else "cpu")
        self._session.run_with_iobinding(binding)
        outputs = zip(self.outputs, binding.get_outputs(), strict=True)
        return {name: value if name in on_device else value.numpy() for name, value in outputs}


def to_device(array: NDArray[Any], device: ExecutionDevice) -> Any:
    """Copy `array` to the memory of `device` (an OrtValue). Raises UsageError where it does not fit."""
    import onnxruntime

    try:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device.memory, 0)
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise UsageError(
            f"{array.nbytes / 2**30:.1f} GiB of the gallery do not fit the GPU ({str(error).splitlines()[0][:120]}); "
            "use --device cpu, or Retriever(resident=False)"
        ) from error


def session_options(threads: int | None) -> Any:
    """Return the options of every session; `threads` caps its CPU threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Sizes vary from call to call (batch, words): an arena would keep the largest of each for ever.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    options.intra_op_num_threads = threads or cpu_threads()
    # Intra-op spinning is disabled: idle threads would take the processor from the next graph's.
    # One pool for all would help as well, but with it ONNX Runtime refuses every session of the
    # process that has its own.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
