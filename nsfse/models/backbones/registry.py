"""The table of backbones. To add one: write its file, then add its instance here; or a plug-in (nsfse.plugins).

A `Backbone` builds two encoders: images to (vectors, regions), words to (words, sentence). All else sees only unit rows
of the common dimension d.
"""

from nsfse.models.backbones.base import Backbone
from nsfse.models.backbones.dual_encoder import DualEncoderBackbone
from nsfse.models.backbones.efficientnet import EfficientNetBackbone
from nsfse.models.backbones.resnet import ResNetBackbone
from nsfse.models.backbones.tiny import TinyBackbone
from nsfse.plugins import add_plugins
from nsfse_runtime.errors import DataError

BACKBONES: dict[str, Backbone] = {
    "tiny": TinyBackbone(),
    "efficientnet-lite0": EfficientNetBackbone(),
    "resnet50": ResNetBackbone(),
    "clip": DualEncoderBackbone(),
}


def get_backbone(name: str) -> Backbone:
    """Return the backbone that `model.backbone` names. Raises DataError for an unknown name."""
    add_plugins("backbones", BACKBONES, _as_backbone)
    if name not in BACKBONES:
        raise DataError(f"model.backbone: no backbone {name!r}; there are: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def _as_backbone(found: object) -> Backbone:
    """Return what a plug-in names, a Backbone or its class, as an instance. Raises TypeError."""
    backbone = found() if isinstance(found, type) else found
    if not isinstance(backbone, Backbone):
        raise TypeError("it is no nsfse.models.backbones.base.Backbone")
    return backbone
