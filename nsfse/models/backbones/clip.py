"""Any CLIP in the form of `transformers`: cells of patches, and words, after norm and projection, with an adapter each.

`model.weights` names a folder, or `hub:OWNER/NAME` to fetch one: only that prefix lets anything reach for the network.
What a run needs to be opened again without that folder (shapes, special tokens, image statistics) is read once into
`model.clip_config`, which the run's config.json keeps.
"""

import json
import re
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.autocast import widened
from nsfse.models.backbones.base import Backbone, ImageEncoder, TextEncoder, Trunk, TrunkEncoder, scale_gradient
from nsfse_runtime.errors import DataError, IntegrityError, NotFoundError
from nsfse_runtime.extras import need

HUB = "hub:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# The statistics of CLIP's training images, for a folder without preprocessor_config.json (Radford et al., its code).
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHAPES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("hidden_act", "layer_norm_eps", "attention_dropout"),
)
TEXT_SHAPES = (*SHAPES, "vocab_size", "max_position_embeddings")
VISION_SHAPES = (*SHAPES, "image_size", "patch_size", "num_channels")


class ClipTrunk(Trunk):
    """Images [B, 3, S, S] → the class token and R cells after norm and projection, [B, 1 + R, p].

    A cell is the average of the patches it covers, or a patch itself.
    """

    cells: Tensor

    def __init__(
        self, vision: Any, projection: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], cells: int = 0
    ) -> None:
        super().__init__(mean, std)
        self.vision, self.projection = vision, projection
        patches = vision.config.image_size // vision.config.patch_size
        self.pooled = 0 < cells < patches
        self.register_buffer("cells", _covers(patches, cells if self.pooled else patches), persistent=False)

    def stages(self) -> list[nn.Module]:
        """Return embeddings and layers; norm and projection after them freeze only with the whole trunk."""
        vision = self.vision
        return [nn.ModuleList([vision.embeddings, vision.pre_layrnorm]), *vision.encoder.layers]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features [B, 1 + R, p] of `pixels` [B, 3, S, S] in 0..1."""
        hidden = self.vision((pixels - self.mean) / self.std).last_hidden_state
        tokens: Tensor = self.projection(self.vision.post_layernorm(hidden))
        return torch.cat([tokens[:, :1], self.cells @ tokens[:, 1:]], 1) if self.pooled else tokens


class ClipProjection(nn.Module):
    """The class token → vector, cells → regions, by an adapter each."""

    def __init__(self, adapter: nn.Linear, head_grad_scale: float) -> None:
        super().__init__()
        self.head_grad_scale = head_grad_scale
        self.vector, self.region = _same(adapter), _same(adapter)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Turn `features` [B, 1 + R, p] into unit vectors [B, d] and unit regions [B, R, d]."""
        cells = scale_gradient(features[:, 1:], self.head_grad_scale)
        vectors, regions = self.vector(features[:, 0]), self.region(cells)
        return F.normalize(widened(vectors), dim=-1), F.normalize(widened(regions), dim=-1)


class ClipTextTrunk(nn.Module):
    """Token ids [B, T] → tokens after norm and projection [B, T, p]; a token sees only those before it."""

    def __init__(self, text: Any, projection: nn.Module) -> None:
        super().__init__()
        self.text, self.projection = text, projection

    def forward(self, ids: Tensor) -> Tensor:
        """Return all tokens of `ids`."""
        tokens: Tensor = self.projection(self.text(ids).last_hidden_state)
        return tokens


class ClipTextEncoder(TextEncoder):
    """CLIP's words and its sentence, the end token.

    The two special tokens are put around the words here and not by the tokenizer, so that words, their mask and the
    evidence stay words. Padding lies behind the end token, where nothing looks.
    """

    def __init__(self, trunk: ClipTextTrunk, adapter: nn.Linear, start: int, end: int, head_grad_scale: float) -> None:
        super().__init__()
        self.trunk, self.start, self.end, self.head_grad_scale = trunk, start, end, head_grad_scale
        self.word, self.sentence = _same(adapter), _same(adapter)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `ids` [B, L] with `mask` [B, L] into unit words [B, L, d] and unit sentences [B, d]."""
        framed = F.pad(ids * mask, (1, 1))
        at = torch.arange(framed.shape[1], device=ids.device)[None]
        ends = at == mask.sum(1, keepdim=True) + 1
        framed = torch.where(at == 0, self.start, torch.where(ends, self.end, framed))
        tokens = self.trunk(framed)
        sentence = (tokens * ends[..., None]).sum(1)
        words = widened(self.word(scale_gradient(tokens[:, 1:-1], self.head_grad_scale)))
        return F.normalize(words, dim=-1) * mask[..., None], F.normalize(widened(self.sentence(sentence)), dim=-1)


def _covers(patches: int, cells: int) -> Tensor:
    """Return how much of each of cells² cells lies on each of patches² patches, [cells², patches²]; rows sum to 1."""
    ends = torch.linspace(0, patches, cells + 1)[:, None]
    at = torch.arange(patches)
    line = (torch.minimum(ends[1:], at + 1) - torch.maximum(ends[:-1], at)).clamp_min(0) * (cells / patches)
    return torch.kron(line, line)


def _adapter(inputs: int, dim: int) -> nn.Linear:
    """Return p → d as it starts everywhere: the identity, or directions that keep CLIP's cosines as d allows."""
    adapter = nn.Linear(inputs, dim)
    nn.init.eye_(adapter.weight) if inputs == dim else nn.init.orthogonal_(adapter.weight)
    nn.init.zeros_(adapter.bias)
    return adapter


def _same(adapter: nn.Linear) -> nn.Linear:
    copy = nn.Linear(adapter.in_features, adapter.out_features)
    copy.load_state_dict(adapter.state_dict())
    return copy


class ClipBackbone(Backbone):
    """Both towers of a CLIP, its tokenizer, and an adapter after each tower."""

    name = "clip"
    has_unknown_word = False

    def build(self, config: ModelConfig, vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
        """Return both encoders of the shapes in `config.clip_config`. Raises DataError where they clash."""
        return build(config, vocabulary)

    def resolve(self, config: ModelConfig) -> ModelConfig:
        """Return `config` with the shapes of its CLIP. Raises DataError, NotFoundError and others."""
        if config.glove:
            raise DataError("model.glove: CLIP has its own words; leave it empty")
        if config.text_teacher:
            raise DataError("model.text_teacher: CLIP has its own words; leave it empty")
        return msgspec.structs.replace(config, clip_config=read_shapes(config))

    def tokenizer(self, config: ModelConfig) -> Tokenizer:
        """Return the CLIP's own tokenizer."""
        return read_tokenizer(config)

    def load_weights(self, images: ImageEncoder, texts: TextEncoder, weights: str) -> None:
        """Fill both towers from the folder, or the name after hub:, that `weights` is."""
        load(cast(TrunkEncoder, images), cast(ClipTextEncoder, texts), weights)


def build(config: ModelConfig, vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
    """Return both encoders of the shapes in `config.clip_config`, with random weights. Raises DataError."""
    need("transformers", "clip")
    from transformers import CLIPConfig, CLIPModel

    shapes = config.clip_config
    if not shapes:
        raise DataError("model.clip_config is empty: it is filled from model.weights when a run is trained")
    _check_settings(config, vocabulary)
    text, vision = shapes["text_config"], shapes["vision_config"]
    special = {"bos_token_id": shapes["start"], "eos_token_id": shapes["end"], "pad_token_id": shapes["end"]}
    clip = CLIPModel(
        CLIPConfig(text_config=text | special, vision_config=vision, projection_dim=shapes["projection_dim"])
    )
    adapter = _adapter(shapes["projection_dim"], config.dim)
    statistics = tuple(shapes["mean"]), tuple(shapes["std"])
    # Older runs have no cells: they learned with the patches themselves.
    trunk = ClipTrunk(clip.vision_model, clip.visual_projection, *statistics, cells=shapes.get("cells", 0))
    words = ClipTextTrunk(clip.text_model, clip.text_projection)
    scale = config.head_grad_scale
    texts = ClipTextEncoder(words, adapter, shapes["start"], shapes["end"], scale)
    return TrunkEncoder(trunk, ClipProjection(adapter, scale)), texts


def _check_settings(config: ModelConfig, vocabulary: int) -> None:
    """Raise DataError for image size, words or vocabulary that this CLIP does not take."""
    text, vision = config.clip_config["text_config"], config.clip_config["vision_config"]
    side = vision["image_size"]
    if tuple(config.image_size) != (side, side):
        raise DataError(f"model.image_size: {list(config.image_size)}; this CLIP takes [{side}, {side}]")
    if config.max_words > text["max_position_embeddings"] - 2:
        raise DataError(f"model.max_words: this CLIP reads {text['max_position_embeddings'] - 2} words at most")
    if vocabulary > text["vocab_size"]:
        raise DataError(f"model.weights: the tokenizer has {vocabulary} words, the CLIP {text['vocab_size']}")


def load(image_encoder: TrunkEncoder, text_encoder: ClipTextEncoder, weights: str) -> None:
    """Fill both trunks from `weights`. Raises NotFoundError or DataError."""
    from transformers import CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    name, local = hub_source(weights)
    try:
        clip, report = CLIPModel.from_pretrained(
            name, local_files_only=local, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # OSError, ValueError, SafetensorError and what hub clients raise
        raise DataError(f"model.weights: {weights} cannot be read ({first_line(error)}); needs safetensors") from None
    if missing := sorted(report["missing_keys"]):
        raise DataError(f"model.weights: {weights} has no tensor {missing[0]} ({len(missing)} missing); is it whole?")
    vision, words = image_encoder.trunk, text_encoder.trunk
    vision.get_submodule("vision").load_state_dict(clip.vision_model.state_dict())
    vision.get_submodule("projection").load_state_dict(clip.visual_projection.state_dict())
    words.text.load_state_dict(clip.text_model.state_dict())
    words.projection.load_state_dict(clip.text_projection.state_dict())


def read_shapes(config: ModelConfig) -> dict[str, Any]:
    """Return what `build` needs to know of the CLIP at `config.weights`. Raises NotFoundError, DataError and others."""
    need("transformers", "clip")
    from transformers import CLIPConfig

    tree = _json(config.weights, "config.json")
    if tree.get("model_type") != "clip":
        raise DataError(f"model.weights: {config.weights} is of the kind {tree.get('model_type')!r}, not a clip")
    clip = CLIPConfig.from_dict(tree)
    ends = _tokenizer(config.weights).encode("").ids
    if len(ends) != 2:
        raise DataError(
            f"model.weights: the tokenizer of {config.weights} puts {len(ends)} tokens around a text, not 2"
        )
    seen = _json(config.weights, "preprocessor_config.json", needed=False)
    return {
        "text_config": {key: getattr(clip.text_config, key) for key in TEXT_SHAPES},
        "vision_config": {key: getattr(clip.vision_config, key) for key in VISION_SHAPES},
        "projection_dim": clip.projection_dim,
        "start": ends[0],
        "end": ends[1],
        "mean": list(seen.get("image_mean", MEAN)),
        "std": list(seen.get("image_std", STD)),
        "cells": config.pool_grid,
    }


def read_tokenizer(config: ModelConfig) -> Tokenizer:
    """Return the CLIP's tokenizer without what it does beyond splitting: special tokens, cutting, padding."""
    tree = json.loads(_tokenizer(config.weights).to_str())
    return Tokenizer.from_str(json.dumps(tree | {"post_processor": None, "truncation": None, "padding": None}))


def _tokenizer(weights: str) -> Tokenizer:
    path = _file(weights, "tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise IntegrityError(f"model.weights: {path} is not a tokenizer: {first_line(error)}") from None


def _json(weights: str, name: str, needed: bool = True) -> dict[str, Any]:
    try:
        path = _file(weights, name)
    except NotFoundError:
        if needed:
            raise
        return {}
    try:
        tree: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise IntegrityError(f"model.weights: {path} is damaged: {first_line(error)}") from None
    return tree


def hub_source(weights: str) -> tuple[str, bool]:
    """Return its name for `transformers`, and whether only this machine is searched."""
    return (weights.removeprefix(HUB), False) if weights.startswith(HUB) else (weights, True)


def _file(weights: str, name: str) -> Path:
    """Return the path of one file of a CLIP. Raises NotFoundError (it has none) or DataError (no name, no network)."""
    if not weights:
        raise DataError("model.weights: the clip backbone needs a folder saved by transformers, or hub:OWNER/NAME")
    source, local = hub_source(weights)
    if local:
        if not Path(source).exists():
            fetch = f", or {HUB}{source} to fetch it" if _HUB_NAME.fullmatch(source) else ""
            raise NotFoundError(f"model.weights: no folder {source}; give a folder saved by transformers{fetch}")
        if not (Path(source) / name).is_file():
            raise NotFoundError(f"model.weights: no {name} in {source}; give a folder saved by transformers")
        return Path(source) / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except Exception as error:  # the client's errors share no base but Exception
        absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        kind = NotFoundError if absent else DataError
        raise kind(f"model.weights: no {name} to be had from {weights} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
