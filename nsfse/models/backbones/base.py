"""What a backbone is: an image encoder, a text encoder, and how their first weights are read.

An image encoder with pre-trained weights is a trunk, which they fill, and a projection, which learns what this model
needs. They meet in one tensor, the trunk's features [B, R, C]. Where the trunk or its first stages are frozen, what
these make of an image can be cached in its place, and only the rest is left to compute.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class StageShape:
    """What a stage returns: maps of `channels`, `reduction` times smaller than the image; `seen` by the regions."""

    channels: int
    reduction: int
    seen: bool


class StagedTrunk(Trunk):
    """A trunk whose stages follow one another; some of their maps, averaged over a region each, are its features.

    Args:
        mean: Means of the channels of the images that it was trained on.
        std: Their standard deviations.
        shapes: What each stage returns; the last one is seen.
        stride: Pixels of a region's side, a multiple of every reduction.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], shapes: Sequence[StageShape], stride: int
    ) -> None:
        super().__init__(mean, std)
        self.shapes, self.stride = tuple(shapes), stride
        self.widths = tuple(shape.channels for shape in self.shapes if shape.seen)

    @abstractmethod
    def run_stage(self, at: int, x: Tensor) -> Tensor:
        """Run stage `at` on the maps of the one before; the first takes normalised images [B, 3, H, W]."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features [B, R, C] of `pixels` [B, 3, H, W] in 0..1."""
        _, maps = self._run((pixels - self.mean) / self.std, 0, len(self.shapes))
        return torch.cat(maps, 1).flatten(2).transpose(1, 2)

    def begin(self, pixels: Tensor, count: int) -> Tensor:
        """Run the first `count` stages (1 or more) on `pixels` [B, 3, H, W] in 0..1.

        Returns:
            What `finish` needs: the last of their maps and the averages of those seen, in a row each, [B, F].
        """
        x, maps = self._run((pixels - self.mean) / self.std, 0, count)
        return torch.cat([x.flatten(1), *(each.flatten(1) for each in maps)], 1)

    def finish(self, begun: Tensor, count: int, grid: tuple[int, int]) -> Tensor:
        """Run the stages after the first `count`.

        Args:
            begun: What `begin` returned [B, F].
            count: How many stages it ran.
            grid: Rows and columns of regions.

        Returns:
            The features [B, R, C], those of `forward` but for rounding.
        """
        last = self.shapes[count - 1]
        sides = tuple(side * self.stride // last.reduction for side in grid)
        channels = [shape.channels for shape in self.shapes[:count] if shape.seen]
        sizes = [last.channels * sides[0] * sides[1], *(each * grid[0] * grid[1] for each in channels)]
        flat, *maps = torch.split(begun, sizes, 1)
        x = flat.reshape(-1, last.channels, *sides).contiguous(memory_format=torch.channels_last)
        earlier = [each.reshape(len(begun), -1, *grid) for each in maps]
        _, later = self._run(x, count, len(self.shapes))
        return torch.cat([*earlier, *later], 1).flatten(2).transpose(1, 2)

    def _run(self, x: Tensor, start: int, end: int) -> tuple[Tensor, list[Tensor]]:
        """Run the stages from `start` to before `end`; return their last maps, and the averages of those seen.

        Colour lives in early stages, kind in the last: a region has to see all of them.
        """
        maps = []
        for at in range(start, end):
            x = self.run_stage(at, x)
            if self.shapes[at].seen:
                size = self.stride // self.shapes[at].reduction
                maps.append(F.avg_pool2d(x, (size, size)))
        return x, maps


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

    def frozen_features(self, pixels: Tensor) -> Tensor:
        """Return what the frozen stages make of `pixels` [B, 3, H, W] in 0..1: a tensor of one row an image."""
        if isinstance(self.trunk, StagedTrunk) and self.frozen != -1:
            return self.trunk.begin(pixels, self.frozen)
        features: Tensor = self.trunk(pixels)
        return features

    def encode_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` does from what `frozen_features` returned."""
        if isinstance(self.trunk, StagedTrunk) and self.frozen != -1:
            features = self.trunk.finish(features, self.frozen, self.tail.grid)  # type: ignore[arg-type]
        return self.project(features)

    def check_cacheable(self) -> None:
        """Raise DataError where some stages are frozen, and the trunk cannot go on from their features."""
        if self.frozen != -1 and not isinstance(self.trunk, StagedTrunk):
            raise DataError("train.cached_views: this trunk can only be frozen as a whole; set model.frozen_stages=-1")

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

        What is frozen is not touched even for a moment: another thread may be reading it.
        """
        self.training = mode
        self.tail.train(mode)
        if self.frozen == -1:
            self.trunk.eval()
            return self
        frozen = {id(module) for part in self._frozen_parts() for module in part.modules()}
        for module in self.trunk.modules():
            if id(module) not in frozen:
                module.training = mode
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


def check_strides(config: ModelConfig, backbone: str, strides: tuple[int, ...] = (32,)) -> None:
    """Raise DataError where `backbone` has no such stride, or an image's side is no multiple of it."""
    if config.stride not in strides:
        raise DataError(f"model.stride: {config.stride}; for {backbone} it is {' or '.join(map(str, strides))}")
    if any(side <= 0 or side % config.stride for side in config.image_size):
        raise DataError(
            f"model.image_size: {list(config.image_size)} must be multiples of {config.stride} for {backbone}"
        )
