"""The whole configuration of a run: frozen structs with the recipe as defaults, TOML in, JSON out. No torch here."""

import copy
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from nsfse.suggest import did_you_mean
from nsfse_runtime.errors import DataError, NotFoundError, UsageError
from nsfse_runtime.regular_files import read_regular

PRESET_FOLDER = Path(__file__).parent / "presets"
PRESETS = tuple(sorted(path.stem for path in PRESET_FOLDER.glob("*.toml")))
FITTING_QUERIES = 600
AMP, AMP_VARIABLE = ("auto", "on", "off"), "NSFSE_BF16_AUTOCAST"
_OLD_AMP = {"true": "auto", "1": "auto", "false": "off", "0": "off"}


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to learn from: a source's name, its folder if it has one, and the source's own options."""

    source: str = "drawn"
    folder: str = ""
    options: dict[str, Any] = {}
    validation: str = "val"
    """The split whose protocols are scored during training."""
    validation_queries: int = 500
    """At most this many queries of each protocol during training; 0 for no validation."""
    fitting_queries: Annotated[int, msgspec.Meta(ge=1)] = FITTING_QUERIES
    """About how many queries ω is fitted to after an epoch, and the confidence after the last."""


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model: backbone and head. `dim` is d, `image_size` is (height, width) in pixels."""

    backbone: str = "tiny"
    """tiny, efficientnet-lite0, resnet50 or clip (docs/backbones.md)."""
    weights: str = ""
    """Where the backbone's weights come from: a file, a folder, `hub:OWNER/NAME`, `random`, or its own default."""
    frozen_stages: int = 0
    """Stages of the pre-trained image trunk that do not learn, from the image on; -1 for all."""
    stride: int = 32
    """Pixels of a region's side in efficientnet-lite0 and resnet50; with 16 the former ends at its fifth stage."""
    glove: str = ""
    """A GloVe text file for the first word embeddings."""
    text_teacher: str = ""
    """A sentence encoder that says what words mean: a folder or `hub:OWNER/NAME`; none by default."""
    word_dim: Annotated[int, msgspec.Meta(ge=1)] = 128
    """Numbers that are kept of each of the teacher's word vectors."""
    common_words: Annotated[int, msgspec.Meta(ge=0)] = 8000
    """Of the teacher's words, how many the vocabulary has beside those of the training texts."""
    sentence: Literal["peak", "signed"] = "peak"
    """How words become a sentence (docs/method.md §1): `signed` can take an embedding away, as "not blue" asks."""
    image_size: tuple[int, int] = (64, 64)
    width: int = 32
    """Channels of the tiny backbone's stem; each of the three stages after it doubles them."""
    depth: int = 1
    """Residual blocks in each stage of the tiny backbone."""
    dim: int = 128
    global_tokens: int = 4
    """Vectors of the whole image beside its regions; each is compared with the same one of a candidate."""
    max_words: int = 24
    infusion: bool = True
    """Whether words are infused with the reference (docs/method.md §2)."""
    gamma: float = 1.0
    """Weight of the negative branch (γ)."""
    attention_scale: float = 20.0
    """Sharpness of the head's attention (λ)."""
    alpha: float = 2.0
    """Cost of calling a mismatched correspondence matched, against the reverse (α)."""
    head_grad_scale: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """How much of what the head learns goes on to what stage 1 learns from; at 0 it moves its own layers alone."""
    channel_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share of the trunk's channels that each image goes without in training, where regions are cells of a trunk."""
    pool_grid: Annotated[int, msgspec.Meta(ge=0)] = 4
    """Cells a side of the grid that a dual encoder's patches are averaged to: its regions; 0 for every patch."""
    clip_config: dict[str, Any] = {}
    """What is known of a dual encoder: its configuration, special tokens and image statistics, from its weights."""
    attribute_blocks: bool = False
    """Whether a part of each vector says how likely the values of each attribute are, where attributes are learned."""
    attributes: dict[str, int] = {}
    """How many values each attribute of these blocks has, filled in from the data."""
    method: str = "nsfse"
    """`nsfse`, or a baseline of docs/method.md §9: image-only, text-only, sum, slerp, tirg, combiner, artemis."""
    attribute_supervision: bool = False
    """Whether a baseline learns attributes, too, by train.word_role_weight and train.word_grounding_weight (§9)."""
    text_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """How much the text counts in `sum` and `slerp`: 0 is image-only, 1 text-only."""
    evidence: Literal["none", "regions", "whole"] = "none"
    """Where an untrained dual encoder looks for words (docs/method.md §11): nowhere, in regions, in the whole image."""
    evidence_prompt: tuple[int, ...] = ()
    """The ids of the prompt before each word."""
    boundary: Literal["dynamic"] | float = "dynamic"
    """A number fixes both boundaries (t_c, t_v) there: an ablation."""
    words: Literal["each", "sentence"] = "each"
    """`sentence` gives the head the sentence in place of its words (L = 1): an ablation."""
    branches: Literal["both", "cross", "visual"] = "both"
    """Which of S_c and S_v are in S: an ablation."""


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The loop. An epoch is what the source calls one: `data.options.triplets` of them where it makes its own."""

    seed: int = 0
    epochs: int = 10
    total_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Steps in all, in as many epochs as they need; 0 for those of `epochs`."""
    batch: int = 256
    lr: float = 1e-3
    backbone_lr_scale: float = 0.1
    """The rate of pre-trained parameters as a share of `lr`; 0 freezes them."""
    weight_decay: float = 0.05
    warmup_ratio: float = 0.05
    """Share of all steps in which the learning rate rises."""
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    """Decay of the running average of the weights, which is what is saved for use; 0 for none."""
    bf16_autocast: str | bool = "auto"
    """bfloat16 in encoders and in products of the pair head: auto (on GPUs that compute in it), on or off.

    The environment's NSFSE_BF16_AUTOCAST stands in for auto. True and false, as older configurations have it, are auto
    and off.
    """
    augment_strength: float = 1.0
    """Strength of shifts, scaling, flips and brightness on images; 0 for none."""
    word_dropout: float = 0.05
    """Share of words replaced by the unknown word, so that an unseen word is bearable."""
    candidates: int = 128
    """Candidates per query in the pair head: target and reference, then half hardest, half random of the batch."""
    head_share: float = 0.25
    """Share of a batch's queries that train the pair head."""
    head_weight: float = 1.0
    distill_weight: float = 0.1
    boundary_weight: float = 0.1
    sentence_weight: float = 0.1
    word_role_weight: float = 0.3
    """Weight of the loss on which words request something, or its absence, where the source knows."""
    word_grounding_weight: float = 3.0
    """Weight of the loss on what those words look like, over all labelled images of a batch."""
    attribute_weight: float = 0.0
    """Weight of the loss on the attributes of images and queries, where the source knows them; 0 leaves them unread."""
    title_weight: float = 0.5
    """Weight of the loss on titles of products, where the source has them; 0 leaves them unread."""
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share of stage 1's label that all candidates of the batch have alike: against learning by heart."""
    grad_cache_chunks: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Parts in which a batch is encoded: less memory, one more pass, the same loss and gradient (docs/training.md)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where torch computes; auto is the GPU where there is one."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where the numbers of metrics.jsonl go, too; each is an extra of its name."""
    save_every: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """Minutes between two saved states within an epoch, so that a kill costs no more than that."""
    threads: int = 0
    """Threads of torch; 0 leaves its own choice."""
    workers: Annotated[int, msgspec.Meta(ge=1)] = 2
    """Threads that read images; the weights do not depend on it."""
    cache_gb: float = 4.0
    """Size of the cache of decoded images or their features, in GiB; what does not fit is made again each time."""
    cached_views: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Views of each image whose features of the frozen stages are cached: one as it is, others augmented.

    With 0 images are cached and augmented afresh, or features of one view where the whole trunk is frozen.
    """

    def __post_init__(self) -> None:
        """Give `bf16_autocast` its name. Raises UsageError for another value than those."""
        value = str(self.bf16_autocast).lower()
        msgspec.structs.force_setattr(self, "bf16_autocast", _OLD_AMP.get(value, value))
        if self.bf16_autocast not in AMP:
            raise UsageError(f"train.bf16_autocast is {value!r}; set it to {', '.join(AMP[:-1])} or {AMP[-1]}")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()


def load_config(
    preset: str | None = None,
    file: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    data: str | os.PathLike[str] | None = None,
    bases: Sequence[dict[str, Any]] = (),
) -> Config:
    """Merge settings: `bases`, then a preset, a TOML file, overrides and the data folder.

    Args:
        preset: Name of a preset.
        file: A TOML file.
        overrides: Texts `section.key=value`.
        data: Folder of the data.
        bases: Nested dicts of settings that the others build on.

    Returns:
        The configuration.

    Raises:
        UsageError: The preset is unknown, or an override is not of its form.
        NotFoundError: There is no such file.
        DataError: A setting is unknown or has a wrong value; the message names file and key.
    """
    merged: dict[str, Any] = {}
    for base in bases:
        _merge(merged, copy.deepcopy(base))
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(
                f"no preset {preset!r}{did_you_mean(preset, PRESETS) or ';'} there are: {', '.join(PRESETS)}"
            )
        _merge(merged, _read_toml(PRESET_FOLDER / f"{preset}.toml"))
    if file is not None:
        _merge(merged, _read_toml(Path(file)))
    for override in overrides:
        _merge(merged, _override(override))
    if data is not None:
        _merge(merged, {"data": {"folder": os.fspath(data)}})
    return parse_config(merged, str(file or preset or "the options"))


def parse_config(tree: dict[str, Any], origin: str) -> Config:
    """Turn nested dicts into a configuration.

    Args:
        tree: Settings by section.
        origin: Where they come from, for error messages.

    Returns:
        The configuration.

    Raises:
        DataError: A section or setting is unknown or wrong; the message names the nearest valid key.
        UsageError: A setting has none of its allowed values.
    """
    sections = {f.name: f.type for f in msgspec.structs.fields(Config)}
    for name, values in tree.items():
        if name not in sections:
            raise DataError(f"{origin}: no section [{name}]{did_you_mean(name, sections)}")
        if not isinstance(values, dict):
            raise DataError(f"{origin}: [{name}] must be a table of settings")
        known = tuple(f.name for f in msgspec.structs.fields(sections[name]))
        for key in values:
            if key not in known:
                raise DataError(f"{origin}: no setting {name}.{key}{did_you_mean(key, known)}")
    try:
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, UsageError):
            raise UsageError(f"{origin}: {error.__cause__}") from None
        raise DataError(f"{origin}: {error}") from None


def same_config(tree: dict[str, Any], config: Config) -> bool:
    """Return whether a saved tree of settings is the same configuration.

    A setting of a later version, which the tree lacks, counts as the default.
    """
    try:
        return parse_config(tree, "a saved configuration") == config
    except DataError:
        return False


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_regular(path).decode("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from None


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or len(parts) < 2 or not all(parts):
        raise UsageError(f"{text!r} is not of the form section.key=value, such as train.epochs=3")
    try:
        parsed: Any = tomllib.loads(f"v = {value.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed  # type: ignore[no-any-return]


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
