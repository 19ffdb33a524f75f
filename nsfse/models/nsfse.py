"""NSFSE: the wiring of encoders, composer and similarity head; nothing else."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.autocast import widened
from nsfse.models.backbones.base import reached
from nsfse.models.backbones.registry import BACKBONES
from nsfse.models.composer import Composer
from nsfse.models.similarity_head import QuerySide, Reading, SimilarityHead
from nsfse_runtime.errors import DataError
from nsfse_runtime.types import RankingMode


class Encoders(nn.Module):
    """Images and texts → unit rows of d: what NSFSE and the baselines share."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        if config.backbone not in BACKBONES:
            raise DataError(f"model.backbone: no backbone {config.backbone!r}; there are: {', '.join(BACKBONES)}")
        self.config = config
        self.image_encoder, self.text_encoder = BACKBONES[config.backbone](config, vocabulary)

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `pixels` [B, H, W, 3] uint8 into unit vectors [B, d] and unit regions [B, R, d].

        While a frozen trunk trains, its kept features [B, R, C] come in place of pixels (nsfse.models.pretrained).
        """
        if pixels.ndim == 3:
            vectors, regions = self.image_encoder.get_submodule("tail")(pixels.float())
            return vectors, regions
        planes = pixels.permute(0, 3, 1, 2).float() / 255.0
        vectors, regions = self.image_encoder(planes)
        return vectors, regions

    def encode_text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `ids` [B, L] with `mask` [B, L] into unit words [B, L, d] and unit sentences [B, d]."""
        words, sentence = self.text_encoder(ids, mask)
        return words, sentence


class NSFSE(Encoders):
    """Negative-sensitive framework with semantic enhancement (docs/method.md)."""

    mode = RankingMode.TWO_STAGE

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__(config, vocabulary)
        self.composer = Composer(config.dim, 4 * config.dim)
        self.enhance = nn.Linear(2 * config.dim, config.dim)
        nn.init.zeros_(self.enhance.weight)
        self.head = SimilarityHead(config)
        self.views = nn.Linear(3 * config.dim, config.global_tokens * config.dim)
        self.stage1_scale = nn.Parameter(torch.tensor(3.0))  # log of τ_g
        self.head_scale = nn.Parameter(torch.tensor(2.3))  # log of τ

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode as `Encoders` does; the last V of R + V regions are views of the whole image.

        "Without a collar" is true of no single place: some other region never has one.
        """
        vectors, regions = super().encode_images(pixels)
        pooled = torch.cat([reached(vectors, self.config.head_grad_scale), regions.mean(1), regions.amax(1)], -1)
        views = widened(self.views(pooled)).unflatten(-1, (self.config.global_tokens, self.config.dim))  # type: ignore[no-untyped-call]
        return vectors, torch.cat([regions, F.normalize(views, dim=-1)], 1)

    def compose(
        self, vectors: Tensor, regions: Tensor, words: Tensor, sentence: Tensor, mask: Tensor
    ) -> tuple[Tensor, QuerySide]:
        """Return the stage-1 query [B, d] and the query's half of the head."""
        reading = self.head.read(words, sentence, mask, regions)
        return self.stage1(vectors, sentence, reading), self.head.query_side(reading, sentence, regions)

    def stage1(self, vectors: Tensor, sentence: Tensor, reading: Reading) -> Tensor:
        """Compose the stage-1 query [B, d]; the sentence is enhanced by what its words found in the reference."""
        enhanced = F.normalize(sentence + self.enhance(reading.gist()), dim=-1)
        query: Tensor = self.composer(vectors, enhanced)
        return query
