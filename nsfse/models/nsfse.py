"""NSFSE: encoders, composer and similarity head, wired together."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.ablations import make_head
from nsfse.models.attribute_blocks import AttributeBlocks
from nsfse.models.autocast import widened
from nsfse.models.backbones.base import scale_gradient
from nsfse.models.composer import Composer
from nsfse.models.encoders import Encoders
from nsfse.models.similarity_head import PairSimilarities, QueryEncoding, TextReading
from nsfse_runtime.types import RankingMode


class NSFSE(Encoders):
    """Negative-sensitive framework with semantic enhancement (docs/method.md)."""

    mode = RankingMode.TWO_STAGE

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__(config, vocabulary)
        self.composer = Composer(config.dim, 4 * config.dim)
        self.enhance = nn.Linear(2 * config.dim, config.dim)
        nn.init.zeros_(self.enhance.weight)
        self.blocks = AttributeBlocks(config.dim, config.attributes) if config.attributes else None
        self.head = make_head(config)
        self.views = nn.Linear(3 * config.dim, config.global_tokens * config.dim)
        self.stage1_scale = nn.Parameter(torch.tensor(3.0))  # log of τ_g
        self.head_scale = nn.Parameter(torch.tensor(2.3))  # log of τ

    def _image_outputs(self, vectors: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Append the global tokens to the regions [B, R + V, d]: the last V describe the whole image.

        "Without a collar" is true of no single place: some other region never has one.
        """
        pooled = torch.cat([scale_gradient(vectors, self.config.head_grad_scale), regions.mean(1), regions.amax(1)], -1)
        tokens = widened(self.views(pooled)).unflatten(-1, (self.config.global_tokens, self.config.dim))  # type: ignore[no-untyped-call]
        if self.blocks:
            vectors = self.blocks.describe(vectors)
        return vectors, torch.cat([regions, F.normalize(tokens, dim=-1)], 1)

    def compose(
        self, vectors: Tensor, regions: Tensor, words: Tensor, sentence: Tensor, mask: Tensor
    ) -> tuple[Tensor, QueryEncoding]:
        """Compose references with texts.

        Args:
            vectors: The references' unit vectors [B, d].
            regions: Their unit regions [B, R + V, d].
            words: Unit words [B, L, d].
            sentence: Unit sentences [B, d].
            mask: True [B, L] where there is a word.

        Returns:
            The stage-1 query [B, d], a unit vector, and what the head compares with candidates.
        """
        reading = self.head.read(words, sentence, mask, regions)
        return self.stage1(vectors, sentence, reading), self.head.encode_query(reading, sentence, regions)

    def stage1(self, vectors: Tensor, sentence: Tensor, reading: TextReading) -> Tensor:
        """Compose the stage-1 query [B, d]; the sentence is enhanced by what its words find in the reference."""
        enhanced = F.normalize(sentence + self.enhance(reading.summary_vector()), dim=-1)
        query: Tensor = self.composer(vectors, enhanced)
        return self.blocks.compose(vectors, enhanced, query) if self.blocks else query

    def total(self, queries: Tensor, vectors: Tensor, pair: PairSimilarities) -> Tensor:
        """Return S [B, M] of stage-1 `queries` [B, d] with M candidates each, their `vectors` [B, M, d]."""
        total = self.head.total(torch.einsum("bd,bmd->bm", queries, vectors), pair)
        if not self.blocks:
            return total
        return total + self.blocks.agreements(queries, vectors) @ self.blocks.agreement_weights

    def word_scores(self, words: Tensor, vectors: Tensor, pair: PairSimilarities) -> Tensor:
        """Return x [B, M, L] for the evidence: attributes of candidates count for words that name them.

        `words` are infused [B, L, d], `vectors` those of the candidates [B, M, d]. S does without: A_a says the same.
        """
        return pair.x + self.blocks.word_gains(words, vectors) if self.blocks else pair.x
