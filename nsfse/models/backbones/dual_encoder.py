"""Any dual encoder of `transformers`: cells of patches, and words, in the common space, with an adapter each.

`model.weights` names a folder, or `hub:OWNER/NAME` to fetch one. What a run needs to be opened again without it
(configuration, special tokens, image statistics) is read once into `model.clip_config`, which the run's config.json
keeps. `families.py` lists the families, `open_clip.py` reads the layout of OpenCLIP.
"""

import json
from typing import Any, cast

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.autocast import widened
from nsfse.models.backbones import open_clip
from nsfse.models.backbones.base import Backbone, ImageEncoder, TextEncoder, Trunk, TrunkEncoder, scale_gradient
from nsfse.models.backbones.families import Family, ImageTower, family_of, image_tower_of
from nsfse.models.backbones.text_tokens import Frame, read_frame, read_tokenizer
from nsfse.models.backbones.weights_folder import first_line, has_file, hub_source, read_json
from nsfse_runtime.errors import DataError
from nsfse_runtime.extras import need

# The statistics of CLIP's training images, for a folder without preprocessor_config.json (Radford et al., its code).
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_NOT_KEPT = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "id2label", "label2id")
_COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "altclip_text_model")


class DualImageTrunk(Trunk):
    """Images [B, 3, S, S] → the image's vector and R cells in the common space, [B, 1 + R, p].

    A cell is the average of the patches it covers, or a patch itself.
    """

    cells: Tensor

    def __init__(self, model: Any, mean: tuple[float, ...], std: tuple[float, ...], cells: int = 0) -> None:
        super().__init__(mean, std)
        self.vision = model.vision_model
        self.projection = getattr(model, "visual_projection", nn.Identity())
        self.tower: ImageTower = image_tower_of(self.vision.config.model_type)
        patches = self.vision.config.image_size // self.vision.config.patch_size
        self.pooled = 0 < cells < patches
        self.register_buffer("cells", _covers(patches, cells if self.pooled else patches), persistent=False)

    def stages(self) -> list[nn.Module]:
        """Return embeddings and layers; norm, head and projection after them freeze only with the whole trunk."""
        layers = next(part for part in self.vision.modules() if isinstance(part, nn.ModuleList))
        first = [self.vision.embeddings, getattr(self.vision, "pre_layrnorm", nn.Identity())]
        return [nn.ModuleList(first), *layers]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features [B, 1 + R, p] of `pixels` [B, 3, S, S] in 0..1."""
        seen = self.vision((pixels - self.mean) / self.std)
        patches = self.projection(self._common(seen.last_hidden_state[:, self.tower.before :]))
        cells = self.cells @ patches if self.pooled else patches
        return torch.cat([self.projection(seen.pooler_output)[:, None], cells], 1)

    def _common(self, patches: Tensor) -> Tensor:
        """Return what the tower's own head makes of `patches` [B, R, h], each by itself."""
        if not self.tower.head:
            return patches
        head = self.vision.get_submodule(self.tower.head)
        if not self.tower.pools:
            normed: Tensor = head(patches)
            return normed
        alone: Tensor = head(patches.flatten(0, 1)[:, None])
        return alone.reshape(patches.shape)


class AdapterProjection(nn.Module):
    """The image's vector → vector, cells → regions, by an adapter each."""

    def __init__(self, adapter: nn.Linear, head_grad_scale: float) -> None:
        super().__init__()
        self.head_grad_scale = head_grad_scale
        self.vector, self.region = _same(adapter), _same(adapter)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Turn `features` [B, 1 + R, p] into unit vectors [B, d] and unit regions [B, R, d]."""
        cells = scale_gradient(features[:, 1:], self.head_grad_scale)
        vectors, regions = self.vector(features[:, 0]), self.region(cells)
        return F.normalize(widened(vectors), dim=-1), F.normalize(widened(regions), dim=-1)


class DualTextTrunk(nn.Module):
    """Token ids [B, T] → tokens in the common space [B, T, p], and what the tower pools, [B, p] or None."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__()
        self.text, self.family = model.text_model, family
        self.projection = getattr(model, "text_projection", nn.Identity())

    def forward(self, ids: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return all tokens of `ids`; `attended` [B, T] is False for padding."""
        read = self.text(ids, attention_mask=attended.long()) if self.family.masked else self.text(ids)
        hidden = read.last_hidden_state
        if self.family.word_head:
            hidden = self.text.get_submodule(self.family.word_head)(hidden)
        pooled = self.projection(read.pooler_output) if self.family.sentence == "pooled" else None
        return self.projection(hidden), pooled


class DualTextEncoder(TextEncoder):
    """Words and the sentence of a dual encoder.

    The special tokens are put around the words here and not by the tokenizer, so that words, their mask and the
    evidence stay words. `positions` is the length to which each text is padded, 0 for no padding beyond the batch's.
    """

    def __init__(
        self, trunk: DualTextTrunk, adapter: nn.Linear, frame: Frame, positions: int, head_grad_scale: float
    ) -> None:
        super().__init__()
        self.trunk, self.frame, self.positions, self.head_grad_scale = trunk, frame, positions, head_grad_scale
        self.word, self.sentence = _same(adapter), _same(adapter)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `ids` [B, L] with `mask` [B, L] into unit words [B, L, d] and unit sentences [B, d]."""
        first, ends = len(self.frame.prefix), mask.sum(1, keepdim=True) + len(self.frame.prefix)
        framed, shift = self._framed(ids, mask, ends)
        at = torch.arange(framed.shape[1], device=ids.device)[None] - shift
        tokens, pooled = self.trunk(framed, (at >= 0) & (at < ends + len(self.frame.suffix)))
        words = tokens[:, first : first + ids.shape[1]]
        if self.frame.pad_left:
            where = (torch.arange(ids.shape[1], device=ids.device)[None] + first + shift) % framed.shape[1]
            words = tokens.gather(1, where[..., None].expand(-1, -1, tokens.shape[2]))
        sentence = widened(self.sentence(self._sentence(tokens, pooled, at == ends)))
        words = widened(self.word(scale_gradient(words, self.head_grad_scale)))
        return F.normalize(words, dim=-1) * mask[..., None], F.normalize(sentence, dim=-1)

    def _framed(self, ids: Tensor, mask: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return `ids` [B, T] with special tokens and padding, and the padding before each text [B, 1]."""
        frame = self.frame
        framed = F.pad(torch.where(mask, ids, frame.pad), (len(frame.prefix), len(frame.suffix)), value=frame.pad)
        if self.positions:
            rest = torch.full((1, self.positions), frame.pad, device=ids.device).expand(ids.shape[0], -1)
            framed = torch.cat([framed, rest], 1)[:, : self.positions]
        at = torch.arange(framed.shape[1], device=ids.device)[None]
        for index, special in enumerate(frame.prefix):
            framed = torch.where(at == index, special, framed)
        for index, special in enumerate(frame.suffix):
            framed = torch.where(at == ends + index, special, framed)
        if not frame.pad_left:
            return framed, torch.zeros_like(ends)
        shift = framed.shape[1] - ends - len(frame.suffix)
        return framed.gather(1, (at - shift) % framed.shape[1]), shift

    def _sentence(self, tokens: Tensor, pooled: Tensor | None, ends: Tensor) -> Tensor:
        if pooled is not None:
            return pooled
        if self.trunk.family.sentence == "end":
            return (tokens * ends[..., None]).sum(1)
        return tokens[:, 0 if self.trunk.family.sentence == "first" else -1]


def _covers(patches: int, cells: int) -> Tensor:
    """Return the share of each cell that each patch covers, [cells², patches²]; rows sum to 1."""
    ends = torch.linspace(0, patches, cells + 1)[:, None]
    at = torch.arange(patches)
    line = (torch.minimum(ends[1:], at + 1) - torch.maximum(ends[:-1], at)).clamp_min(0) * (cells / patches)
    return torch.kron(line, line)


def _adapter(inputs: int, dim: int) -> nn.Linear:
    """Return p → d as it starts everywhere: the identity, or directions that keep cosines as d allows."""
    adapter = nn.Linear(inputs, dim)
    nn.init.eye_(adapter.weight) if inputs == dim else nn.init.orthogonal_(adapter.weight)
    nn.init.zeros_(adapter.bias)
    return adapter


def _same(adapter: nn.Linear) -> nn.Linear:
    copy = nn.Linear(adapter.in_features, adapter.out_features)
    copy.load_state_dict(adapter.state_dict())
    return copy


class DualEncoderBackbone(Backbone):
    """Both towers of a dual encoder, its tokenizer, and an adapter after each tower."""

    name = "clip"
    has_unknown_word = False

    def build(self, config: ModelConfig, vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
        """Return both encoders of `config.clip_config`, with random weights. Raises DataError where they clash."""
        need("transformers", "clip")
        described = description_of(config)
        _check_settings(config, described, vocabulary)
        model, family = _random_model(described["config"]), family_of(described["config"], "this run")
        adapter, scale = _adapter(common_dim(described), config.dim), config.head_grad_scale
        # Older runs have no cells: they learned with the patches themselves.
        statistics = tuple(described["mean"]), tuple(described["std"])
        trunk = DualImageTrunk(model, *statistics, cells=described.get("cells", 0))
        positions = text_positions(described) if family.padded else 0
        texts = DualTextEncoder(DualTextTrunk(model, family), adapter, Frame(**described["frame"]), positions, scale)
        return TrunkEncoder(trunk, AdapterProjection(adapter, scale)), texts

    def resolve(self, config: ModelConfig) -> ModelConfig:
        """Return `config` with what `build` needs to know. Raises DataError, NotFoundError and others."""
        if config.glove:
            raise DataError("model.glove: CLIP has its own words; leave it empty")
        if config.text_teacher:
            raise DataError("model.text_teacher: CLIP has its own words; leave it empty")
        return msgspec.structs.replace(config, clip_config=describe(config))

    def tokenizer(self, config: ModelConfig) -> Tokenizer:
        """Return the model's own tokenizer."""
        return read_tokenizer(config.weights, description_of(config)["config"]["model_type"])

    def load_weights(self, images: ImageEncoder, texts: TextEncoder, weights: str) -> None:
        """Fill both towers from the folder, or the name after hub:, that `weights` is."""
        seen, read = cast(TrunkEncoder, images).trunk, cast(DualTextEncoder, texts).trunk
        tree, is_open = read_config(weights)
        family_of(tree, weights)
        model = open_clip.load(weights, _random_model(tree)) if is_open else _load(weights)
        for own, part, name in (
            (seen.get_submodule("vision"), model.vision_model, ""),
            (read.text, model.text_model, ""),
            (seen.get_submodule("projection"), model, "visual_projection"),
            (read.projection, model, "text_projection"),
        ):
            source = getattr(part, name, nn.Identity()) if name else part
            own.load_state_dict(source.state_dict())


def read_config(weights: str) -> tuple[dict[str, Any], bool]:
    """Return the config.json of the weights, and whether it was made of OpenCLIP's. Raises as `read_json`."""
    tree = read_json(weights, "config.json", needed=not has_file(weights, open_clip.CONFIG))
    if "auto_map" not in tree and "model_type" in tree:
        return tree, False
    described = read_json(weights, open_clip.CONFIG, needed=False)
    return (open_clip.as_transformers(described, weights), True) if described else (tree, False)


def describe(config: ModelConfig) -> dict[str, Any]:
    """Return what `build` needs to know of the model at `config.weights`. Raises NotFoundError and DataError."""
    need("transformers", "clip")
    from transformers import AutoConfig

    weights = config.weights
    tree, _ = read_config(weights)
    family_of(tree, weights)
    kind = tree["model_type"]
    full = AutoConfig.for_model(**tree)
    image_tower_of(full.vision_config.model_type)
    processor = read_processor(weights)
    return {
        "config": _plain(json.loads(full.to_json_string(use_diff=False))),
        "frame": read_frame(weights, kind).to_dict(),
        "mean": list(processor.get("image_mean", MEAN)),
        "std": list(processor.get("image_std", STD)),
        "cells": config.pool_grid,
    }


def read_processor(weights: str) -> dict[str, Any]:
    """Return how the model's images are prepared, from any of the files that say so; {} where none does."""
    found = read_json(weights, "preprocessor_config.json", needed=False)
    found = found or read_json(weights, "processor_config.json", needed=False).get("image_processor", {})
    return found or open_clip.processor(read_json(weights, open_clip.CONFIG, needed=False))


def description_of(config: ModelConfig) -> dict[str, Any]:
    """Return `config.clip_config` as `describe` made it, or in the form of older runs. Raises DataError."""
    found = config.clip_config
    if not found:
        raise DataError("model.clip_config is empty: it is filled from model.weights when a run is trained")
    if "frame" in found:
        return found
    special = {"bos_token_id": found["start"], "eos_token_id": found["end"], "pad_token_id": found["end"]}
    tree = {"model_type": "clip", "vision_config": found["vision_config"], "projection_dim": found["projection_dim"]}
    frame = Frame([found["start"]], [found["end"]], found["end"], False)
    return found | {"config": tree | {"text_config": found["text_config"] | special}, "frame": frame.to_dict()}


def common_dim(described: dict[str, Any]) -> int:
    """Return p, the dimension of the common space."""
    tree = described["config"]
    return int(tree.get("projection_dim") or tree["vision_config"]["hidden_size"])


def text_positions(described: dict[str, Any]) -> int:
    """Return how many tokens the text tower reads, special ones included."""
    text = described["config"]["text_config"]
    # Positions of the RoBERTa kind begin after the padding's id.
    offset = text["pad_token_id"] + 1 if text.get("model_type", "") in _COUNT_FROM_PADDING else 0
    return int(text["max_position_embeddings"]) - offset


def most_words(described: dict[str, Any]) -> int:
    """Return how many tokens of a text's own the text tower reads."""
    return text_positions(described) - len(described["frame"]["prefix"]) - len(described["frame"]["suffix"])


def _check_settings(config: ModelConfig, described: dict[str, Any], vocabulary: int) -> None:
    """Raise DataError for image size, words or vocabulary that this model does not take."""
    text, side = described["config"]["text_config"], described["config"]["vision_config"]["image_size"]
    if tuple(config.image_size) != (side, side):
        raise DataError(f"model.image_size: {list(config.image_size)}; this CLIP takes [{side}, {side}]")
    if config.max_words > (most := most_words(described)):
        raise DataError(f"model.max_words: this CLIP reads {most} words at most")
    if vocabulary > text["vocab_size"]:
        raise DataError(f"model.weights: the tokenizer has {vocabulary} words, the CLIP {text['vocab_size']}")


def _random_model(tree: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.for_model(**tree), dtype=torch.float32)


def _load(weights: str) -> Any:
    """Return the model at `weights`; a .bin is read as tensors alone. Raises DataError."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    name, local = hub_source(weights)
    try:
        model, report = AutoModel.from_pretrained(
            name, local_files_only=local, dtype=torch.float32, weights_only=True, output_loading_info=True
        )
    except Exception as error:  # OSError, ValueError, SafetensorError, UnpicklingError and what hub clients raise
        raise DataError(f"model.weights: {weights} cannot be read ({first_line(error)})") from None
    if missing := sorted(report["missing_keys"]):
        raise DataError(f"model.weights: {weights} has no tensor {missing[0]} ({len(missing)} missing); is it whole?")
    return model


def _plain(tree: Any) -> Any:
    """Return a configuration without what depends on this machine or on the file it came from."""
    if not isinstance(tree, dict):
        return tree
    return {key: _plain(value) for key, value in tree.items() if key not in _NOT_KEPT}
