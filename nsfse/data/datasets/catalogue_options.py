"""The options of a catalogue: which columns are what, and which edits are made how often."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from nsfse.data.text.augmentation import AUGMENT_PROB
from nsfse_runtime.errors import UsageError

SHARES = ("augment_prob", "voice_ratio", "negation_ratio", "text_ratio", "phrase_ratio", "title_phrase_ratio")
"""Options from 0 to 1, both included."""


class CatalogueOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the data set `catalogue`. Shares and probabilities are from 0 to 1."""

    table: str = "items.csv"
    images: Path | None = None
    """Where images are when not in `images/` of the folder."""
    attributes: Sequence[str] | None = None
    """Columns that an edit leaves unchanged when it does not name them; by default every column of few values."""
    described: Sequence[str] = ()
    """Columns that tell more of an image, which no edit names or keeps: training may classify them."""
    unnamed_values: Sequence[str] = ()
    """Values of attributes that no edit requests, such as `-` where there is nothing to name."""
    group: str | None = "group"
    """Column that names products; images of one product are its variants."""
    title: str | None = "title"
    """Column that names an image in words, used to train titles against images."""
    phrase_ratio: float = 0.0
    """Share of edits whose text describes the target instead of a change ("striped red dress")."""
    title_phrase_ratio: float = 0.0
    """Share of titles that such texts stand for."""
    variant: str | None = None
    """Attribute that varies within a group; by default the one that varies within most."""
    split: str = "train"
    """Split to make triplets of."""
    seed: int = 0
    triplets: int = 60_000
    """Triplets in an epoch."""
    instance_ratio: float = 0.5
    """Share of edits within a group, which stay within one product."""
    double_ratio: float = 0.1
    """Share of edits of two attributes."""
    balance: float = 0.5
    """Power of a value's count in how often it is requested: 1 as often as items have it, 0 all values alike."""
    recolour_prob: float = 0.0
    """Share of triplets whose reference is the target in other colours."""
    attribute_weights: Mapping[str, float] | None = None
    """How often each attribute changes, relative; by default by the root of how often it can."""
    templates: str = "en"
    """A shipped language, or a TOML file of templates."""
    augment_prob: float = AUGMENT_PROB
    """Share of training texts that are augmented (docs/data.md)."""
    voices: str | None = None
    """A shipped language or a TOML file of voices; by default those of the templates' language."""
    voice_ratio: float = 0.0
    """Share of augmented texts that a voice says."""
    without_voices: Sequence[str] = ()
    """Of these, voices that training never hears."""
    negation_ratio: float = 0.0
    """Share of edits that name what is not wanted ("not red")."""
    calibration_ratio: float = 0.0
    """Share of products held out of training, to fit score weights and confidence to."""
    texts: str = ""
    """JSONL file of free texts for pairs of training images (docs/catalogue.md)."""
    text_ratio: float = 0.0
    """Share of triplets with a free text; the others are edits made of attributes."""
    held_out_voices: Sequence[str] = ()
    """Voices whose free texts training leaves out."""

    def __post_init__(self) -> None:
        """Raise UsageError for a number out of its range."""
        both = self.instance_ratio + self.double_ratio
        if not (0 <= self.instance_ratio <= 1 and 0 <= self.double_ratio <= 1 and both <= 1 and self.triplets > 0):
            raise UsageError(
                "instance_ratio and double_ratio are shares of at most 1 together, and triplets is positive"
            )
        if not 0 <= self.recolour_prob < 1:
            raise UsageError("recolour_prob is a share of all triplets: from 0 to less than 1")
        if not 0 <= self.calibration_ratio < 1:
            raise UsageError("calibration_ratio is a share of products, from 0 to less than 1")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a share, from 0 to 1")
        if self.text_ratio and not self.texts:
            raise UsageError("text_ratio is a share of free texts, and none are given; name their file (texts)")
