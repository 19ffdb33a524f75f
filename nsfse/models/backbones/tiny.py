"""The small backbone that needs no weights: a residual CNN of a few hundred thousand parameters."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.autocast import widened
from nsfse.models.backbones.base import Backbone, ImageEncoder, TextEncoder, scale_gradient
from nsfse.models.backbones.text import GruTextEncoder
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


class TinyImageEncoder(ImageEncoder):
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
        regions = self.region(scale_gradient(cells, self.head_grad_scale)).flatten(2).transpose(1, 2)
        pooled = [cells.mean((2, 3)), maps[-1].amax((2, 3))]
        vectors = self.vector(torch.cat(pooled, -1))
        return F.normalize(widened(vectors), dim=-1), F.normalize(widened(regions), dim=-1)


class TinyBackbone(Backbone):
    """`TinyImageEncoder` and a GRU over words, both from random weights."""

    name = "tiny"
    reads_weights = False

    def build(self, config: ModelConfig, vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
        """Return both encoders. Raises DataError for sides that are no multiple of 16."""
        if any(side <= 0 or side % 16 for side in config.image_size):
            size = list(config.image_size)
            raise DataError(f"model.image_size: {size} must be multiples of 16 for the tiny backbone")
        return TinyImageEncoder(config), GruTextEncoder(vocabulary, config)

    def narrowest_channels(self, config: ModelConfig) -> int:
        """Return the channels of the stem."""
        return config.width
