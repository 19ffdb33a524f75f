"""What a bug report needs: versions, processor, memory, disk, and whether the installed parts work together."""

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nsfse
from nsfse.config import AMP_VARIABLE
from nsfse_runtime.errors import NsfseError
from nsfse_runtime.extras import installed_version
from nsfse_runtime.hardware import available_memory, usable_cpus
from nsfse_runtime.images.formats import FORMATS, missing_formats
from nsfse_runtime.json_schema import SCHEMA_VERSION

PACKAGES = (
    *(
        "numpy",
        "pillow",
        "pillow-heif",
        "tokenizers",
        "msgspec",
        "typer",
        "onnxruntime",
        "onnxruntime-gpu",
        "faiss-cpu",
    ),
    *("torch", "safetensors", "transformers", "onnx", "onnxscript", "onnxslim", "tensorboard"),
    *("tensorrt", "tensorrt-cu12-libs", "tensorrt-cu13-libs", "tensorrt-rtx", "cuda-bindings", "openvino"),
    *("onnxruntime-ep-nv-tensorrt-rtx-cu12", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    *("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "i8mm", "bf16")
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NSFSE_DEBUG", AMP_VARIABLE)
RTX_NEEDS = (1, 24)
"""The least onnxruntime for TensorRT for RTX, by https://nvidia.github.io/TensorRT-RTX-EP-ABI/installation.html."""
ENOUGH_MEMORY, ENOUGH_DISK = 1.0, 1.0
"""GiB below which the doctor warns."""


def collect(bundle: Path | None = None, *, full: bool = False) -> dict[str, Any]:
    """Return what this installation has and what is wrong with it.

    Args:
        bundle: A bundle to run a real query through.
        full: Whether to include paths, which may hold a user's name.

    Returns:
        The report as JSON; `problems` lists what to mend, one line each.
    """
    versions = {name: version for name in PACKAGES if (version := installed_version(name))}
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "nsfse": nsfse.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": versions,
        "cpu": {"threads": os.cpu_count(), "usable_threads": usable_cpus(), "flags": _cpu_flags()},
        "memory_free_gib": _free_memory(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "providers": _providers(versions),
    }
    report["accelerators"] = accelerators(report["providers"])
    report["image formats"] = {name: _format(name) for name in FORMATS}
    report["training"] = {"bfloat16": _bfloat16(versions)}
    if full:
        report["paths"] = {
            "python": sys.executable,
            "nsfse": str(Path(nsfse.__file__).parent),
            "folder": str(Path.cwd()),
        }
    report["checks"] = _self_test(bundle)
    report["problems"] = _problems(report)
    return report


def _cpu_flags() -> list[str]:
    """Return the flags that decide the speed of the kernels; only Linux lists them without further tools."""
    file = Path("/proc/cpuinfo")
    words = set(file.read_text("utf-8", "replace").split()) if file.exists() else set()
    return [flag for flag in CPU_FLAGS if flag in words]


def _free_memory() -> float | None:
    """Return GiB that programs can still take; None where the system does not report it."""
    memory = available_memory()
    return None if memory is None else round(memory / 2**30, 1)


def _providers(versions: dict[str, str]) -> list[str]:
    if not {"onnxruntime", "onnxruntime-gpu"} & set(versions):
        return []
    try:
        import onnxruntime
    except ImportError:  # both wheels in one environment leave a broken one; `problems` reports it
        return []
    return list(onnxruntime.get_available_providers())


def accelerators(providers: list[str]) -> dict[str, str]:
    """Return, for each way to a GPU, `ok …` or what is missing and how to get it; on a CPU none is a problem."""
    return {
        "driver": _driver(),
        "CUDA in ONNX Runtime": _cuda(providers),
        "TensorRT in ONNX Runtime": _tensorrt_provider(providers),
        "TensorRT for RTX in ONNX Runtime": _tensorrt_rtx_provider(),
        "TensorRT engines": _engines(),
    }


def _format(name: str) -> str:
    return f"missing: {missing_formats()[name]}" if name in missing_formats() else "ok"


def _bfloat16(versions: dict[str, str]) -> str:
    """Return whether training computes in bfloat16 here, and why."""
    if "torch" not in versions:
        return 'missing: torch is not installed; pip install "nsfse[train]"'
    try:
        from nsfse.models.autocast import choose
        from nsfse.models.device import pick_device

        return str(choose("auto", pick_device("auto")))
    except (NsfseError, ImportError, OSError) as error:  # torch's own libraries may not load
        return f"failed: {error}".splitlines()[0]


def _driver() -> str:
    file = Path("/proc/driver/nvidia/version")
    return f"ok, {file.read_text('utf-8').splitlines()[0].strip()}" if file.exists() else "missing: no NVIDIA driver"


def _cuda(providers: list[str]) -> str:
    from nsfse_runtime.inference.devices import CUDA, SEE_DOCTOR, resolve_device

    if CUDA not in providers:
        return 'missing: ONNX Runtime is built without it; pip uninstall onnxruntime, then pip install "nsfse[gpu]"'
    try:
        resolve_device("cuda")
    except NsfseError as error:
        return f"missing: {str(error).removesuffix(SEE_DOCTOR)}"
    return "ok"


def _tensorrt_provider(providers: list[str]) -> str:
    """Return whether the TensorRT that the provider is linked with is the one installed, and whether it starts."""
    from nsfse_runtime.inference.devices import PROVIDER_LIBRARIES, TENSORRT

    if TENSORRT not in providers:
        return "missing: ONNX Runtime is built without it"
    import onnxruntime

    major = linked_major(Path(onnxruntime.__file__).parent / "capi" / PROVIDER_LIBRARIES[TENSORRT])
    version = installed_version("tensorrt")
    if major and version and version.split(".")[0] != major:
        needed = f"it needs libnvinfer.so.{major}, and tensorrt here is {version}"
        return f"missing: {needed}; pip install tensorrt=={major}.*"
    return _starts(TENSORRT, f"linked with TensorRT {major or '?'}, tensorrt {version or 'not from pip'}")


def _tensorrt_rtx_provider() -> str:
    """Return whether NVIDIA's plug-in for GPUs of PCs is installed, goes with this ONNX Runtime, and starts."""
    from nsfse_runtime.inference.devices import PROVIDER_INSTALL, TENSORRT_RTX, TENSORRT_RTX_PACKAGE

    name = "onnxruntime-ep-nv-tensorrt-rtx"
    version = installed_version(f"{name}-cu13") or installed_version(f"{name}-cu12")
    if version is None:
        return f"missing: {PROVIDER_INSTALL[TENSORRT_RTX]}"
    if runtime := installed_version("onnxruntime-gpu"):
        return f"missing: it goes with onnxruntime, and here is onnxruntime-gpu {runtime}; pip uninstall that"
    runtime = installed_version("onnxruntime") or "0"
    if tuple(int(part) for part in runtime.split(".")[:2]) < RTX_NEEDS:
        needed = f"it needs onnxruntime {'.'.join(map(str, RTX_NEEDS))}, and here is {runtime}"
        return f"missing: {needed}; pip install -U onnxruntime"
    return _starts(f"{TENSORRT_RTX}={TENSORRT_RTX_PACKAGE}", f"plug-in {version} with onnxruntime {runtime}")


def _starts(provider: str, versions: str) -> str:
    from nsfse_runtime.inference.devices import SEE_DOCTOR, resolve_device

    try:
        resolve_device(provider=provider)
    except NsfseError as error:
        return f"missing: {str(error).removesuffix(SEE_DOCTOR)} ({versions})"
    return f"ok, {versions}"


def linked_major(file: Path) -> str:
    """Return the major version of libnvinfer that a shared object names; "" where it names none."""
    match = re.search(rb"libnvinfer\.so\.(\d+)", file.read_bytes()) if file.is_file() else None
    return match[1].decode() if match else ""


def _engines() -> str:
    """Return what builds engines here, for which GPUs, and what runs them."""
    from nsfse_runtime.inference.cuda import gpu
    from nsfse_runtime.inference.tensorrt.cache import EngineCache
    from nsfse_runtime.inference.tensorrt_library import available_libraries

    try:
        libraries = available_libraries()
        EngineCache.open()
    except NsfseError as error:
        return f"missing: {error}"
    builds = "; ".join(
        f"{library.title} builds for {', '.join(library.capabilities) or 'the GPU of this machine'}"
        for library in libraries
    )
    try:
        device = gpu()
    except NsfseError as error:
        return f"missing: nothing runs them here ({error}); {builds}"
    return f"ok, on {device.name} ({device.capability}); {builds}"


def _self_test(bundle: Path | None) -> dict[str, str]:
    """Run what can be run; each check is `ok …` or the one-line reason why not."""
    checks = {"decode an image": _attempt(_decode), "write a temporary file": _attempt(_write)}
    if bundle is not None:
        checks["query the bundle"] = _attempt(lambda: _query(bundle))
    return checks


def _attempt(check: Callable[[], None]) -> str:
    started = time.perf_counter()
    try:
        check()
    except NsfseError as error:
        return f"failed: {error}"
    except Exception as error:  # a doctor reports what is broken, whatever it is
        return f"failed: {type(error).__name__}: {error}".splitlines()[0]
    return f"ok, {1000 * (time.perf_counter() - started):.0f} ms"


def _decode() -> None:
    import io

    from PIL import Image

    from nsfse_runtime.images.decode import decode_image

    buffer = io.BytesIO()
    Image.new("RGB", (31, 47), "red").save(buffer, format="JPEG")
    if decode_image(buffer.getvalue()).shape != (47, 31, 3):
        raise ValueError("an image of 31×47 pixels did not come back with its size")


def _write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe").write_bytes(b"nsfse")


def _query(path: Path) -> None:
    """Encode a grey image, compose it with one word the bundle knows, score the pair."""
    import numpy as np
    from tokenizers import Tokenizer

    from nsfse_runtime.inference.bundle import Bundle
    from nsfse_runtime.inference.onnx_scorer import OnnxScorer

    bundle = Bundle.open(path)
    words = Tokenizer.from_str(bundle.read("tokenizer.json").decode("utf-8")).get_vocab()
    word = next(word for word in sorted(words) if word.isalpha() and len(word) > 1)
    scorer = OnnxScorer(bundle)
    target = scorer.encode_images(np.full((1, *scorer.image_size, 3), 128, np.uint8))
    score = scorer.score_pairs(scorer.compose(target, [word])[0], target).score
    if not np.isfinite(score).all():
        raise ValueError("the bundle's score is not a number")


def _problems(report: dict[str, Any]) -> list[str]:
    versions, problems = report["packages"], []
    if {"onnxruntime", "onnxruntime-gpu"} <= set(versions):
        problems.append(
            "onnxruntime and onnxruntime-gpu overwrite each other: "
            "pip uninstall both, then install one extra, nsfse[cpu] or nsfse[gpu]"
        )
    elif not report["providers"]:
        problems.append('no ONNX Runtime, so no query or index: pip install "nsfse[cpu]"')
    if (memory := report["memory_free_gib"]) is not None and memory < ENOUGH_MEMORY:
        problems.append(f"only {memory} GiB of memory are free; close other programs")
    if report["disk_free_gib"] < ENOUGH_DISK:
        problems.append(f"only {report['disk_free_gib']} GiB of disk are free in this folder; free some")
    if (message := report["training"]["bfloat16"]).startswith("failed: "):
        problems.append(message.removeprefix("failed: "))
    problems += [
        f"cannot {name}: {outcome}" for name, outcome in report["checks"].items() if outcome.startswith("failed")
    ]
    return problems
