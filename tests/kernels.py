"""Which kernels compute here, and how to ask for the plainest of them: rounding differs, and no test may notice.

python tests/kernels.py          what this process would compute with, a line each
python tests/kernels.py plain    the environment of the plainest kernels, NAME=value a line

ONNX Runtime picks its kernels by the processor's flags, and neither a variable nor a session option changes that. Its
threads and its graph optimisations can be set, and the tests of bundles set both.
"""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
VARIABLES = {
    "ATEN_CPU_CAPABILITY": "default",  # torch's own loops
    "ONEDNN_MAX_CPU_ISA": "SSE41",  # torch's convolutions
    "MKL_CBWR": "COMPATIBLE",  # torch's BLAS on x86
}


def plain() -> dict[str, str]:
    """Return the environment; bfloat16 is on in it where it is off here, so that one of two passes has it on."""
    found = dict(VARIABLES)
    if features := dispatched():
        found["NPY_DISABLE_CPU_FEATURES"] = ",".join(features)
    if platform.machine().lower() in ("x86_64", "amd64"):
        found["OPENBLAS_CORETYPE"] = "Prescott" if openblas() == "Nehalem" else "Nehalem"  # numpy's BLAS
    found["NSFSE_BF16_AUTOCAST"] = "off" if bfloat16().startswith("on") else "on"
    return found


def dispatched() -> list[str]:
    """Return what numpy has loops for beyond its baseline and this processor has too: it warns of all others."""
    from numpy._core import _multiarray_umath as core

    return [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]


def openblas() -> str:
    """Return the name of the kernels that numpy's OpenBLAS has chosen, "" where numpy has another BLAS."""
    import numpy as np

    for library in Path(np.__file__).parents[1].glob("numpy.libs/*openblas*"):
        with suppress(OSError, AttributeError):
            name = ctypes.CDLL(str(library)).scipy_openblas_get_corename64_
            name.restype = ctypes.c_char_p
            return name().decode()
    return ""


def bfloat16() -> str:
    """Return whether training computes in bfloat16 here, and why."""
    import torch

    from nsfse.models.autocast import choose

    return str(choose("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")))


def flags() -> str:
    """Return the processor's name and those of its flags that decide kernels."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    there = (facts.get("flags") or facts.get("features") or "").split()
    name = facts.get("model name") or platform.processor() or "a processor without a name"
    return f"{name} ({platform.machine()}), {os.cpu_count()} cores: {' '.join(f for f in FLAGS if f in there) or '-'}"


def report() -> dict[str, str]:
    """Return what decides how numbers are rounded here."""
    import numpy as np
    import torch

    runtime = "not installed"
    if find_spec("onnxruntime"):
        import onnxruntime

        runtime = f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}"
    names = (*VARIABLES, "NPY_DISABLE_CPU_FEATURES", "OPENBLAS_CORETYPE", "NSFSE_BF16_AUTOCAST", "OMP_NUM_THREADS")
    return {
        "processor": flags(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "numpy": f"{np.__version__}, {' '.join(dispatched()) or 'its baseline'}, OpenBLAS {openblas() or 'not used'}",
        "onnxruntime": runtime,
        "bfloat16": bfloat16(),
        "variables": " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) or "none",
    }


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in (".", "export", "runtime")]
    if sys.argv[1:] == ["plain"]:
        print("\n".join(f"{name}={value}" for name, value in plain().items()))
    elif not sys.argv[1:]:
        print("\n".join(f"{name:<12} {value}" for name, value in report().items()))
    else:
        sys.exit("python tests/kernels.py [plain]")
