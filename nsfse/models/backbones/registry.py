"""The table of backbones. To add one: write its file, then add its instance here.

A `Backbone` builds two encoders: images to (vectors, regions), words to (words, sentence). All else sees only unit rows
of the common dimension d.
"""

from nsfse.models.backbones.base import Backbone
from nsfse.models.backbones.clip import ClipBackbone
from nsfse.models.backbones.efficientnet import EfficientNetBackbone
from nsfse.models.backbones.resnet import ResNetBackbone
from nsfse.models.backbones.tiny import TinyBackbone
from nsfse_runtime.errors import DataError

BACKBONES: dict[str, Backbone] = {
    "tiny": TinyBackbone(),
    "efficientnet-lite0": EfficientNetBackbone(),
    "resnet50": ResNetBackbone(),
    "clip": ClipBackbone(),
}


def get_backbone(name: str) -> Backbone:
    """Return the backbone that `model.backbone` names. Raises DataError for an unknown name."""
    if name not in BACKBONES:
        raise DataError(f"model.backbone: no backbone {name!r}; there are: {', '.join(BACKBONES)}")
    return BACKBONES[name]
