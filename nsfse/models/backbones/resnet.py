"""ResNet-50 with torchvision's names, so that its weights can be read; torchvision itself is not needed.

He et al., Deep Residual Learning, 2016, table 1; the stride is in the 3×3 convolution, as in the known weights.
"""

from pathlib import Path
from typing import cast

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
from nsfse.models.weights import fit_tensors, read_tensors

BLOCKS = (3, 4, 6, 3)
WIDEN = 4


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut, [B, i, H, W] → [B, 4·inner, H / stride, W / stride]."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, WIDEN * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(WIDEN * inner)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != WIDEN * inner:
            shortcut = nn.Conv2d(inputs, WIDEN * inner, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(WIDEN * inner))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        inner = F.relu(self.bn1(self.conv1(x)))
        wide = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(inner)))))
        return F.relu(wide + (x if self.downsample is None else self.downsample(x)))


class ResNet50(StagedTrunk):
    """Images [B, 3, H, W] → cells of all four stages [B, R, 60·width], R = H·W/1024: 49 of 3840 at 224×224."""

    def __init__(self, width: int = 64) -> None:
        layers = [StageShape(WIDEN * width * 2**at, 4 * 2**at, True) for at in range(len(BLOCKS))]
        super().__init__((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), [StageShape(width, 4, False), *layers], 32)
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs, inner = width, width
        for at, count in enumerate(BLOCKS):
            first = Bottleneck(inputs, inner, 1 if at == 0 else 2)
            inputs = WIDEN * inner
            layer = nn.Sequential(first, *(Bottleneck(inputs, inner, 1) for _ in range(count - 1)))
            self.add_module(f"layer{at + 1}", layer)
            inner *= 2
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _layers(self) -> list[nn.Module]:
        return [self.get_submodule(f"layer{at + 1}") for at in range(len(BLOCKS))]

    def stages(self) -> list[nn.Module]:
        """Return the stem and the four stages."""
        return [nn.ModuleList([self.conv1, self.bn1]), *self._layers()]

    def run_stage(self, at: int, x: Tensor) -> Tensor:
        """Run the stem (0), its pooling included, or one of the four layers."""
        if at:
            maps: Tensor = self.get_submodule(f"layer{at}")(x)
            return maps
        return F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)


class ResNetBackbone(Backbone):
    """ResNet-50 and a GRU over words; `width` is that of the stem."""

    name = "resnet50"

    def __init__(self, width: int = 64) -> None:
        self.width = width

    def build(self, config: ModelConfig, vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
        """Return both encoders. Raises DataError for sides that are no multiple of 32."""
        check_strides(config, self.name)
        trunk = ResNet50(self.width)
        return TrunkEncoder(trunk, CellProjection(trunk.widths, config)), GruTextEncoder(vocabulary, config)

    def load_weights(self, images: ImageEncoder, texts: TextEncoder, weights: str) -> None:
        """Fill the trunk from the file `weights`, which has torchvision's names."""
        fit_tensors(cast(TrunkEncoder, images).trunk, read_tensors(Path(weights)), f"model.weights: {weights}")
