"""Whole processes, indexing a folder, and how times grow with sizes."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nsfse_export.benchmark.fixtures import Setting, cycle_ids, long_text, random_jpeg, random_targets
from nsfse_export.benchmark.timing import Act, interleaved, seconds
from nsfse_runtime import Gallery, Retriever
from nsfse_runtime.errors import UsageError
from nsfse_runtime.images.decode import decode_image, fit_image, load_image
from nsfse_runtime.types import RankingMode

# A process counts the memory of the one that started it as its own peak, so a small process starts it.
_STARTER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
span, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([span, peak, done.returncode, done.stderr.decode(errors="replace")[-300:]]))
"""


def cold(setting: Setting, size: int) -> dict[str, Any]:
    """Time processes that answer one query and end: `nsfse query`, and PyTorch with the same run."""
    image = setting.folder / "reference.jpg"
    image.write_bytes(random_jpeg(1.0))
    gallery = setting.gallery(size)
    eager = (
        "import sys; from pathlib import Path; from nsfse.models.checkpoint import load_checkpoint; "
        "from nsfse.models.torch_scorer import TorchScorer; from nsfse_runtime import Gallery; "
        "from nsfse_export.benchmark.speed import eager_query; run, gallery, image, text = sys.argv[1:]; "
        "checkpoint = load_checkpoint(Path(run)); model = TorchScorer(checkpoint.model, checkpoint.tokenizer); "
        "eager_query(model, Gallery.open(gallery), Path(image).read_bytes(), text)"
    )
    ways = {
        "nsfse query": ["-m", "nsfse", "query", str(image), setting.text, "-g", str(gallery), "--json"],
        "torch": ["-c", eager, str(setting.run), str(gallery), str(image), setting.text],
    }
    runs = {
        name: [_process([sys.executable, *way]) for _ in range(min(3, setting.rounds))] for name, way in ways.items()
    }
    return {"images": size, "ways": {name: _medians(measured) for name, measured in runs.items()}}


def _medians(runs: Sequence[tuple[float, float]]) -> dict[str, float]:
    spans, peaks = zip(*runs, strict=True)
    return {"seconds": round(statistics.median(spans), 2), "peak_mb": round(statistics.median(peaks), 1)}


def _process(command: Sequence[str]) -> tuple[float, float]:
    """Run a process that must end well; return its seconds and its peak memory in MB."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run([sys.executable, "-c", _STARTER, *command], env=environment, capture_output=True, check=True)
    span, peak, code, errors = json.loads(ran.stdout)
    if code:
        raise UsageError(f"{' '.join(command[1:4])} ended with {code}: {errors.strip()}")
    return span, peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # bytes there, KiB elsewhere


def bulk(setting: Setting, photos: Path) -> dict[str, Any]:
    """Index a folder, and encode the first of its images in a plain loop of PyTorch (batches of 16)."""
    with Gallery.open(setting.folder / "bulk.gallery", setting.best, create=True) as gallery:
        span = seconds(lambda: gallery.sync(photos))
        ids = gallery.ids
    paths = [photos / name for name in ids[:64]]

    def loop() -> None:
        for start in range(0, len(paths), 16):
            pixels = [load_image(path, setting.torch.image_size) for path in paths[start : start + 16]]
            setting.torch.encode_images(np.stack(pixels))

    rate, torch_rate = len(ids) / span, len(paths) / seconds(loop)
    return {
        "images": len(ids),
        "images_per_second": round(rate, 1),
        "torch_images_per_second": round(torch_rate, 1),
        "times_faster": round(rate / torch_rate, 2),
    }


def growth(setting: Setting, sizes: Sequence[int]) -> dict[str, dict[str, dict[float, float]]]:
    """Return curves: by what grows, then by line, the median milliseconds at each of its values."""
    curves: dict[str, tuple[Sequence[float], Callable[[Any], dict[str, Act]]]] = {
        "images in the gallery": (sorted(sizes), partial(_by_size, setting)),
        "candidates of stage 2": ((10, 50, 100, 200, 500), partial(_by_candidates, setting, min(sizes))),
        "words of the text": ((1, 3, 6, 12, 24), partial(_by_words, setting)),
        "images encoded at once, each": ((1, 4, 16), partial(_by_batch, setting)),
        "megapixels of a JPEG": ((0.25, 1, 4, 12), partial(_by_megapixels, setting)),
    }
    measured: dict[str, dict[str, dict[float, float]]] = {}
    for title, (values, variants_of) in curves.items():
        for value in values:
            if setting.out_of_time(f"{title}: {value:g}"):
                continue
            share = value if title.endswith("each") else 1
            for line, times in interleaved(variants_of(value), max(3, setting.rounds // 2)).items():
                median = round(statistics.median(times) / share, 3)
                measured.setdefault(title, {}).setdefault(line, {})[value] = median
    return measured


def _by_size(setting: Setting, size: int) -> dict[str, Act]:
    gallery = Gallery.open(setting.gallery(size), setting.best)
    retriever, names = Retriever(setting.best, gallery), cycle_ids(size)
    retriever.query(next(names), setting.text)  # codes or an index are made from the second query on
    return {
        "whole query": lambda: retriever.query(next(names), setting.text),
        "without stage 2": lambda: retriever.query(next(names), setting.text, k=1, rerank=0),
    }


def _by_candidates(setting: Setting, size: int, candidates: int) -> dict[str, Act]:
    targets = random_targets(setting, candidates)
    query = setting.torch.compose(targets.take([0]), [setting.text])[0]
    if setting.best.bundle.manifest.mode is RankingMode.ONE_STAGE:
        return {}
    return {kind: partial(scorer.score_pairs, query, targets) for kind, scorer in setting.scorers.items()}


def _by_words(setting: Setting, words: int) -> dict[str, Act]:
    words = min(words, setting.best.bundle.manifest.max_words)
    text, reference = long_text(setting.text, words), random_targets(setting, 1)
    return {kind: partial(scorer.compose, reference, [text]) for kind, scorer in setting.scorers.items()}


def _by_batch(setting: Setting, batch: int) -> dict[str, Act]:
    pixels = np.zeros((batch, *setting.torch.image_size, 3), np.uint8)
    return {kind: partial(scorer.encode_images, pixels) for kind, scorer in setting.scorers.items()}


def _by_megapixels(setting: Setting, megapixels: float) -> dict[str, Act]:
    jpeg, size = random_jpeg(megapixels), setting.torch.image_size
    return {
        "as a query decodes it": lambda: load_image(jpeg, size),
        "decoded whole, then resized": lambda: fit_image(decode_image(jpeg), size),
    }
