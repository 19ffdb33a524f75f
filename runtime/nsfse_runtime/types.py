"""Types that the packages share: features, scores, what a model says of itself, and the protocol of a scorer."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Reals = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]


class RankingMode(IntEnum):
    """How a model ranks a gallery; the value is what a bundle's manifest holds as `stages`."""

    ONE_STAGE = 1
    """By the inner product of vectors alone."""
    TWO_STAGE = 2
    """By vectors first, then the best of them again by the score of pairs."""
    ALL_PAIRS = 3
    """By the score of every pair; such a model cannot be exported."""


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

    Attributes:
        vector: The stage-1 query [d].
        words: The infused words [L, d].
        probes: The visual probes [P+L, d]: the P regions of the reference that remain, then one a
            word.
        word_weights: κ [L]; the sizes sum to 1, words that must not be there are under 0.
        probe_weights: ν [P+L], which sum to 1.
        tokens: The L words as written.

    A model without a pair head has no words and no probes.
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


def vector_only_query(vector: Floats) -> QueryFeatures:
    """Return the query of a model without a pair head: `vector` [d] and nothing else."""
    rows = np.empty((0, len(vector)), np.float32)
    return QueryFeatures(vector, rows, rows, rows[:, 0], rows[:, 0], ())


def no_evidence(score: Floats) -> PairScores:
    """Return `score` [K] as that of a model that does not look at words."""
    return PairScores(score, np.empty((len(score), 0), np.float32), 0.0)


class Boundaries(NamedTuple):
    """t_c and t_v of a pair head, and how many of an image's last regions are views of the whole."""

    cross: float
    visual: float
    views: int


class ConfidenceModel(Protocol):
    """Turns the features of a hit into the probability that it is right."""

    @property
    def threshold(self) -> float:
        """Return the confidence from which on a hit is a match."""

    @property
    def word_bounds(self) -> tuple[float, float] | None:
        """Return from where on a word is mismatched and matched, over the boundary."""

    @property
    def views(self) -> int:
        """Return how many views of an image it looks at."""

    def confidence(self, features: Reals) -> Reals:
        """Return the confidence [K] of hits with `features` [K, F], 0 to 1."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model says of itself.

    Attributes:
        mode: How it ranks.
        mix: ω_g and ω_c: the weights of the stage-1 product and of the words in S.
        grid: (rows, columns) of the cells that come first among an image's regions; None without
            such a grid.
        boundaries: Those of its pair head; None without one.
        confidence: The model of a match's confidence; None where none was fitted.
        device: What computes, such as "cpu" or "cuda".
        bundle_path: The bundle's folder; None for a model that is not a bundle.
    """

    mode: RankingMode
    mix: tuple[float, float]
    grid: tuple[int, int] | None
    boundaries: Boundaries | None
    confidence: ConfidenceModel | None
    device: str
    bundle_path: Path | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model reads of one text.

    Attributes:
        words: The L words that are encoded, as written (normalised).
        unknown: Words that the vocabulary does not have; they are left out.
        positions: For each unknown word, how many of `words` come before it.
        unread: Words after the model's limit, known or not.
    """

    words: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    positions: tuple[int, ...] = ()
    unread: tuple[str, ...] = ()


class TextReader(Protocol):
    """Reports which words of a text a model knows."""

    @property
    def max_words(self) -> int:
        """Return how many words of a text are read."""

    def read(self, text: str) -> Reading:
        """Return which words of `text` are read, unknown, and beyond the limit. Raises TextError."""

    def nearest(self, word: str) -> str | None:
        """Return the known word that `word` may be a slip of, None where there is none."""


class Scorer(Protocol):
    """Encodes images, composes queries, scores pairs: a checkpoint in torch or a bundle in ONNX Runtime."""

    @property
    def fingerprint(self) -> str:
        """Identify the weights: features of different fingerprints must not be mixed."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Return the (height, width) that `encode_images` takes."""

    @property
    def info(self) -> ModelInfo:
        """Return what the model says of itself. Raises IntegrityError where its bundle is damaged."""

    @property
    def tokenizer(self) -> TextReader | None:
        """Return what reads texts; None for a model that does not say how it reads a text."""

    def encode_images(self, pixels: Pixels) -> TargetFeatures:
        """Encode `pixels` [B, H, W, 3] uint8, already fitted to `image_size`."""

    def sentence(self, texts: Sequence[str]) -> Floats:
        """Return sentence vectors [B, d] of B texts, comparable with images' vectors. Raises TextError."""

    def compose(self, references: TargetFeatures, texts: Sequence[str]) -> list[QueryFeatures]:
        """Compose B references with B texts. Raises TextError for a text without a known word."""

    def score_pairs(self, query: QueryFeatures, targets: TargetFeatures) -> PairScores:
        """Score one query against K targets."""


class GalleryId(str):
    """The id of a gallery image and nothing else: no file is looked for under that name."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """An image that was decoded elsewhere: its pixels [H, W, 3] and the SHA-256 of its file."""

    pixels: Pixels
    sha256: bytes


ImageRef = GalleryId | Path | bytes | Pixels | Upload
"""An image of a query by one of five kinds: an id, a file, the bytes of a file, pixels [H, W, 3], or an upload."""


class VectorSet(Protocol):
    """One generation of a gallery as stage 1 sees it: N vectors and what names them."""

    @property
    def generation(self) -> int:
        """Return the number of this generation."""

    @property
    def vectors(self) -> Floats:
        """Return the unit vectors [N, d]."""

    @property
    def vector_keys(self) -> NDArray[np.uint64]:
        """Return what names each row's vector [N], in this generation and any other."""

    def __len__(self) -> int:
        """Return N."""
