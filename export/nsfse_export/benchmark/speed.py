"""`nsfse bench speed`: the parts of a query and the whole of it, beside PyTorch eager with the same model.

Timing is interleaved: each round measures every variant, so that another program on the machine slows all of them. A
ratio is the median of the rounds' ratios. Figures are milliseconds unless their names say otherwise.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from nsfse.models.checkpoint import load_checkpoint, write_file
from nsfse.models.torch_scorer import TorchScorer
from nsfse_export.benchmark.fixtures import (
    Setting,
    check_photos,
    check_sizes,
    cycle_ids,
    long_text,
    random_jpeg,
    random_targets,
    write_random_clip_run,
)
from nsfse_export.benchmark.report import markdown, plot
from nsfse_export.benchmark.scaling import bulk, cold, growth
from nsfse_export.benchmark.timing import Act, interleaved, machine, quantiles, ratios
from nsfse_export.export import export_bundle
from nsfse_export.precision_gate import reduce_bundle
from nsfse_runtime import Gallery, Retriever, open_model
from nsfse_runtime.errors import OutputError, UsageError
from nsfse_runtime.hardware import cpu_threads
from nsfse_runtime.images.decode import load_image
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.json_schema import SCHEMA_VERSION
from nsfse_runtime.types import RankingMode

CANDIDATES, PAIR_WORDS = 100, 12


class PaddedScorer(TorchScorer):
    """The model as most programs run a CLIP: every text is padded to all positions."""

    def _text(self, texts: Sequence[str]) -> tuple[Any, Any, Any]:
        ids, mask = self.tokenizer.encode(texts)
        padding = ((0, 0), (0, self.model.config.max_words - ids.shape[1]))
        padded, padded_mask = self._tensor(np.pad(ids, padding)), self._tensor(np.pad(mask, padding))
        with torch.inference_mode():
            return *self.model.encode_text(padded, padded_mask), padded_mask


def measure(
    out: Path,
    run: Path | None = None,
    *,
    rounds: int = 7,
    minutes: float = 10.0,
    sizes: Sequence[int] = (10_000, 100_000),
    photos: Path | None = None,
    compiled: bool = False,
    dim: int = 128,
    cells: int = 4,
    report_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure a model's speed, and write speed.md, speed.json and speed.svg.

    Args:
        out: Folder to write into.
        run: Folder of the run; by default a CLIP ViT-B/32 of random weights.
        rounds: Rounds of each measurement.
        minutes: What is not begun after so many is left out, and named.
        sizes: Numbers of images of the galleries.
        photos: A folder to index; None for none.
        compiled: Whether torch.compile is measured.
        dim: The default model's dimension.
        cells: The default model's cells on each side of its grid.
        report_progress: Called with each step.

    Returns:
        The report, as in speed.json.

    Raises:
        UsageError: `sizes` or `photos` cannot be measured.
        OutputError: `out` cannot be written. An export's errors pass through.
    """
    check_sizes(list(sizes))
    if photos:
        check_photos(photos)
    started = time.monotonic()
    torch.set_num_threads(cpu_threads())
    if not (out / "speed.json").exists() and any((out / f"speed.{kind}").exists() for kind in ("md", "svg")):
        raise OutputError(f"{out} holds a speed.md or speed.svg of something else; choose another with -o")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror}; choose another with -o") from None
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        report_progress("making the model and its bundles")
        source = run or write_random_clip_run(work / "run", dim, cells)
        checkpoint = load_checkpoint(source)
        model = TorchScorer(checkpoint.model, checkpoint.tokenizer)
        setting = Setting(source, model, _bundles(source, work), work, rounds, started + 60 * minutes)
        report: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "machine": machine(), "model": _model(setting)}
        steps: dict[str, Act] = {
            "parts": lambda: parts(setting, report["machine"]["gflops"], compiled),
            "whole": lambda: whole(setting, max(sizes)),
            "cold": lambda: cold(setting, min(sizes)),
            "index": lambda: bulk(setting, photos) if photos else None,
            "growth": lambda: growth(setting, sizes),
        }
        for name, step in steps.items():
            report_progress(f"measuring: {name}")
            report[name] = None if setting.out_of_time(name) else step()
        report["left_out"] = setting.left_out
        report["minutes"] = round((time.monotonic() - started) / 60, 1)
    write_file(out / "speed.json", msgspec.json.format(msgspec.json.encode(report), indent=2))
    write_file(out / "speed.md", markdown(report).encode())
    write_file(out / "speed.svg", plot(report["growth"] or {}).encode())
    return report


def _bundles(run: Path, folder: Path) -> dict[str, OnnxScorer]:
    """Export a run in float32 and, where any graph gains, in int8 (unverified: only its speed is measured)."""
    export_bundle(run, folder / "fp32")
    shutil.copytree(folder / "fp32", folder / "int8")
    models = {"fp32": open_model(folder / "fp32", "cpu")}
    try:
        reduce_bundle(folder / "int8", models["fp32"].bundle.manifest, "int8", None, lambda _: None)
    except UsageError:
        return models
    return models | {"int8": open_model(folder / "int8", "cpu")}


def _model(setting: Setting) -> dict[str, Any]:
    manifest = setting.best.bundle.manifest
    return {
        "trained_on": manifest.trained_on,
        "backbone": setting.torch.model.config.backbone,
        "dim": manifest.dim,
        "regions": manifest.regions,
        "bytes_per_image": 4 * manifest.dim + manifest.regions * (manifest.dim + 4),
        "bundle_mb": {
            kind: round(sum(entry.size for entry in model.bundle.manifest.files.values()) / 1e6, 1)
            for kind, model in setting.models.items()
        },
    }


def parts(setting: Setting, gflops: float, compiled: bool = False) -> dict[str, Any]:
    """Time encoders, composition and pair head in every form; `floor_ms` is the least time of the products alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, *setting.torch.image_size, 3), dtype=np.uint8)
    reference = setting.torch.encode_images(pixels[:1])
    text = setting.text
    cases: dict[str, Callable[[Any], object]] = {
        "image, batch 1": lambda scorer: scorer.encode_images(pixels[:1]),
        "image, batch 16": lambda scorer: scorer.encode_images(pixels),
        f"text of {len(text.split())} words": lambda scorer: scorer.sentence([text]),
        "text and composition": lambda scorer: scorer.compose(reference, [text]),
    }
    if setting.best.bundle.manifest.mode is RankingMode.TWO_STAGE:
        query = setting.torch.compose(reference, [long_text(text, PAIR_WORDS)])[0]
        targets = random_targets(setting, CANDIDATES)
        cases[f"pair head, {CANDIDATES} candidates, {len(query.words)} words"] = lambda scorer: scorer.score_pairs(
            query, targets
        )
    measured = {}
    for name, act in cases.items():
        if setting.out_of_time(name):
            continue
        variants: dict[str, Act] = {kind: partial(act, scorer) for kind, scorer in setting.scorers.items()}
        base = "torch"
        if name.startswith("text of") and setting.torch.model.config.backbone == "clip":
            base = f"torch, padded to {setting.torch.model.config.max_words + 2}"
            variants[base] = partial(act, _padded(setting))
        if compiled and name.startswith("image"):
            variants["torch.compile"] = _compiled(setting, pixels[: int(name.rsplit(" ", 1)[1])])
        with FlopCounterMode(display=False) as counter:
            act(setting.torch)
        floor_ms = round(counter.get_total_flops() / gflops / 1e6, 2)
        measured[name] = {
            "base": base,
            "floor_ms": floor_ms,
            "ways": ratios(interleaved(variants, setting.rounds), base),
        }
    return measured


def _padded(setting: Setting) -> TorchScorer:
    """Return the model as PyTorch programs usually run it."""
    kind = PaddedScorer if setting.torch.model.config.backbone == "clip" else TorchScorer
    return kind(setting.torch.model, setting.torch.tokenizer)


def _compiled(setting: Setting, pixels: np.ndarray) -> Act:
    encode, batch = torch.compile(setting.torch.model.encode_images), torch.from_numpy(pixels)

    def act() -> object:
        with torch.inference_mode():
            return encode(batch)

    return act


def whole(setting: Setting, size: int, queries: int = 100) -> dict[str, Any]:
    """Time whole queries over a random gallery: an image of a megapixel, and an image that the gallery has."""
    jpeg, text = random_jpeg(1.0), setting.text
    report: dict[str, Any] = {"images": size, "candidates": CANDIDATES}
    with Gallery.open(setting.gallery(size), setting.best) as gallery:
        retriever, eager, names = Retriever(setting.best, gallery), _padded(setting), cycle_ids(size)
        ways: dict[str, Callable[[], Any]] = {
            "an image of 1 megapixel": lambda: retriever.query(jpeg, text, rerank=CANDIDATES),
            "an image of the gallery": lambda: retriever.query(next(names), text, rerank=CANDIDATES),
        }
        base = "torch, an image of 1 megapixel"
        times = interleaved({base: partial(eager_query, eager, gallery, jpeg, text), **ways}, setting.rounds)
        report |= {"base": base, "ways": ratios(times, base)}
        for name, query in ways.items():
            results = [_timed(query) for _ in range(queries)]
            laps = [result.timings_ms for result, _ in results]
            medians = {lap: round(statistics.median(timings[lap] for timings in laps), 2) for lap in laps[0]}
            report["ways"][name] |= quantiles([ms for _, ms in results]) | {"laps": medians}
    return report


def _timed(act: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    value = act()
    return value, 1000 * (time.perf_counter() - started)


def eager_query(model: TorchScorer, gallery: Gallery, image: bytes, text: str) -> object:
    """Answer a query as a plain PyTorch program would: decode, encode, a product with all vectors, the head."""
    features = model.encode_images(np.stack([load_image(image, model.image_size)]))
    query = model.compose(features, [text])[0]
    scores = gallery.snapshot.vectors @ query.vector
    rows = np.argpartition(scores, len(scores) - CANDIDATES)[len(scores) - CANDIDATES :]
    return np.argsort(-model.score_pairs(query, gallery.snapshot.targets(rows)).score)[:10]
