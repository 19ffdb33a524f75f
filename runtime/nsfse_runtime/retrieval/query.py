"""A query as a caller states it, and as the search takes it once it is composed (docs/queries.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import UsageError
from nsfse_runtime.gallery.filters import Where
from nsfse_runtime.retrieval.references import Reference
from nsfse_runtime.search.two_stage import pairs_scored
from nsfse_runtime.types import Floats, GalleryId, PairScores, Pixels, QueryFeatures, RankingMode, TargetFeatures

MAX_WEIGHT = 4.0  # of a text
_CORNER_DISCOUNT = np.float32(0.7)  # what a cell loses in a word's heatmap for being like the corners


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A query to a gallery.

    Attributes:
        references: Images to start from: files, bytes, pixels, or ids of the gallery; none for a
            search by words alone.
        texts: What should be different, one edit each; none for a search by images alone.
        negative_texts: What must not be there.
        negative_images: Images that hits must not be like.
        balance: From 0, like the image alone, over 0.5, both as trained, to 1, like the words
            alone; without images or without texts it has no effect.
        text_weights: How much each text counts, 1 as trained; 1 each by default.
        negative_text_weights: The same of the negative texts.

    The other fields are those of `Retriever.query`.
    """

    references: tuple[Reference, ...] = ()
    texts: tuple[str, ...] = ()
    negative_texts: tuple[str, ...] = ()
    negative_images: tuple[Reference, ...] = ()
    balance: float = 0.5
    k: int = 10
    offset: int = 0
    where: Where | None = None
    rerank: int = 100
    min_confidence: float = 0.0
    heatmaps: bool = False
    fields: tuple[str, ...] = ()
    group_by: str | None = None
    fold_duplicates: float | None = None
    text_weights: tuple[float, ...] = ()
    negative_text_weights: tuple[float, ...] = ()

    @property
    def is_simple(self) -> bool:
        """Return whether this is one image and one text, as the model was trained."""
        one_each = len(self.references) == 1 and len(self.texts) == 1 and self.weights == (1.0,)
        return one_each and not self.negative_texts and not self.negative_images and self.balance == 0.5

    @property
    def weights(self) -> tuple[float, ...]:
        """Return the weight of each text."""
        return self.text_weights or (1.0,) * len(self.texts)

    @property
    def negative_weights(self) -> tuple[float, ...]:
        """Return the weight of each negative text."""
        return self.negative_text_weights or (1.0,) * len(self.negative_texts)

    @property
    def is_alone(self) -> bool:
        """Return whether this is words without an image, or images without words."""
        return not self.references or not self.texts

    @property
    def block(self) -> int:
        """Return how many candidates stage 2 orders at a time, 0 without stage 2."""
        return max(self.rerank, self.k) if self.rerank else 0

    @property
    def share_of_words(self) -> float:
        """Return `balance`, 0 without texts and 1 without images."""
        if self.is_alone:
            return float(bool(self.texts))
        return self.balance

    def check(self, has_confidence: bool) -> None:
        """Raise UsageError for what cannot be answered, by a model with or without a confidence."""
        if self.k < 1 or self.rerank < 0 or self.offset < 0:
            raise UsageError(
                f"k is {self.k}, rerank is {self.rerank} and offset is {self.offset}; give a k of 1 or more, "
                "and a rerank and an offset of 0 or more"
            )
        if not 0 <= self.min_confidence <= 1:
            raise UsageError(f"min_confidence is {self.min_confidence}; give a confidence from 0 to 1")
        if not 0 <= self.balance <= 1:
            raise UsageError(f"balance is {self.balance}; give 0 (like the image) to 1 (like the words)")
        if not (self.fold_duplicates is None or 0 < self.fold_duplicates <= 1):
            raise UsageError(f"fold_duplicates is {self.fold_duplicates}; give a cosine over 0, up to 1: 0.98")
        _check_weights("text_weights", self.text_weights, "texts", self.texts)
        _check_weights("negative_text_weights", self.negative_text_weights, "negative_texts", self.negative_texts)
        if not self.references and not self.texts:
            raise UsageError("a query needs an image or a text; give references, texts, or both")
        if not self.min_confidence:
            return
        if not has_confidence:
            raise UsageError(
                "this model has no confidence, which min_confidence needs: train it to its end and export it again, "
                "or leave min_confidence at 0"
            )
        if not self.rerank:
            raise UsageError("without stage 2 there is no confidence, which min_confidence needs; give a rerank of 100")
        if not self.is_simple:
            raise UsageError(
                "only a query of one image and one text, of weight 1, has a confidence; leave min_confidence at 0"
            )


def _check_weights(name: str, weights: Sequence[float], of: str, texts: Sequence[str]) -> None:
    if weights and len(weights) != len(texts):
        raise UsageError(f"{name} has {len(weights)} numbers and {of} has {len(texts)}; give one number for each text")
    for weight in weights:
        if not 0 < weight <= MAX_WEIGHT:
            raise UsageError(f"{name} has {weight}; give numbers over 0 and up to {MAX_WEIGHT:g}, 1 for as trained")


@dataclass(frozen=True, slots=True)
class ResolvedQuery:
    """A query with what it may find (`selection`) and its images, those to avoid last: ids, or pixels [H, W, 3].

    `contents` are the SHA-256 of its images' files, which are not found. `fields` are the columns that its hits have,
    none for all.
    """

    query: Query
    selection: Any
    images: list[GalleryId | Pixels]
    contents: list[bytes]
    notes: tuple[str, ...]
    fields: tuple[str, ...]

    def shown(self, values: dict[str, str]) -> dict[str, str]:
        """Return those of a hit's columns that `fields` names."""
        return {name: values[name] for name in self.fields if name in values} if self.fields else values


@dataclass(frozen=True, slots=True)
class ComposedQuery:
    """A query as the search takes it.

    Attributes:
        vector: The stage-1 query [d].
        parts: One composed query for each reference.
        word_weights: κ [L] of all words for the evidence, whose sizes sum to 1.
        texts: Which of the L words are of one text.
        word_penalties: For each part what S loses for the words of N negative texts over the
            boundary [N, L].
        negative_queries: One query for each negative image.
        negative_thresholds: For each of these the score from which on it counts.
        needs_rerank: Whether stage 2 has anything to add.
        reference: The vector [d] of the image of a simple query.
        images: Features of the references, [m, d] and [m, R, d]; None without any.
    """

    vector: Floats
    parts: tuple[QueryFeatures, ...]
    word_weights: Floats
    texts: tuple[slice, ...]
    word_penalties: tuple[Floats, ...] = ()
    negative_queries: tuple[QueryFeatures, ...] = ()
    negative_thresholds: tuple[float, ...] = ()
    needs_rerank: bool = True
    reference: Floats | None = None
    images: TargetFeatures | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the words of all texts."""
        return self.parts[0].tokens

    @property
    def queries(self) -> tuple[QueryFeatures, ...]:
        """Return what stage 2 scores: `parts`, then `negative_queries`."""
        return self.parts + self.negative_queries

    def pairs_scored(self, mode: RankingMode, wanted: int, images: int) -> int:
        """Return how many candidates stage 2 scores where `wanted` are to be re-ranked (see two_stage.pairs_scored).

        Several queries together are no single vector: a model of one stage has a second one then.
        """
        if not self.needs_rerank:
            return 0
        return pairs_scored(mode, wanted, images) or (wanted if len(self.queries) > 1 else 0)

    def combined(self, pairs: Sequence[PairScores]) -> PairScores:
        """Return the whole score of K candidates from those of `queries`, each of K."""
        if not self.word_penalties:
            return pairs[0]
        positive, negative = pairs[: len(self.parts)], pairs[len(self.parts) :]
        scores = [_penalise(pair, penalties) for pair, penalties in zip(positive, self.word_penalties, strict=True)]
        score = fuse_references(scores)
        for pair, threshold in zip(negative, self.negative_thresholds, strict=True):
            score = score - 2 * np.maximum(0, pair.score - np.float32(threshold))
        words: Floats = np.mean([pair.word_scores for pair in positive], axis=0, dtype=np.float32)
        return PairScores(score, words, positive[0].boundary)

    def satisfies_all_texts(self, pair: PairScores) -> NDArray[np.bool_]:
        """Return which of K candidates are over the boundary in every text, by the weighted mean of its words."""
        margins = pair.word_scores - pair.boundary
        satisfied = [margins[:, text] @ self.word_weights[text] >= 0 for text in self.texts]
        return np.logical_and.reduce(satisfied) if satisfied else np.ones(len(margins), np.bool_)

    def misses_heaviest_word(self, pair: PairScores) -> NDArray[np.bool_]:
        """Return which of K candidates mismatch the word of the greatest weight of a text."""
        misses = np.zeros(len(pair.word_scores), np.bool_)
        for text in self.texts:
            if len(kappa := self.word_weights[text]):
                heaviest = int(np.argmax(np.abs(kappa)))
                misses |= (pair.word_scores[:, text][:, heaviest] >= pair.boundary) != (kappa[heaviest] >= 0)
        return misses

    def heatmaps(self, cells: Floats, columns: int) -> Floats:
        """Return the heatmap of each of L words in K images, [K, L, R]: the mean over the references."""
        mean: Floats = np.mean([heatmaps(part.words, cells, columns) for part in self.parts], axis=0)
        return mean


def heatmaps(words: Floats, cells: Floats, columns: int) -> Floats:
    """Return where each word is in each image.

    Args:
        words: L words [L, d].
        cells: The cells of K images [K, R, d], row by row.
        columns: Cells in a row.

    Returns:
        [K, L, R]. A word's greatest value is its greatest correspondence with any cell. Other cells
        are lower as they correspond less, and as they resemble the image's corners, where the
        background is.
    """
    products = words @ cells.swapaxes(1, 2)
    corners = cells[:, [0, columns - 1, -columns, -1]]
    like_corners = (cells @ corners.swapaxes(1, 2)).mean(2)
    discounted = products - _CORNER_DISCOUNT * like_corners[:, None]
    shifted: Floats = discounted + (products.max(2) - discounted.max(2))[..., None]
    return shifted


def _penalise(pair: PairScores, penalties: Floats) -> Floats:
    """Return the score [K] less what the words of N texts are over the boundary, by their `penalties` [N, L]."""
    if not len(penalties):
        return pair.score
    excess = (pair.word_scores - np.float32(pair.boundary)) @ penalties.T
    penalised: Floats = pair.score - np.maximum(0, excess).sum(1)
    return penalised


def fuse_references(scores: Sequence[Floats]) -> Floats:
    """Return one score [K] from those of several references: the least, each less its mean over the candidates."""
    if len(scores) == 1:
        return scores[0]
    stacked = np.stack(scores)
    means = stacked.mean(1, keepdims=True)
    fused: Floats = (stacked - means).min(0) + means.mean()
    return fused
