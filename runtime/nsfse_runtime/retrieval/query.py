"""What a query may ask, and what the search makes of it once it is composed (docs/queries.md)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsfse_runtime.errors import UsageError
from nsfse_runtime.search.two_stage import pairs_scored
from nsfse_runtime.types import Floats, PairScores, Pixels, QueryFeatures, RankingMode

if TYPE_CHECKING:
    from PIL.Image import Image

_CORNERS = np.float32(0.7)  # what a cell loses in a word's map for being like the corners


class GalleryId(str):
    """The id of a gallery image and nothing else: no file is looked for under that name."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """An image that was decoded elsewhere: its pixels [H, W, 3] and the SHA-256 of its file."""

    pixels: Pixels
    sha256: bytes


Reference = Union[bytes, str, os.PathLike[str], GalleryId, Pixels, Upload, "Image"]
"""An image's bytes, a file or an id, an id alone, pixels [H, W, 3] (uint8, RGB), an upload, or a Pillow image."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A question to a gallery.

    `references` are one image or more to start from: files, bytes, or ids of the gallery. `texts` say what should be
    different, one edit each; `negative_texts` name what must not be there, `negative_images` are images that hits must
    not be like. `balance` runs from 0, like the image alone, over 0.5, both as trained, to 1, like the words alone.
    `k`, `where`, `rerank` and `min_confidence` are those of `Retriever.query`; with `heatmaps` the evidence has its
    regions.
    """

    references: tuple[Reference, ...]
    texts: tuple[str, ...] = ()
    negative_texts: tuple[str, ...] = ()
    negative_images: tuple[Reference, ...] = ()
    balance: float = 0.5
    k: int = 10
    where: Mapping[str, str | Sequence[str]] | None = None
    rerank: int = 100
    min_confidence: float = 0.0
    heatmaps: bool = False

    @property
    def plain(self) -> bool:
        """Return whether this is one image and one text, as the model was trained."""
        several = len(self.references) > 1 or len(self.texts) != 1 or self.negative_texts or self.negative_images
        return not several and self.balance == 0.5

    def check(self) -> None:
        """Raise UsageError for what no gallery can answer."""
        if self.k < 1 or self.rerank < 0:
            raise UsageError(
                f"k is {self.k} and rerank is {self.rerank}; give a k of 1 or more and a rerank of 0 or more"
            )
        if not 0 <= self.min_confidence <= 1:
            raise UsageError(f"min_confidence is {self.min_confidence}; give a confidence from 0 to 1")
        if not 0 <= self.balance <= 1:
            raise UsageError(f"balance is {self.balance}; give 0 (like the image) to 1 (like the words)")
        if not self.references:
            raise UsageError("a query needs an image to start from; give one or more references")
        if not self.texts and self.balance > 0:
            raise UsageError("a query needs a text; say what should be different, or give a balance of 0")


@dataclass(frozen=True, slots=True)
class Asked:
    """A query as the search takes it.

    `vector` [d] is stage 1's; `parts` has one composed query a reference, and `unwanted` for each of them what S loses
    for the words of N minus-texts over the boundary [N, L]. `against` has a query for each image to avoid, and
    `bearable` how high that may score before it counts. `tokens` are the L words of all texts, `word_weights` [L] their
    κ for the evidence, whose sizes sum to 1, `texts` which words are of one text. `told` says whether stage 2 has
    anything to add. `reference` [d] is the vector of its image where it is one image and one text.
    """

    vector: Floats
    parts: tuple[QueryFeatures, ...]
    word_weights: Floats
    texts: tuple[slice, ...]
    unwanted: tuple[Floats, ...] = ()
    against: tuple[QueryFeatures, ...] = ()
    bearable: tuple[float, ...] = ()
    told: bool = True
    reference: Floats | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the words of all texts."""
        return self.parts[0].tokens

    @property
    def all(self) -> tuple[QueryFeatures, ...]:
        """Return what stage 2 scores: `parts`, then `against`."""
        return self.parts + self.against

    def pairs_scored(self, mode: RankingMode, wanted: int, images: int) -> int:
        """Return how many candidates stage 2 scores where `wanted` are to be re-ranked (see two_stage.pairs_scored).

        What several queries say together is no single vector: a model of one stage has a second one then.
        """
        if not self.told:
            return 0
        return pairs_scored(mode, wanted, images) or (wanted if len(self.all) > 1 else 0)

    def combined(self, pairs: Sequence[PairScores]) -> PairScores:
        """Return the whole score of K candidates from those of `all`, each of K."""
        if not self.unwanted:
            return pairs[0]
        wanted, avoided = pairs[: len(self.parts)], pairs[len(self.parts) :]
        score = like_all([_less(pair, losses) for pair, losses in zip(wanted, self.unwanted, strict=True)])
        for pair, bearable in zip(avoided, self.bearable, strict=True):
            score = score - 2 * np.maximum(0, pair.score - np.float32(bearable))
        words: Floats = np.mean([pair.word_scores for pair in wanted], axis=0, dtype=np.float32)
        return PairScores(score, words, wanted[0].boundary)

    def fulfilled(self, pair: PairScores) -> NDArray[np.bool_]:
        """Return which of K candidates are over the boundary in every text, its words taken together by their κ."""
        margins = pair.word_scores - pair.boundary
        each = [margins[:, text] @ self.word_weights[text] >= 0 for text in self.texts]
        return np.logical_and.reduce(each) if each else np.ones(len(margins), np.bool_)

    def struck(self, pair: PairScores) -> NDArray[np.bool_]:
        """Return which of K candidates mismatch the word of the greatest weight of a text."""
        found = np.zeros(len(pair.word_scores), np.bool_)
        for text in self.texts:
            if len(kappa := self.word_weights[text]):
                heaviest = int(np.argmax(np.abs(kappa)))
                found |= (pair.word_scores[:, text][:, heaviest] >= pair.boundary) != (kappa[heaviest] >= 0)
        return found

    def heatmaps(self, cells: Floats, columns: int) -> Floats:
        """Return where each of L words is in K images, [K, L, R] (see heatmaps), the mean over the references."""
        found: Floats = np.mean([heatmaps(part.words, cells, columns) for part in self.parts], axis=0)
        return found


def heatmaps(words: Floats, cells: Floats, columns: int) -> Floats:
    """Return where each of `words` [L, d] is in K images of `cells` [K, R, d], rows of `columns` each: [K, L, R].

    A word's greatest value is its greatest correspondence with any cell; others lie under it as they correspond less,
    and as they look like the corners of the image, where the background is.
    """
    found = words @ cells.swapaxes(1, 2)
    corners = cells[:, [0, columns - 1, -columns, -1]]
    like_corners = (cells @ corners.swapaxes(1, 2)).mean(2)
    weighed = found - _CORNERS * like_corners[:, None]
    moved: Floats = weighed + (found.max(2) - weighed.max(2))[..., None]
    return moved


def _less(pair: PairScores, losses: Floats) -> Floats:
    """Return the score [K] less what the words of N texts are over the boundary, by their `losses` [N, L]."""
    if not len(losses):
        return pair.score
    over = (pair.word_scores - np.float32(pair.boundary)) @ losses.T
    found: Floats = pair.score - np.maximum(0, over).sum(1)
    return found


def like_all(scores: Sequence[Floats]) -> Floats:
    """Return one score [K] from those of several references: the least, each less its mean over the candidates."""
    if len(scores) == 1:
        return scores[0]
    each = np.stack(scores)
    means = each.mean(1, keepdims=True)
    found: Floats = (each - means).min(0) + means.mean()
    return found
