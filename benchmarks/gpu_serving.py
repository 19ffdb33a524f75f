"""What `benchmarks/gpu.py --trt` runs: serving in PyTorch, ONNX Runtime and TensorRT, side by side in one process.

Four parts: image encoders of CLIP's sizes, stage 1 against the memory's bandwidth, re-ranking, a whole query.
Weights, images and galleries are random. Times are medians of interleaved rounds, from arrays in the
host's memory to arrays in the host's memory. What does not run here is a row with its reason.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from towers import TINY, TOWERS, Encoder, flops, random_bundle

from nsfse.evaluation.reference_head import HeadConstants, score_pairs
from nsfse_export.engine_builder import build_engine
from nsfse_export.export import to_onnx
from nsfse_export.graphs import BATCH, Graph
from nsfse_export.tensorrt import EngineTarget, build_engines, engine_target
from nsfse_runtime.images.decode import load_image
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import CudaMemory
from nsfse_runtime.inference.devices import ON_CPU, ExecutionDevice, resolve_device
from nsfse_runtime.inference.onnx_graphs import search_graph
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.onnx_session import Session, to_device
from nsfse_runtime.inference.tensorrt.engine import EngineScorer, EngineSession
from nsfse_runtime.search.on_device import DeviceGallery
from nsfse_runtime.search.two_stage import ordered, select
from nsfse_runtime.types import Pixels, TargetFeatures

Row = dict[str, Any]
Run = Callable[[], Any]

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
WAYS = ("torch eager", "torch compiled", "ONNX Runtime", "TensorRT")
FULL = {"towers": TOWERS, "batches": (1, 16, 64, 256), "vectors": (1_000_000, 10_000_000), "dim": 512,
        "pairs": (100, 1000), "gallery": 20_000, "gemm": 8192, "rounds": 9}  # fmt: skip
SMOKE = {"towers": TINY, "batches": (1, 3), "vectors": (2000,), "dim": 16,
         "pairs": (10, 20), "gallery": 50, "gemm": 64, "rounds": 2}  # fmt: skip


class Measurement:
    """Collects rows until its time is over; `device` is torch's, `execution_device` ONNX Runtime's."""

    def __init__(self, plan: dict[str, Any], execution_device: ExecutionDevice, smoke: bool, minutes: float) -> None:
        self.plan, self.execution_device, self.smoke, self.rows = plan, execution_device, smoke, list[Row]()
        self.device = torch.device("cpu" if execution_device == ON_CPU else "cuda")
        self._end = time.monotonic() + 51 * minutes  # the last engine or compilation begun before it ends after it

    def compare(
        self, about: Row, ways: dict[str, Callable[[], Run]], work: float = 0, limit: float | None = None
    ) -> None:
        """Time each of `ways`, made when it is its turn; `work` per run and the `limit` in ms tell rates."""
        ready: dict[str, Run] = {}
        times: dict[str, list[float]] = {}
        for way, make in ways.items():
            try:
                if time.monotonic() > self._end:
                    raise TimeoutError("the time was over")
                run = make()
                run()  # the first is for warming up
                ready[way], times[way] = run, []
            except Exception as error:  # a row with its reason; the others go on
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                self.rows.append({**about, "way": way, "left_out": reason})
        for _ in range(self.plan["rounds"]):
            for way, run in ready.items():
                started = time.perf_counter()
                run()
                times[way].append((time.perf_counter() - started) * 1000)
        for way, milliseconds in times.items():
            row = {**about, "way": way, "ms": round(statistics.median(milliseconds), 4)}
            if work:
                row["per_second"] = round(1000 * work / row["ms"], 1)
            if limit:
                row["share_of_limit"] = round(limit / row["ms"], 3)
            self.rows.append(row)


def gemm_rate(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """Return the operations per second of a product of two n×n matrices."""
    a = torch.ones(n, n, dtype=dtype, device=device)
    return 2.0 * n**3 / _seconds(lambda: a @ a, device)


def bandwidth(device: torch.device, size: int) -> float:
    """Return the bytes per second that a copy of `size` bytes reads and writes."""
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2.0 * size / _seconds(lambda: b.copy_(a), device)


def _seconds(run: Run, device: torch.device) -> float:
    times = []
    for _ in range(6):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def encoders(run: Measurement, limits: dict[str, float]) -> None:
    """Time every way to encode images, in every type, at every batch."""
    most = max(run.plan["batches"])
    for kind, dtype in TYPES.items():
        for name, size in run.plan["towers"].items():
            encoder = Encoder(size, dtype).requires_grad_(False)
            opened = {way: _once(lambda way=way, e=encoder, s=size: _open(way, e, s, run, most)) for way in WAYS}
            for batch in run.plan["batches"]:
                side = size["image_size"]
                pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
                ways = {way: _applied(make, pixels) for way, make in opened.items()}
                limit = 1000 * batch * flops(size) / limits[kind]
                run.compare({"part": "encoder", "model": name, "type": kind, "size": batch}, ways, batch, limit)


def _applied(make: Callable[[], Any], argument: Any) -> Callable[[], Run]:
    def prepare() -> Run:
        function = make()
        return lambda: function(argument)

    return prepare


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return `make`, called once: its result or failure is cached."""
    outcomes: list[Any] = []

    def cached() -> Any:
        if not outcomes:
            try:
                outcomes.append(make())
            except Exception as error:
                outcomes.append(error)
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]
        return outcomes[0]

    return cached


def _open(way: str, encoder: Encoder, size: dict[str, int], run: Measurement, most: int) -> Callable[[Pixels], Any]:
    if way.startswith("torch"):
        if way == "torch compiled" and run.smoke:
            raise ValueError("not compiled in a smoke run")
        module = encoder.to(run.device)
        call = torch.compile(module, dynamic=True) if way == "torch compiled" else module

        def encode(pixels: Pixels) -> Any:
            with torch.inference_mode():
                return call(torch.from_numpy(pixels).to(run.device)).cpu().numpy()

        return encode
    target = engine_target() if way == "TensorRT" else None  # before the export, which takes its time
    data = _onnx(encoder, size)
    if target is None:
        session = Session(data, run.execution_device)
        return lambda pixels: session(pixels=pixels)
    engine = _engine(target, data, ({"batch": (1, 1, 1)}, {"batch": (2, most, most)}))
    return lambda pixels: engine(pixels=pixels)


def _onnx(encoder: Encoder, size: dict[str, int]) -> bytes:
    side = size["image_size"]
    inputs, outputs = {"pixels": (BATCH, side, side, 3)}, {"vectors": (BATCH, size["hidden_size"])}
    example = {"pixels": torch.zeros(2, side, side, 3, dtype=torch.uint8)}
    return to_onnx("image", Graph(encoder.to("cpu"), example, inputs, outputs))


def _engine(target: EngineTarget, data: bytes, profiles: Sequence[dict[str, tuple[int, int, int]]]) -> EngineSession:
    library, capability, origin = target.library, target.gpu.capability if target.gpu else "", "the benchmark's graph"
    stored, _ = build_engine(library, data, profiles, capability, b"", origin)
    runtime = library.module.Runtime(library.logger)
    opened = runtime.deserialize_cuda_engine(stored.plan)
    engine = EngineSession(opened, CudaMemory(), stored.outputs, library.module.nptype, origin)
    engine.runtime = runtime  # type: ignore[attr-defined]  # it must outlive the engine
    return engine


def stage_one(run: Measurement, rate: float) -> None:
    """Time the exact search of the best 100 among N vectors; the limit is reading them once."""
    d = run.plan["dim"]
    block = np.random.default_rng(0).standard_normal((min(run.plan["vectors"]), d), np.float32)
    query = block[0].copy()
    for count in run.plan["vectors"]:
        vectors = np.tile(block, (count // len(block), 1))

        def torch_search(vectors: Any = vectors) -> Run:
            resident = torch.from_numpy(vectors).to(run.device)
            return lambda: torch.topk(resident @ torch.from_numpy(query).to(run.device), 100).indices.cpu().numpy()

        def onnx_search(vectors: Any = vectors, count: int = count) -> Run:
            device = run.execution_device
            session, resident = Session(search_graph(), device), to_device(vectors, device)
            mask = to_device(np.ones(count, np.bool_), device)
            inputs = {"vectors": resident, "mask": mask, "query": query, "k": np.array([100], np.int64)}
            return lambda: session.run_with_io_binding(inputs, on_device=("found_vectors",))["rows"]

        ways = {"torch": torch_search, "ONNX Runtime": onnx_search}
        limit = 1000 * vectors.nbytes / rate
        run.compare({"part": "stage 1", "model": f"d={d}", "type": "float32", "size": count}, ways, 1, limit)


class Rows:
    """A gallery in memory, as much of a Snapshot as the device's gallery reads."""

    def __init__(self, bundle: Bundle, count: int) -> None:
        d, regions, random = bundle.manifest.dim, bundle.manifest.regions, np.random.default_rng(1)
        self.vectors = _unit(random.standard_normal((count, d), np.float32))
        self._regions = _unit(random.standard_normal((min(count, 512), regions, d), np.float32))

    def __len__(self) -> int:
        return len(self.vectors)

    def read(self, rows: Any) -> TargetFeatures:
        """Return the features of `rows`; the regions of 512 images serve for all."""
        return TargetFeatures(self.vectors[rows], self._regions[rows % len(self._regions)])


def _unit(rows: Any) -> Any:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def reranking(run: Measurement, bundle: Bundle) -> None:
    """Time the pair head on K candidates in the host's memory."""
    scorers = _scorers(run, bundle)
    head, rows = HeadConstants.of(bundle.manifest), Rows(bundle, max(run.plan["pairs"]))
    first = OnnxScorer(bundle)
    query = first.compose(rows.read(np.arange(1)), [_text(bundle)])[0]
    for count in run.plan["pairs"]:
        targets = rows.read(np.arange(count))

        def scored(make: Callable[[], Any], targets: TargetFeatures = targets) -> Callable[[], Run]:
            def score_in_parts(candidates: TargetFeatures) -> list[Any]:
                return [make().score_pairs(query, part) for part in _parts(candidates)]

            return _applied(lambda: score_in_parts, targets)

        ways: dict[str, Callable[[], Run]] = {name: scored(make) for name, make in scorers.items()}
        ways["numpy"] = lambda targets=targets: lambda: score_pairs(query, targets, head)
        about = {"part": "re-rank", "model": bundle.manifest.name, "type": "float32", "size": count}
        run.compare(about, ways, count)


def _parts(targets: TargetFeatures, most: int = 512) -> Iterable[TargetFeatures]:
    return (targets.take(np.arange(start, min(start + most, len(targets)))) for start in range(0, len(targets), most))


def whole_query(run: Measurement, bundle: Bundle) -> None:
    """Time JPEG and words → ten hits, with 100 re-ranked: on the device throughout; in TensorRT with numpy's search."""
    from PIL import Image

    rows, text, jpeg = Rows(bundle, run.plan["gallery"]), _text(bundle), io.BytesIO()
    noise = np.random.default_rng(2).integers(0, 256, (27, 36, 3), np.uint8)
    Image.fromarray(noise).resize((1152, 864)).save(jpeg, "JPEG")
    everything = np.ones(len(rows), np.bool_)

    def composed(scorer: Any) -> Any:
        pixels = load_image(jpeg.getvalue(), scorer.image_size)
        return scorer.compose(scorer.encode_images(pixels[None]), [text])[0]

    def resident() -> Run:
        scorer = OnnxScorer(bundle, run.execution_device)
        gallery: Any = DeviceGallery(rows, rows.read, scorer)  # type: ignore[arg-type]

        def once() -> Any:
            query = composed(scorer)
            best = gallery.search(query.vector, min(100, len(rows)), everything)
            by_row = np.argsort(best.rows)
            return ordered(best.rows, best.scores, by_row, select(gallery.pairs([query], best)[0], by_row), 10)

        return once

    def engines() -> Run:
        from nsfse_runtime.search.two_stage import rank

        scorer = _engine_scorer(bundle)
        return lambda: rank(scorer, composed(scorer), rows.vectors, rows.read, 10, 100)

    ways = {"ONNX Runtime": resident, "TensorRT": engines}
    run.compare({"part": "query", "model": bundle.manifest.name, "type": "float32", "size": len(rows)}, ways, 1)


def _scorers(run: Measurement, bundle: Bundle) -> dict[str, Callable[[], Any]]:
    return {
        "ONNX Runtime": _once(lambda: OnnxScorer(bundle, run.execution_device)),
        "TensorRT": _once(lambda: _engine_scorer(bundle)),
    }


def _engine_scorer(bundle: Bundle) -> EngineScorer:
    """Return the scorer on engines of whichever library is there, built and compared with ONNX Runtime first."""
    target = engine_target()
    build_engines(bundle.path, target)
    return EngineScorer(bundle, target.library)


def _text(bundle: Bundle) -> str:
    from tokenizers import Tokenizer

    words = Tokenizer.from_str(bundle.read("tokenizer.json").decode()).get_vocab()
    return " ".join(sorted(word for word in words if word.isalpha())[:5])


def measure(smoke: bool, bundle: Path | None = None, minutes: float = 8) -> dict[str, Any]:
    """Run all parts, re-ranking and the whole query with `bundle`; without one with one of random weights.

    What is not begun after `minutes` is left out, with a row that states it.
    """
    plan, execution_device = (SMOKE, ON_CPU) if smoke else (FULL, resolve_device("auto"))
    run = Measurement(plan, execution_device, smoke, minutes)
    rates = {kind: gemm_rate(run.device, dtype, plan["gemm"]) for kind, dtype in TYPES.items()}
    copied = bandwidth(run.device, 2**20 if smoke else 2**31)
    stage_one(run, copied)
    with tempfile.TemporaryDirectory() as folder:
        opened = Bundle.open(bundle or random_bundle(Path(folder), smoke))
        reranking(run, opened)
        whole_query(run, opened)
    encoders(run, rates)
    return {
        "schema_version": 1,
        "smoke": smoke,
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu",
        "provider": execution_device.provider,
        "note": execution_device.note,
        "torch": torch.__version__,
        "gemm_tflops": {kind: round(rate / 1e12, 3) for kind, rate in rates.items()},
        "copy_gb_per_second": round(copied / 1e9, 1),
        "rows": run.rows,
    }
