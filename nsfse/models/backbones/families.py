"""The dual encoders of `transformers` that are read, as data. To add one: add its row."""

from dataclasses import dataclass
from typing import Any, Literal

from nsfse_runtime.errors import DataError

Sentence = Literal["end", "first", "last", "pooled"]


@dataclass(frozen=True)
class Family:
    """How one family reads a text.

    Attributes:
        sentence: Which token is the sentence: the end token, the first, the last of the padded text, or what the text
            tower pools itself.
        masked: Whether the text tower gets a mask of padding; a causal one needs none.
        padded: Whether every text is padded to all positions, as the model was trained.
        word_head: The text tower's own map from a token to the common space, where it has one.
    """

    sentence: Sentence
    masked: bool = False
    padded: bool = False
    word_head: str = ""


@dataclass(frozen=True)
class ImageTower:
    """How the patches of an image tower come to the common space.

    Attributes:
        head: The tower's own map of a token, before the projection; "" where its last layer is already normalised.
        pools: Whether `head` pools tokens by attention: a patch is then what the head makes of it alone. [O]
        before: Tokens before the first patch.
    """

    head: str = ""
    pools: bool = False
    before: int = 1


FAMILIES = {
    "clip": Family("end"),
    "clipseg": Family("end"),
    "metaclip_2": Family("end"),
    "altclip": Family("first", masked=True),
    "chinese_clip": Family("first", masked=True),
    "siglip": Family("last", padded=True, word_head="head"),
    "vision-text-dual-encoder": Family("pooled", masked=True),
}

_CLIP_TOWER = ImageTower("post_layernorm")
IMAGE_TOWERS = {
    "clip_vision_model": _CLIP_TOWER,
    "clipseg_vision_model": _CLIP_TOWER,
    "metaclip_2_vision_model": _CLIP_TOWER,
    "altclip_vision_model": _CLIP_TOWER,
    "chinese_clip_vision_model": _CLIP_TOWER,
    "siglip_vision_model": ImageTower("head", pools=True, before=0),
    "vit": ImageTower(),
    "deit": ImageTower(before=2),
    "dinov2": ImageTower(),
}

_REASONS = {
    "siglip2": "SigLIP 2 NaFlex has no fixed image size; use a SigLIP 2 of fixed resolution, such as "
    "siglip2-base-patch16-224",
    "blip": "BLIP compares images and texts by a third network; use a dual encoder such as SigLIP 2",
    "blip-2": "BLIP-2 compares images and texts by a third network; use a dual encoder such as SigLIP 2",
}


def family_of(tree: dict[str, Any], weights: str) -> Family:
    """Return the row of a model by its config.json. Raises DataError for one that is not read."""
    kind = tree.get("model_type")
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind in _REASONS:
        raise DataError(f"model.weights: {weights}: {_REASONS[kind]}")
    own_code = ", whose code is not run" if "auto_map" in tree else ""
    raise DataError(f"model.weights: {weights} is of the kind {kind!r}{own_code}; there are: {', '.join(FAMILIES)}")


def image_tower_of(kind: str) -> ImageTower:
    """Return the row of an image tower by its kind. Raises DataError for one that is not read."""
    if kind not in IMAGE_TOWERS:
        raise DataError(f"model.weights: no image tower {kind!r}; there are: {', '.join(IMAGE_TOWERS)}")
    return IMAGE_TOWERS[kind]
