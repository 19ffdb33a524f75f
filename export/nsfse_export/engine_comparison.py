"""Engines beside ONNX Runtime: the same random images and texts, the least cosine of any row of their outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nsfse_export.verify import draw_sample, least_cosine
from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.cuda import Gpu
from nsfse_runtime.inference.devices import ON_CPU, resolve_device
from nsfse_runtime.inference.manifest import TOKENIZER
from nsfse_runtime.inference.onnx_scorer import OnnxScorer
from nsfse_runtime.inference.tensorrt.cache import EngineCache, engine_graphs, engine_key
from nsfse_runtime.inference.tensorrt.engine import EngineScorer
from nsfse_runtime.inference.tensorrt_library import TensorRT
from nsfse_runtime.types import Floats, Scorer

LEAST_COSINE = 0.999
"""The least allowed, of any row that engines and ONNX Runtime compute of the same images and texts."""


def reference_scorer(bundle: Bundle) -> OnnxScorer:
    """Return ONNX Runtime's scorer of a bundle: on CUDA for bf16, which its CPU lacks. Raises UsageError."""
    return OnnxScorer(bundle, resolve_device("cuda") if bundle.manifest.precision == "bf16" else ON_CPU)


def compare_or_remove(
    reference: OnnxScorer, bundle: Bundle, library: TensorRT, device: Gpu, cache: EngineCache
) -> dict[str, float]:
    """Return `compare` for the cache's engines of this GPU; under the least they are removed: IntegrityError."""
    cosines = compare(reference, EngineScorer(bundle, library), bundle)
    if min(cosines.values()) >= LEAST_COSINE:  # a NaN is refused, too
        return cosines
    for graph in engine_graphs(bundle.manifest):
        cache.remove(engine_key(graph, bundle.manifest, library, device))
    listed = ", ".join(f"{name} {value:.6f}" for name, value in cosines.items())
    raise IntegrityError(
        f"the engines of {bundle.path} do not agree with ONNX Runtime (least cosines: {listed}); they were removed: "
        "try another TensorRT, or a bundle of higher precision"
    )


def compare(reference: Scorer, candidate: Scorer, bundle: Bundle) -> dict[str, float]:
    """Return the least cosine, by output, of all rows that two scorers compute of the same random images and texts."""
    manifest = bundle.manifest
    sample = draw_sample(manifest.image_size, bundle.read(TOKENIZER), manifest.max_words)
    images = sample.images[: len(sample.texts)]
    expected, actual = (_rows(scorer, images, sample.texts) for scorer in (reference, candidate))
    return {name: least_cosine(rows, actual[name]) for name, rows in expected.items()}


def _rows(scorer: Scorer, images: Any, texts: Sequence[str]) -> dict[str, Floats]:
    targets = scorer.encode_images(images)
    queries = scorer.compose(targets, texts)
    pairs = [scorer.score_pairs(query, targets) for query in queries]
    rows = {"vectors": targets.vectors, "queries": np.stack([query.vector for query in queries])}
    rows["scores"] = np.stack([pair.score for pair in pairs])
    if len(queries[0].words):
        rows["regions"] = targets.regions.reshape(-1, targets.regions.shape[-1])
        rows["words"] = np.concatenate([query.words for query in queries])
        rows["probes"] = np.concatenate([query.probes for query in queries])
    return rows
