"""What a backbone is: an image encoder, a text encoder, and how their first weights are read.

An image encoder with pre-trained weights is a trunk, which they fill, and a projection, which learns what this model
needs. They meet in one tensor, the trunk's features [B, R, C]. Where the whole trunk is frozen, features are cached
instead of images, and only the projection is left to compute.
"""

from abc import ABC, abstractmethod

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.autocast import widened
from nsfse_runtime.errors import DataError

DROPOUT = 0.2


RANDOM = "random"


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return `x`, of any shape, with its gradient multiplied by `scale` (model.head_grad_scale)."""
    return x if scale == 1 else scale * x + (1 - scale) * x.detach()


class ImageEncoder(nn.Module, ABC):
    """Images [B, 3, H, W] in 0..1 → unit vectors [B, d] and unit regions [B, R, d]."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `pixels` [B, 3, H, W]."""


class TextEncoder(nn.Module, ABC):
    """Word ids [B, L] and their mask → unit words [B, L, d] and unit sentences [B, d]."""

    @abstractmethod
    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `ids` [B, L] where `mask` [B, L]."""


class Backbone(ABC):
    """One kind of encoders. A subclass in a file of its own and one line in `registry.BACKBONES` add one."""

    name: str
    reads_weights = True
    """Whether `model.weights` can name a file or folder to start from."""
    default_weights = False
    """Whether an empty `model.weights` still means pre-trained weights."""
    has_unknown_word = True
    """Whether the tokenizer has an unknown word, which training puts in place of some words."""

    @abstractmethod
    def build(self, config: ModelConfig, vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
        """Return both encoders with random weights. Raises DataError for settings that do not fit."""

    def is_pretrained(self, config: ModelConfig) -> bool:
        """Return whether the encoders start from weights made elsewhere."""
        if not config.weights:
            return self.default_weights
        return self.reads_weights and config.weights != RANDOM

    def resolve(self, config: ModelConfig) -> ModelConfig:
        """Return `config` with what its weights decide. Raises DataError for settings that contradict each other."""
        if config.weights and not self.reads_weights:
            raise DataError(f"model.weights: the {self.name} backbone has none to read; choose another model.backbone")
        return config

    def tokenizer(self, config: ModelConfig) -> Tokenizer | None:
        """Return the tokenizer that comes with the weights, or None."""
        return None

    def load_weights(self, images: ImageEncoder, texts: TextEncoder, weights: str) -> None:
        """Fill both encoders from `weights`, the value of model.weights. Raises NotFoundError, DataError and others."""
        raise DataError(f"model.weights: the {self.name} backbone has none to read; choose another model.backbone")

    def narrowest_channels(self, config: ModelConfig) -> int:
        """Return the channels that decide whether oneDNN is safe (nsfse.training.workarounds)."""
        return 2 * config.dim


class Trunk(nn.Module, ABC):
    """Images [B, 3, H, W] in 0..1 → features [B, R, C], normalisation of the images included."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """Return the parts that `model.frozen_stages` counts, the one nearest to the image first."""


class TrunkEncoder(ImageEncoder):
    """A trunk and its projection `tail`: features [B, R, C] → unit vectors [B, d], unit regions [B, R, d]."""

    def __init__(self, trunk: Trunk, tail: nn.Module) -> None:
        super().__init__()
        self.trunk, self.tail = trunk, tail
        self.frozen = 0

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `pixels` [B, 3, H, W] in 0..1 into unit vectors [B, d] and unit regions [B, R, d]."""
        return self.project(self.trunk(pixels))

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the trunk's `features` [B, R, C] into unit vectors [B, d] and unit regions [B, R, d]."""
        vectors, regions = self.tail(features)
        return vectors, regions

    def freeze(self, count: int) -> None:
        """Leave the first `count` stages as they are, statistics of their normalisation included; −1: the whole trunk.

        Raises DataError where there are not so many.
        """
        stages = len(self.trunk.stages())
        if not -1 <= count <= stages:
            raise DataError(f"model.frozen_stages: {count}; this trunk has {stages} stages, and -1 freezes all of it")
        self.frozen = count
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.trunk] if self.frozen == -1 else self.trunk.stages()[: self.frozen]

    def train(self, mode: bool = True) -> "TrunkEncoder":
        """Switch to training or evaluation mode, frozen parts excepted.

        A wholly frozen trunk is not touched even for a moment: another thread may be reading it.
        """
        self.training = mode
        self.tail.train(mode)
        if self.frozen != -1:
            self.trunk.train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self


class CellProjection(nn.Module):
    """Cells of several stages, and what two convolutions make of them, → regions; their mean and peak → vector."""

    def __init__(self, widths: tuple[int, ...], config: ModelConfig) -> None:
        super().__init__()
        cells, inner, self.last = sum(widths), 2 * config.dim, widths[-1]
        self.head_grad_scale, self.channel_dropout = config.head_grad_scale, config.channel_dropout
        self.grid = tuple(side // config.stride for side in config.image_size)
        self.norm = nn.BatchNorm2d(cells)
        self.around = nn.Sequential(
            nn.Conv2d(cells, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )
        self.region = nn.Conv2d(cells + inner, config.dim, 1)
        pooled = cells + 2 * inner + self.last
        self.vector = nn.Linear(pooled, config.dim)
        self.deeper = nn.Sequential(
            nn.Linear(pooled, 4 * config.dim),
            nn.LayerNorm(4 * config.dim),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Linear(4 * config.dim, config.dim),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Turn `features` [B, R, C] into unit vectors [B, d] and unit regions [B, R, d]."""
        maps = self.norm(features.transpose(1, 2).reshape(-1, features.shape[2], *self.grid))
        maps = F.dropout2d(maps, self.channel_dropout, self.training)
        around = self.around(maps)
        cells = torch.cat([maps, around], 1)
        peaks = [around.amax((2, 3)), maps[:, -self.last :].amax((2, 3))]
        pooled = torch.cat([cells.mean((2, 3)), *peaks], -1)
        vectors = widened(self.vector(pooled)) + widened(self.deeper(pooled))
        regions = self.region(scale_gradient(cells, self.head_grad_scale)).flatten(2).transpose(1, 2)
        return F.normalize(vectors, dim=-1), F.normalize(widened(regions), dim=-1)


def join_maps(maps: list[Tensor]) -> Tensor:
    """Average maps [B, c_i, H_i, W_i] over the cells of the last one and join their channels: [B, R, Σ c_i].

    Colour lives in early stages, kind in the last: a cell has to see all of them.
    """
    height, width = maps[-1].shape[2:]
    pooled = [F.avg_pool2d(x, (x.shape[2] // height, x.shape[3] // width)) for x in maps]
    return torch.cat(pooled, 1).flatten(2).transpose(1, 2)


def check_strides(config: ModelConfig, backbone: str, strides: tuple[int, ...] = (32,)) -> None:
    """Raise DataError where `backbone` has no such stride, or an image's side is no multiple of it."""
    if config.stride not in strides:
        raise DataError(f"model.stride: {config.stride}; for {backbone} it is {' or '.join(map(str, strides))}")
    if any(side <= 0 or side % config.stride for side in config.image_size):
        raise DataError(
            f"model.image_size: {list(config.image_size)} must be multiples of {config.stride} for {backbone}"
        )
