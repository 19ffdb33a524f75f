"""Backbones behind two small interfaces: images → (vectors, regions), words → (words, sentence).

A backbone is an entry of `BACKBONES`: a function of the model's configuration and vocabulary size that returns the two
encoders. Everything after them only sees unit rows of the common dimension d.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.autocast import in_full, widened
from nsfse.models.backbones.base import reached
from nsfse_runtime.errors import DataError


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, [B, i, H, W] → [B, o, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.body(x) + self.shortcut(x))


class TinyImageEncoder(nn.Module):
    """A small residual CNN: a stem, then stages of doubling width; regions are the last stage's cells (1/16 size)."""

    mean: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_grad_scale = config.head_grad_scale
        widths = [config.width * 2**i for i in range(4)]
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        stages = []
        for inputs, outputs in itertools.pairwise(widths):
            rest = [ResidualBlock(outputs, outputs, 1) for _ in range(config.depth - 1)]
            stages.append(nn.Sequential(ResidualBlock(inputs, outputs, 2), *rest))
        self.stages = nn.ModuleList(stages)
        # Colour lives in the early stages, kind in the last: regions and vector see all of them.
        self.region = nn.Conv2d(sum(widths), config.dim, 1)
        self.vector = nn.Linear(sum(widths) + widths[-1], config.dim)
        self.register_buffer("mean", torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `pixels` [B, 3, H, W] in 0..1 into unit vectors [B, d] and unit regions [B, R, d]."""
        maps = [self.stem((pixels - self.mean) * 4.0)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        cells = torch.cat([F.avg_pool2d(x, x.shape[-1] // maps[-1].shape[-1]) for x in maps], 1)
        regions = self.region(reached(cells, self.head_grad_scale)).flatten(2).transpose(1, 2)
        pooled = [cells.mean((2, 3)), maps[-1].amax((2, 3))]
        vectors = self.vector(torch.cat(pooled, -1))
        return F.normalize(widened(vectors), dim=-1), F.normalize(widened(regions), dim=-1)


class MaskedGru(nn.GRU):
    """A bidirectional GRU that reads each row to its own length: a padded word changes nothing and its state is 0."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs // 2, batch_first=True, bidirectional=True)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Read `embedded` [B, L, i] where `mask` [B, L]; return states [B, L, o]."""
        lengths = mask.sum(1).cpu()
        with in_full(embedded.device):  # its state would be rounded again at every word
            packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            states, _ = super().forward(packed)
        return nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=mask.shape[1])[0]


class GruTextEncoder(nn.Module):
    """Word embeddings and a bidirectional GRU; a padded word changes nothing.

    A word is its embedding, whatever stands around it: "red" is looked for alike in "make it red" and in "not red".
    What stands around it is the sentence's, and its sign's (nsfse.models.similarity_head).
    """

    def __init__(self, vocabulary: int, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.dim, padding_idx=0)
        self.head_grad_scale = config.head_grad_scale
        self.gru = MaskedGru(config.dim, config.dim)
        self.word = nn.Linear(config.dim, config.dim)
        self.sentence = nn.Linear(2 * config.dim, config.dim)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `ids` [B, L] with `mask` [B, L] into unit words [B, L, d] and unit sentences [B, d]."""
        embedded = self.embedding(ids)
        both = torch.cat([embedded, self.gru(embedded, mask)], dim=-1)
        peak = both.masked_fill(~mask[..., None], -1e4).amax(1)
        words = F.normalize(widened(self.word(reached(embedded, self.head_grad_scale))), dim=-1) * mask[..., None]
        return words, F.normalize(widened(self.sentence(peak)), dim=-1)


def _tiny(config: ModelConfig, vocabulary: int) -> tuple[nn.Module, nn.Module]:
    if any(side <= 0 or side % 16 for side in config.image_size):
        raise DataError(f"model.image_size: {list(config.image_size)} must be multiples of 16 for the tiny backbone")
    return TinyImageEncoder(config), GruTextEncoder(vocabulary, config)


def _efficientnet(config: ModelConfig, vocabulary: int) -> tuple[nn.Module, nn.Module]:
    from nsfse.models.backbones.efficientnet import build

    return build(config, vocabulary)


def _resnet(config: ModelConfig, vocabulary: int) -> tuple[nn.Module, nn.Module]:
    from nsfse.models.backbones.resnet import build

    return build(config, vocabulary)


def _clip(config: ModelConfig, vocabulary: int) -> tuple[nn.Module, nn.Module]:
    from nsfse.models.backbones.clip import build

    return build(config, vocabulary)


BACKBONES: dict[str, Callable[[ModelConfig, int], tuple[nn.Module, nn.Module]]] = {
    "tiny": _tiny,
    "efficientnet-lite0": _efficientnet,
    "resnet50": _resnet,
    "clip": _clip,
}
