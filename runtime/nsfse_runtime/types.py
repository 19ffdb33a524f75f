"""What travels between the rooms: features of targets and queries, and the protocol of whatever makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

SCHEMA_VERSION = 2
"""Of all JSON that commands and servers print (docs/json.md)."""


@dataclass(frozen=True, slots=True)
class TargetFeatures:
    """Features of N images: `vectors` [N, d] and `regions` [N, R, d], float32, rows of unit length."""

    vectors: Floats
    regions: Floats

    def __len__(self) -> int:
        """Return N."""
        return len(self.vectors)

    def take(self, rows: NDArray[np.intp] | Sequence[int]) -> "TargetFeatures":
        """Return the features of `rows` [K], in that order."""
        return TargetFeatures(self.vectors[rows], self.regions[rows])


@dataclass(frozen=True, slots=True)
class QueryFeatures:
    """One composed query of L words (no padding).

    `vector` [d] is the stage-1 query; `words` [L, d] the infused words; `probes` [P+L, d] the visual probes, the P kept
    regions first, then one a word; `word_weights` [L] (κ), whose sizes sum to 1, under 0 for words
    that name what must not be there; `probe_weights` [P+L] (ν), which sum to 1; `tokens` the L words as written. A
    model without a pair head has no words and no probes.
    """

    vector: Floats
    words: Floats
    probes: Floats
    word_weights: Floats
    probe_weights: Floats
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairScores:
    """One query against K candidates: `score` [K] (the whole S), `word_scores` [K, L] (x_k), `boundary` (t_c)."""

    score: Floats
    word_scores: Floats
    boundary: float


def one_vector(vector: Floats) -> QueryFeatures:
    """Return the query of a model without a pair head: `vector` [d] and nothing else."""
    rows = np.empty((0, len(vector)), np.float32)
    return QueryFeatures(vector, rows, rows, rows[:, 0], rows[:, 0], ())


def no_evidence(score: Floats) -> PairScores:
    """Return `score` [K] as that of a model that does not look at words."""
    return PairScores(score, np.empty((len(score), 0), np.float32), 0.0)


def grid_of(scorer: object) -> tuple[int, int] | None:
    """Return the (rows, columns) of the cells that come first among an image's regions.

    `grid` is an attribute that a scorer need not have; None where there is no such grid.
    """
    found: tuple[int, int] | None = getattr(scorer, "grid", None)
    return found


def mix_of(scorer: object) -> tuple[float, float]:
    """Return ω_g and ω_c: how much the stage-1 product and the words count in S.

    `mix` is an attribute that a scorer need not have: S is then taken for the stage-1 product.
    """
    found: tuple[float, float] = getattr(scorer, "mix", (1.0, 0.0))
    return found


class Boundaries(NamedTuple):
    """t_c and t_v of a pair head, and how many of an image's last regions are views of the whole."""

    cross: float
    visual: float
    views: int


def boundaries_of(scorer: object) -> Boundaries | None:
    """Return what a scorer's correspondences are held against.

    `boundaries` is an attribute that a scorer need not have; None where there is no pair head.
    """
    found: Boundaries | None = getattr(scorer, "boundaries", None)
    return found


class Scorer(Protocol):
    """Encodes images, composes queries, scores pairs: a checkpoint in torch or a bundle in ONNX Runtime."""

    @property
    def fingerprint(self) -> str:
        """Identify the weights: features of different fingerprints must not be mixed."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Return the (height, width) that `encode_images` takes."""

    def encode_images(self, pixels: Pixels) -> TargetFeatures:
        """Encode `pixels` [B, H, W, 3] uint8, already fitted to `image_size`."""

    def compose(self, references: TargetFeatures, texts: Sequence[str]) -> list[QueryFeatures]:
        """Compose B references with B texts. Raises TextError for a text without a known word."""

    def score_pairs(self, query: QueryFeatures, targets: TargetFeatures) -> PairScores:
        """Score one query against K targets."""
