"""`nsfse bench speed`: the parts of a query and the whole of it, beside PyTorch eager with the same model.

What is compared takes turns within a round, so that another program on the machine slows all of it; a ratio is the
median of the rounds' ratios. Figures are milliseconds unless their names say otherwise.
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
    drawn_candidates,
    drawn_jpeg,
    long_text,
    names_of,
    random_clip_run,
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

Tell = Callable[[str], None]


class PaddedScorer(TorchScorer):
    """The model as most programs run a CLIP: every text is padded to all positions."""

    def _text(self, texts: Sequence[str]) -> tuple[Any, Any, Any]:
        ids, mask = self.tokenizer.encode(texts)
        more = ((0, 0), (0, self.model.config.max_words - ids.shape[1]))
        padded, kept = self._tensor(np.pad(ids, more)), self._tensor(np.pad(mask, more))
        with torch.inference_mode():
            return *self.model.encode_text(padded, kept), kept


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
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Measure the model of `run`, by default a CLIP ViT-B/32 of random weights; write speed.md, .json, .svg in `out`.

    `dim` and `cells` are the default model's; `photos` is a folder to index. What is not begun after `minutes` is left
    out and named. Raises UsageError (sizes, photos), OutputError, and what an export raises.
    """
    check_sizes(list(sizes))
    if photos:
        check_photos(photos)
    began = time.monotonic()
    torch.set_num_threads(cpu_threads())
    if not (out / "speed.json").exists() and any((out / f"speed.{kind}").exists() for kind in ("md", "svg")):
        raise OutputError(f"{out} holds a speed.md or speed.svg of something else; choose another with -o")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror}; choose another with -o") from None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tell("making the model and its bundles")
        source = run or random_clip_run(place / "run", dim, cells)
        checkpoint = load_checkpoint(source)
        model = TorchScorer(checkpoint.model, checkpoint.tokenizer)
        setting = Setting(source, model, _bundles(source, place), place, rounds, began + 60 * minutes)
        found: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "machine": machine(), "model": _model(setting)}
        steps: dict[str, Act] = {
            "parts": lambda: parts(setting, found["machine"]["gflops"], compiled),
            "whole": lambda: whole(setting, max(sizes)),
            "cold": lambda: cold(setting, min(sizes)),
            "index": lambda: bulk(setting, photos) if photos else None,
            "growth": lambda: growth(setting, sizes),
        }
        for name, step in steps.items():
            tell(f"measuring: {name}")
            found[name] = None if setting.late(name) else step()
        found["left_out"] = setting.left_out
        found["minutes"] = round((time.monotonic() - began) / 60, 1)
    write_file(out / "speed.json", msgspec.json.format(msgspec.json.encode(found), indent=2))
    write_file(out / "speed.md", markdown(found).encode())
    write_file(out / "speed.svg", plot(found["growth"] or {}).encode())
    return found


def _bundles(run: Path, place: Path) -> dict[str, OnnxScorer]:
    """Export a run in float32 and, where that helps any graph, in int8 (unverified: only its speed is looked at)."""
    export_bundle(run, place / "fp32")
    shutil.copytree(place / "fp32", place / "int8")
    found = {"fp32": open_model(place / "fp32", "cpu")}
    try:
        reduce_bundle(place / "int8", found["fp32"].bundle.manifest, "int8", None, lambda _: None)
    except UsageError:
        return found
    return found | {"int8": open_model(place / "int8", "cpu")}


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
    """Time encoders, composition and pair head in every form of the model; `floor` is what products alone must take."""
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
        targets = drawn_candidates(setting, CANDIDATES)
        cases[f"pair head, {CANDIDATES} candidates, {len(query.words)} words"] = lambda scorer: scorer.score_pairs(
            query, targets
        )
    found = {}
    for name, act in cases.items():
        if setting.late(name):
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
        floor = round(counter.get_total_flops() / gflops / 1e6, 2)
        found[name] = {"base": base, "floor_ms": floor, "ways": ratios(interleaved(variants, setting.rounds), base)}
    return found


def _padded(setting: Setting) -> TorchScorer:
    """Return the model as it is usually run by PyTorch."""
    kind = PaddedScorer if setting.torch.model.config.backbone == "clip" else TorchScorer
    return kind(setting.torch.model, setting.torch.tokenizer)


def _compiled(setting: Setting, pixels: np.ndarray) -> Act:
    encode, batch = torch.compile(setting.torch.model.encode_images), torch.from_numpy(pixels)

    def act() -> object:
        with torch.inference_mode():
            return encode(batch)

    return act


def whole(setting: Setting, size: int, queries: int = 100) -> dict[str, Any]:
    """Time whole queries over a made gallery: an image of a megapixel, and an image that the gallery has."""
    jpeg, text = drawn_jpeg(1.0), setting.text
    found: dict[str, Any] = {"images": size, "candidates": CANDIDATES}
    with Gallery.open(setting.gallery(size), setting.best) as gallery:
        retriever, eager, names = Retriever(setting.best, gallery), _padded(setting), names_of(size)
        ways: dict[str, Callable[[], Any]] = {
            "an image of 1 megapixel": lambda: retriever.query(jpeg, text, rerank=CANDIDATES),
            "an image of the gallery": lambda: retriever.query(next(names), text, rerank=CANDIDATES),
        }
        base = "torch, an image of 1 megapixel"
        times = interleaved({base: partial(eager_query, eager, gallery, jpeg, text), **ways}, setting.rounds)
        found |= {"base": base, "ways": ratios(times, base)}
        for name, ask in ways.items():
            answers = [_timed(ask) for _ in range(queries)]
            laps = [answer.timings_ms for answer, _ in answers]
            medians = {lap: round(statistics.median(each[lap] for each in laps), 2) for lap in laps[0]}
            found["ways"][name] |= quantiles([taken for _, taken in answers]) | {"laps": medians}
    return found


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
