"""What the gallery tests share: a scorer small enough to read, and images to give it. Numpy and Pillow alone."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nsfse_runtime.types import ModelInfo, PairScores, Pixels, QueryFeatures, RankingMode, TargetFeatures

DIM, REGIONS = 8, 3
_PROJECTION = np.random.default_rng(7).normal(size=(6, DIM)).astype(np.float32)


PLAIN_INFO = ModelInfo(
    mode=RankingMode.TWO_STAGE,
    mix=(1.0, 0.0),
    grid=None,
    boundaries=None,
    confidence=None,
    device="cpu",
    bundle_path=None,
)
"""What the scorers of the tests say of themselves."""


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class ColourScorer:
    """Means and spreads of colours, projected; counts what it has encoded."""

    info = PLAIN_INFO
    tokenizer = None

    def __init__(self, fingerprint: str = "colours", image_size: tuple[int, int] = (12, 16)) -> None:
        self.fingerprint, self.image_size = fingerprint, image_size
        self.encoded = 0

    def encode_images(self, pixels: Pixels) -> TargetFeatures:
        assert pixels.shape[1:] == (*self.image_size, 3) and pixels.dtype == np.uint8
        self.encoded += len(pixels)
        flat = pixels.reshape(len(pixels), -1, 3).astype(np.float32) / 255
        parts = [flat, *np.array_split(flat, REGIONS, axis=1)]
        features = [unit(np.concatenate([p.mean(1), p.std(1)], 1) @ _PROJECTION + 0.01) for p in parts]
        return TargetFeatures(features[0], np.stack(features[1:], 1))

    def sentence(self, texts: Sequence[str]) -> np.ndarray:
        return unit(np.stack([compose_one(np.zeros(DIM), text).words.mean(0) for text in texts]))

    def compose(self, references: TargetFeatures, texts: Sequence[str]) -> list[QueryFeatures]:
        return [compose_one(vector, text) for vector, text in zip(references.vectors, texts, strict=True)]

    def score_pairs(self, query: QueryFeatures, targets: TargetFeatures) -> PairScores:
        words = np.einsum("ld,krd->klr", query.words, targets.regions).max(2, initial=-1)
        return PairScores(words @ query.word_weights + targets.vectors @ query.vector, words, 0.25)


def compose_one(vector: np.ndarray, text: str) -> QueryFeatures:
    tokens = tuple(text.split())
    words = unit(np.stack([np.random.default_rng(sum(map(ord, word))).normal(size=DIM) for word in tokens]))
    probes = np.concatenate([vector[None], words])
    weights = np.full(len(tokens), 1 / len(tokens), np.float32)
    return QueryFeatures(
        unit(vector + words.mean(0)), words, probes, weights, np.full(len(probes), 1 / len(probes), np.float32), tokens
    )


def save_image(path: Path, seed: int, size: tuple[int, int] = (20, 14)) -> Path:
    """Save an image like no other seed's, `size` (width, height)."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (1, 1, 3)) + random.integers(-40, 40, (size[1], size[0], 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


def save_images(folder: Path, count: int, first: int = 0) -> list[str]:
    """Save `count` images, of an hour ago, in folders of ten; return their ids, sorted."""
    names = [f"shelf{n // 10:02d}/item{n:04d}.png" for n in range(first, first + count)]
    for name, seed in zip(names, range(first, first + count), strict=True):
        os.utime(save_image(folder / name, seed), (time.time() - 3600,) * 2)
    return sorted(names)


def peak_mb() -> float:
    """Return this process's peak memory in MB: on Linux VmHWM, since ru_maxrss begins with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1000
    import resource  # POSIX's alone

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
