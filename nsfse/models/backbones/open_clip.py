"""The layout of OpenCLIP (open_clip_config.json and one file of weights) as models of `transformers`.

Its ViT, and the ViT of SigLIP in the form of timm, have a form there; every other tower is refused by name.
"""

import re
from typing import Any

import torch
from torch import Tensor

from nsfse.models.backbones.weights_folder import find_file
from nsfse.models.weights import fit_tensors, read_tensors
from nsfse_runtime.errors import DataError

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WAY_ON = "give the model as a folder saved by transformers"

_TEXT_RATIO = 4  # hidden units of a text tower for each of its width
# A timm ViT of SigLIP: width, layers, heads, hidden units.
SIGLIP_VITS = {
    "vit_base": (768, 12, 12, 3072),
    "vit_large": (1024, 24, 16, 4096),
    "vit_so400m": (1152, 27, 16, 4304),
    "vit_giantopt": (1536, 40, 16, 6144),
}
_SIGLIP_NAME = re.compile(r"(vit_\w+?)_patch(\d+)_siglip(?:_gap)?(?:_\d+)?")
_VIT_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "hf_tokenizer_name", "tokenizer_kwargs"}
_SIGLIP_TEXT_KEYS = _TEXT_KEYS | {"no_causal_mask", "proj_bias", "pool_type", "norm_kwargs", "act_kwargs"}

# Names of tensors: theirs (a pattern) → those of transformers. A layer is written with its number.
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_NAMES = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.norm": "vision_model.post_layernorm",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "visual.trunk.attn_pool.proj": "vision_model.head.attention.out_proj",
    "visual.trunk.attn_pool.norm": "vision_model.head.layernorm",
    "visual.trunk.attn_pool.mlp": "vision_model.head.mlp",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}
_TRANSPOSED = ("visual.proj", "text_projection")
_ATTENTION = re.compile(r"(.*\.layers\.\d+)\.attn\.(?:in_proj_|qkv\.)(weight|bias)")
_LAYERS = re.compile(r"(visual\.)?(?:trunk\.blocks|transformer\.resblocks)\.(\d+)\.(.*)")


def as_transformers(described: dict[str, Any], weights: str) -> dict[str, Any]:
    """Return the config.json of the model that an open_clip_config.json describes. Raises DataError."""
    model = described.get("model_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    named = vision.get("timm_model_name", "")
    if siglip := _SIGLIP_NAME.fullmatch(named):
        return _siglip(vision, text, siglip, weights)
    if tower := named or text.get("hf_model_name") or text.get("timm_model_name"):
        raise DataError(f"model.weights: {weights}: the tower {tower} of OpenCLIP is not read; {WAY_ON}")
    _refuse_unknown(vision.keys() - _VIT_KEYS | text.keys() - _TEXT_KEYS, weights)
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    heads = vision["width"] // vision.get("head_width", 64)
    shape = {"hidden_act": act, "layer_norm_eps": 1e-5}
    return {
        "model_type": "clip",
        "projection_dim": model["embed_dim"],
        "vision_config": shape
        | _tower(vision["width"], vision["layers"], heads, round(vision["width"] * vision.get("mlp_ratio", 4)))
        | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]},
        "text_config": shape | _text(text),
    }


def _siglip(vision: dict[str, Any], text: dict[str, Any], name: re.Match[str], weights: str) -> dict[str, Any]:
    if name[1] not in SIGLIP_VITS or vision.get("timm_pool") != "map" or not text.get("no_causal_mask"):
        raise DataError(f"model.weights: {weights}: the tower {name[0]} of OpenCLIP is not read; {WAY_ON}")
    _refuse_unknown(text.keys() - _SIGLIP_TEXT_KEYS, weights)
    width, layers, heads, hidden = SIGLIP_VITS[name[1]]
    act = {"hidden_act": "gelu_pytorch_tanh" if text.get("act_kwargs") else "gelu", "layer_norm_eps": 1e-6}
    return {
        "model_type": "siglip",
        "vision_config": act
        | _tower(width, layers, heads, hidden)
        | {"image_size": vision["image_size"], "patch_size": int(name[2])},
        "text_config": act | _text(text) | {"projection_size": width},
    }


def _tower(width: int, layers: int, heads: int, hidden: int) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, (width, layers, heads, hidden), strict=True))


def _text(text: dict[str, Any]) -> dict[str, Any]:
    shape = _tower(text["width"], text["layers"], text["heads"], round(_TEXT_RATIO * text["width"]))
    size = {"vocab_size": text["vocab_size"], "max_position_embeddings": text["context_length"]}
    last = text["vocab_size"] - 1  # the end token; the encoder finds it by its place
    return shape | size | {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}


def _refuse_unknown(keys: set[str], weights: str) -> None:
    if keys:
        raise DataError(f"model.weights: {weights}: OpenCLIP's {min(keys)} is not read; {WAY_ON}")


def processor(described: dict[str, Any]) -> dict[str, Any]:
    """Return how images are prepared, in the words of `transformers`; {} where nothing says so."""
    found = described.get("preprocess_cfg", {})
    size = described.get("model_cfg", {}).get("vision_cfg", {}).get("image_size")
    if not found:
        return {}
    square = {"height": size, "width": size}
    crops = found.get("resize_mode", "shortest") == "shortest"
    return {
        "image_mean": found["mean"],
        "image_std": found["std"],
        "resample": 2 if found.get("interpolation") == "bilinear" else 3,
        "size": {"shortest_edge": size} if crops else square,
        "do_center_crop": crops,
        "crop_size": square,
    }


def load(weights: str, model: Any) -> Any:
    """Fill `model`, made of `as_transformers`, with OpenCLIP's tensors and return it. Raises DataError and others."""
    tensors = read_tensors(find_file(weights, *WEIGHTS))
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        named |= _renamed(name.removeprefix("text."), tensor.float())
    head = "head.attention."
    query, pair = (named.pop(f"vision_model.{head}{part}.weight", None) for part in ("q", "kv"))
    if query is not None and pair is not None:
        named[f"vision_model.{head}in_proj_weight"] = torch.cat([query, pair])
        biases = (named.pop(f"vision_model.{head}{part}.bias") for part in ("q", "kv"))
        named[f"vision_model.{head}in_proj_bias"] = torch.cat([*biases])
    for scale in ("logit_scale", "logit_bias"):
        named[scale] = model.state_dict().get(scale)  # no score reads it
    fit_tensors(model, named, f"model.weights: {weights}")
    return model


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor of OpenCLIP under its name in transformers: one, or the three of an attention's input."""
    if layer := _LAYERS.fullmatch(name):
        tower = "vision_model" if layer[1] else "text_model"
        whole = f"{tower}.encoder.layers.{layer[2]}.{layer[3]}"
        if attention := _ATTENTION.fullmatch(whole):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{attention[1]}.self_attn.{part}_proj.{attention[2]}": rows for part, rows in parts}
        part, _, kind = layer[3].rpartition(".")
        return {f"{tower}.encoder.layers.{layer[2]}.{_LAYER.get(part, part)}.{kind}": tensor}
    if name in _TRANSPOSED:
        return {"text_projection.weight" if name == "text_projection" else _NAMES[name]: tensor.T}
    if name.startswith("text_projection."):
        return {f"text_model.head.{name.removeprefix('text_projection.')}": tensor}
    if name.startswith("visual.trunk.attn_pool.") and name.split(".")[3] in ("q", "kv"):
        return {name.replace("visual.trunk.attn_pool", "vision_model.head.attention"): tensor}
    for theirs, ours in _NAMES.items():
        if name == theirs or name.startswith(f"{theirs}."):
            tensor = tensor[0] if theirs == "visual.trunk.pos_embed" else tensor
            return {ours + name.removeprefix(theirs): tensor}
    return {}
