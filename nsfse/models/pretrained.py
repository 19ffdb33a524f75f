"""What pre-trained weights decide for a run: settings, tokenizer, learning rates and which features are cached.

Weights are read once, when a run starts; a run and its bundle hold all that they need afterwards.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from nsfse.config import Config, ModelConfig
from nsfse.models.backbones.base import TrunkEncoder
from nsfse.models.backbones.registry import get_backbone
from nsfse.models.encoders import Encoders
from nsfse.models.text_teacher import TextTeacher, word_vectors
from nsfse.models.weights import read_glove
from nsfse_runtime.errors import DataError
from nsfse_runtime.inference.tokenizer import PADDING, UNKNOWN
from nsfse_runtime.types import Pixels

CHUNK = 32
"""Images whose features are computed at once: always as many, so that a batch's size changes no rounding."""


def resolve_config(config: Config) -> Config:
    """Return `config` with what its weights decide.

    A CLIP brings its shapes, and its tokenizer has no unknown word to put in place of others. Where features of one
    view of each image are cached, there is no augmentation. Raises DataError for settings that contradict each other.
    """
    backbone, train = get_backbone(config.model.backbone), config.train
    if config.model.frozen_stages and not backbone.is_pretrained(config.model):
        raise DataError(
            f"model.frozen_stages: random weights would stay random; give model.weights for {backbone.name}"
        )
    if train.cached_views and not (config.model.frozen_stages or is_frozen(config)):
        raise DataError("train.cached_views: no stage is frozen, so no feature stays as it is; set model.frozen_stages")
    if config.model.glove and config.model.text_teacher:
        raise DataError("model.text_teacher and model.glove both give first word embeddings; keep one of them")
    model = backbone.resolve(config.model)
    if not backbone.has_unknown_word:
        train = msgspec.structs.replace(train, word_dropout=0.0)
    if caches_features(config) and train.cached_views <= 1:
        train = msgspec.structs.replace(train, augment_strength=0.0)
    return msgspec.structs.replace(config, model=model, train=train)


def is_pretrained(model: ModelConfig) -> bool:
    """Return whether the encoders start from weights made elsewhere."""
    return get_backbone(model.backbone).is_pretrained(model)


def is_frozen(config: Config) -> bool:
    """Return whether the whole image trunk stays as it is."""
    return is_pretrained(config.model) and (config.train.backbone_lr_scale == 0 or config.model.frozen_stages == -1)


def caches_features(config: Config) -> bool:
    """Return whether training keeps what frozen stages make of images in place of these."""
    return is_frozen(config) or (is_pretrained(config.model) and config.train.cached_views > 0)


def origin(model: ModelConfig) -> dict[str, str]:
    """Return where the encoders' first weights are from, for the run's header and the bundle's card."""
    taught = f", words from {Path(model.text_teacher).name}" if model.text_teacher else ""
    if not get_backbone(model.backbone).reads_weights and not model.glove:
        return {"backbone": f"{model.backbone}{taught}"} if taught else {}
    named = model.weights if model.weights.startswith("hub:") else Path(model.weights).name
    weights = (named or "ImageNet weights of its package") if is_pretrained(model) else "random weights"
    glove = f", words from {Path(model.glove).name}" if model.glove else ""
    return {"backbone": f"{model.backbone}, {weights}{glove}{taught}"}


def own_tokenizer(model: ModelConfig) -> Tokenizer | None:
    """Return the tokenizer that comes with the weights, or None."""
    return get_backbone(model.backbone).tokenizer(model)


def load_pretrained(model: Encoders, tokenizer: Path) -> None:
    """Fill a new model from what its configuration names; `tokenizer` is the run's tokenizer.json.

    Raises MissingExtraError, NotFoundError, IntegrityError or DataError.
    """
    config = model.config
    if is_pretrained(config):
        get_backbone(config.backbone).load_weights(model.image_encoder, model.text_encoder, config.weights)
    if config.text_teacher:
        _fill_taught_words(model, Tokenizer.from_file(str(tokenizer)).get_vocab())
    if config.glove:
        words = Tokenizer.from_file(str(tokenizer)).get_vocab()
        ids, vectors = read_glove(Path(config.glove), words, config.dim)
        with torch.no_grad():
            model.text_encoder.get_parameter("embedding.weight")[ids] = vectors


def common_words(model: ModelConfig) -> tuple[str, ...]:
    """Return the words that the vocabulary has beside those of the training texts. Raises as `TextTeacher`."""
    return TextTeacher(model.text_teacher).common_words(model.common_words) if model.text_teacher else ()


def _fill_taught_words(model: Encoders, ids: dict[str, int]) -> None:
    """Give each word of the vocabulary `ids` its teacher's vector; padding and the unknown word have none."""
    words = sorted(word for word in ids if word not in (PADDING, UNKNOWN))
    vectors = word_vectors(TextTeacher(model.config.text_teacher), words, model.config.word_dim)
    table = model.text_encoder.get_parameter("embedding.weight")
    with torch.no_grad():
        table.zero_()
        table[[ids[word] for word in words], : vectors.shape[1]] = vectors


def freeze(model: Encoders, config: Config) -> None:
    """Let what `train.backbone_lr_scale` and `model.frozen_stages` exclude learn nothing. Raises DataError."""
    if not is_pretrained(config.model):
        return
    model.trunk_encoder.freeze(-1 if is_frozen(config) else config.model.frozen_stages)
    if config.train.backbone_lr_scale == 0:
        for parameter in _trunk_parameters(model):
            parameter.requires_grad_(False)


def param_groups(groups: list[dict[str, Any]], model: Encoders, scale: float) -> list[dict[str, Any]]:
    """Split an optimizer's groups by where the parameters come from.

    Args:
        groups: An optimizer's groups, each with the factor `lr_scale` of its learning rate.
        model: The model that the parameters belong to.
        scale: The factor of pre-trained parameters, `train.backbone_lr_scale`.

    Returns:
        The groups, where pre-trained parameters learn at `scale` of the rate and frozen ones are left out.
    """
    pretrained = {id(parameter) for parameter in _trunk_parameters(model)} if is_pretrained(model.config) else set()
    split = []
    for group in groups:
        for from_trunk, factor in ((False, 1.0), (True, scale)):
            params = [p for p in group["params"] if p.requires_grad and (id(p) in pretrained) is from_trunk]
            if params:
                split.append(group | {"params": params, "lr_scale": group["lr_scale"] * factor})
    return split


def _trunk_parameters(model: Encoders) -> Iterator[nn.Parameter]:
    return (parameter for name, parameter in model.named_parameters() if "encoder.trunk." in name)


def feature_extractor(model: Encoders, config: Config) -> Callable[[Pixels], NDArray[np.float16]] | None:
    """Return what computes the features to cache in place of images, or None where images are cached.

    It takes pixels [B, H, W, 3] uint8 and returns what the frozen stages make of each. Raises DataError for a trunk
    that cannot be frozen in part.
    """
    if not caches_features(config):
        return None
    encoder = model.trunk_encoder
    encoder.check_cacheable()

    def features(pixels: Pixels) -> NDArray[np.float16]:
        chunks = [_chunk_features(encoder, pixels[start : start + CHUNK]) for start in range(0, len(pixels), CHUNK)]
        return torch.cat(chunks).half().numpy()

    return features


@torch.inference_mode()
def _chunk_features(encoder: TrunkEncoder, pixels: Pixels) -> Tensor:
    filled = np.zeros((CHUNK, *pixels.shape[1:]), np.uint8)
    filled[: len(pixels)] = pixels
    device = next(encoder.parameters()).device
    features = encoder.frozen_features(torch.from_numpy(filled).to(device).permute(0, 3, 1, 2).float() / 255.0)
    return features[: len(pixels)].cpu()
