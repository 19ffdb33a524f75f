"""The head with one of its parts taken out, to measure what the part is worth (docs/method.md §8)."""

from dataclasses import replace

import torch
from torch import Tensor

from nsfse.config import ModelConfig
from nsfse.models.similarity_head import PairSimilarities, QueryEncoding, SimilarityHead, TextReading


def make_head(config: ModelConfig) -> SimilarityHead:
    """Return the head, or the one that `model.words` and `model.branches` ablate."""
    if config.words == "each" and config.branches == "both":
        return SimilarityHead(config)
    return AblatedHead(config)


class AblatedHead(SimilarityHead):
    """A head that reads the sentence in place of its words, or that has one branch alone, or both."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.sentence_only = config.words == "sentence"
        self.has_cross, self.has_visual = config.branches != "visual", config.branches != "cross"

    def read(self, words: Tensor, sentence: Tensor, mask: Tensor, regions: Tensor) -> TextReading:
        """Read the sentence as one word where `sentence_only`."""
        if self.sentence_only:
            words, mask = sentence[:, None], mask[:, :1]
        return super().read(words, sentence, mask, regions)

    def correspond(
        self, query: QueryEncoding, across: Tensor, near: Tensor, view: Tensor, gram: Tensor
    ) -> PairSimilarities:
        """Set the similarity of a missing branch to 0. It is not left out: a graph of the head keeps all its inputs."""
        pair = super().correspond(query, across, near, view, gram)
        if not self.has_cross:
            pair = replace(pair, cross=0.0 * pair.cross)
        return pair if self.has_visual else replace(pair, visual=0.0 * pair.visual)

    @torch.no_grad()
    def fusion_weights(self) -> Tensor:
        """Return ω [3], 0 for a missing branch."""
        weights = super().fusion_weights()
        return weights * torch.tensor([True, self.has_cross, self.has_visual], device=weights.device)
