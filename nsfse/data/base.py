"""What every data set becomes: triplets to train on, and named protocols to score by.

A reader is a class with the methods of `Source`; `registry.py` opens one by name. Images have ids.
Readers of folders have `images` (id → file) and load through `load_item`; the drawn catalogue draws instead.
"""

import hashlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nsfse_runtime.errors import ImageError, NotFoundError
from nsfse_runtime.inference.tokenizer import MAX_CHARACTERS
from nsfse_runtime.types import Pixels

if typing.TYPE_CHECKING:
    from nsfse.data.anomalies import Finding

__all__ = [
    "CheckReport",
    "EvalQuery",
    "EvaluationProtocol",
    "FolderOptions",
    "HasAttributes",
    "HasCalibrationSplit",
    "HasCategoryEdits",
    "HasLeftOut",
    "HasNotes",
    "HasTitles",
    "HasTrainingTexts",
    "Pixels",
    "Source",
    "TrainingTriplet",
    "WordLabel",
    "calibration_split",
    "gallery_digest",
    "load_item",
    "notes_of",
    "trainable",
]


@dataclass(frozen=True, slots=True)
class WordLabel:
    """What some words of a text require of an image: which `values` its attribute may have.

    `attribute_key` is a key of `HasAttributes.attributes`. The sleeves of a shirt have another key ("shirt length")
    than the attribute ("length"), which a mug has too.
    """

    attribute: str
    words: tuple[str, ...]
    attribute_key: str
    values: tuple[str, ...]
    absent: bool = False
    """Whether the words name what must not be there ("no stripes")."""


@dataclass(frozen=True, slots=True)
class TrainingTriplet:
    """One training example: a reference image, the text of an edit, and every image known to be right.

    `targets` begins with the preferred one: training pulls towards it and masks the others from the negatives.
    """

    reference: str
    text: str
    targets: tuple[str, ...]
    kind: str = ""
    """The kind of edit (`colour`, `double`, `negation`, ...) where the source knows it."""
    word_labels: tuple[WordLabel, ...] = ()
    """What the words of the text require, where the source knows."""
    typos: tuple[str, ...] = ()
    """Words of the text that were mistyped on purpose; the vocabulary does without them."""
    recolour_seed: int = 0
    """Seed by which the reference's colours are changed, so that it may be the target; 0 for none."""

    def as_query(self) -> "EvalQuery":
        """Return the triplet as a query of one phrasing, its reference in its own colours."""
        return EvalQuery(self.reference, (self.text,), self.targets, kind=self.kind, word_labels=self.word_labels)


@dataclass(frozen=True, slots=True)
class EvalQuery:
    """One query of a protocol, with its right answers.

    `texts` are phrasings of one edit. Positions mean the same for all queries of a protocol, so that phrasing_gap
    compares like with like. `targets` are ALL right answers, the preferred one first; they are empty where a test
    server has them. `reference` is empty for words alone.
    """

    reference: str
    texts: tuple[str, ...]
    targets: tuple[str, ...]
    hard_negatives: tuple[str, ...] = ()
    kind: str = ""  # as in TrainingTriplet
    aspects: tuple[str, ...] = ()  # CIRCO's semantic aspects
    subset: tuple[str, ...] = ()
    """CIRR: the members of the image set that R_subset ranks, without the reference."""
    soft: tuple[tuple[str, float], ...] = ()
    """CIRR: (id, weight in [-1, 1]) of soft targets."""
    pairid: str = ""
    word_labels: tuple[WordLabel, ...] = ()
    """What the words of the texts require, where the source knows."""
    more_references: tuple[str, ...] = ()
    more_texts: tuple[tuple[str, ...], ...] = ()
    """Further edits, each in as many phrasings as `texts` has."""
    negative_texts: tuple[str, ...] = ()
    """What must not be there, in words."""
    negative_images: tuple[str, ...] = ()
    """Images that the answer must not be like."""
    background_only: tuple[str, ...] | None = None
    """Images whose background has the requested colour and that do not have it themselves; None where not known."""
    old_value_named: tuple[int, ...] = ()
    """Positions of the texts that exclude a value of the reference by its name."""
    edit: str = ""
    """Queries of one `edit` are its phrasings (PinPoint)."""

    @property
    def is_simple(self) -> bool:
        """Whether the query is one image and one edit."""
        return bool(self.reference) and not (
            self.more_references or self.more_texts or self.negative_texts or self.negative_images
        )

    @property
    def reference_ids(self) -> tuple[str, ...]:
        """Every image that the query shows; none of them is an answer."""
        return (*self.references, *self.negative_images)

    @property
    def references(self) -> tuple[str, ...]:
        """The images that the texts edit; none where the words alone ask."""
        return (self.reference, *self.more_references) if self.reference else ()

    def texts_at(self, position: int) -> tuple[str, ...]:
        """Return the edits of one phrasing, one text each."""
        return (self.texts[position], *(texts[position] for texts in self.more_texts))


@dataclass(frozen=True, slots=True)
class EvaluationProtocol:
    """A named, versioned way to score: the gallery, the queries, and the rules between them.

    Ties break by gallery order. `texts` of several phrasings are ranked one by one, position by position.
    """

    name: str
    version: str
    gallery: tuple[str, ...]
    queries: tuple[EvalQuery, ...]
    remove_reference: bool = True
    ks: tuple[int, ...] = (1, 10, 50)
    note: str = ""
    """What a reader of the score must know: the caption join rule, which phrasings training never saw."""
    missing: int = 0
    """How many images of the official gallery are not there; `missing_ids` names those that the source knows."""
    missing_ids: tuple[str, ...] = ()
    map_ks: tuple[int, ...] = ()
    """K of mAP@K; if empty, mAP@10 where a query has several targets."""
    first_target_only: bool = False
    """Whether R@K counts the preferred target alone (CIRCO)."""


class FolderOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of every data set of given texts."""

    images: Path | None = None
    """Where images are when not under the data set's folder."""
    seed: int = 0
    """Seed of the order of training, and of its choice where there are several texts."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `nsfse data check` reports: counts by name against the official ones, faulty files, odd entries."""

    name: str
    counts: Mapping[str, int]
    expected: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    """(file, one-line reason)."""
    notes: tuple[str, ...] = ()
    faults: tuple["Finding", ...] = ()
    """Entries of the annotations that cannot be scored as they stand."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(folder or file, reason) of what could not be read; images missing because of it are in `missing`."""

    @property
    def differing(self) -> dict[str, tuple[int, int]]:
        """Counts that are not the official ones: name → (found, expected)."""
        return {k: (self.counts.get(k, 0), v) for k, v in self.expected.items() if self.counts.get(k, 0) != v}

    @property
    def ok(self) -> bool:
        """Whether all is there, readable, of the official size and fit to be scored."""
        return not (self.missing or self.broken or self.differing or self.faults)


class Source(typing.Protocol):
    """What training and evaluation need from a data set."""

    @property
    def name(self) -> str:
        """The data set's name, as `open_source` knows it."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids that the data set lists and whose images are not there."""

    def load(self, item: str, size: tuple[int, int]) -> Pixels:
        """Return one image.

        Args:
            item: The image's id.
            size: (height, width) in pixels that the image is fitted to.

        Returns:
            Pixels [H, W, 3], uint8 RGB.

        Raises:
            NotFoundError: The id has no image.
            ImageError: The file cannot be read safely.
        """

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split (`train`, `val`, `test`) whose images are there."""

    def triplets(self, epoch: int) -> list[TrainingTriplet]:
        """Return the training triplets of one epoch, in training order.

        They are fresh for each (seed, epoch) where the source makes its texts, else a seeded shuffle. Sources that
        know both directions of a pair put a→b and b→a side by side: a batch encodes each image once.
        """

    def protocols(self, split: str) -> list[EvaluationProtocol]:
        """Return the ways to score a split; empty where there is none."""

    def check(self) -> CheckReport:
        """Compare what is there with what should be."""


@typing.runtime_checkable
class HasNotes(typing.Protocol):
    """A source that looks for images through folders."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Folders and files that could not be read, a line each."""


@typing.runtime_checkable
class HasLeftOut(typing.Protocol):
    """A source of given texts, some of which cannot be trained on."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """What training leaves out beside missing images, a line each."""


@typing.runtime_checkable
class HasTrainingTexts(typing.Protocol):
    """A source that has several given texts for a pair, another one each epoch."""

    @property
    def training_texts(self) -> tuple[str, ...]:
        """Every text that training may use: the vocabulary needs the words of all."""


@typing.runtime_checkable
class HasAttributes(typing.Protocol):
    """A source that knows what is in its images."""

    def attributes(self, item: str) -> Mapping[str, str]:
        """Return the known values of an image by attribute key; a key that is not there is not known."""


@typing.runtime_checkable
class HasTitles(typing.Protocol):
    """A source whose images have titles."""

    @property
    def titles(self) -> Mapping[str, str]:
        """Titles of the training images by id; an image without one is not there."""


@typing.runtime_checkable
class HasCalibrationSplit(typing.Protocol):
    """A source that can reserve images, neither trained on nor scored, to fit a few numbers to."""

    def calibration_split(self) -> EvaluationProtocol | None:
        """Return queries among such images; None where none are reserved."""


@typing.runtime_checkable
class HasCategoryEdits(typing.Protocol):
    """A source that knows the category of each image."""

    def category_edits(self, gallery: Sequence[str], count: int) -> tuple[EvalQuery, ...]:
        """Return up to `count` queries that exclude or replace the category; `targets` may be empty."""


def calibration_split(source: Source) -> EvaluationProtocol | None:
    """Return the queries that `source` reserves for calibration; None where it reserves none."""
    return source.calibration_split() if isinstance(source, HasCalibrationSplit) else None


def notes_of(source: Source, training: bool = False) -> tuple[str, ...]:
    """Return lines on what `source` could not read; with `training` also on what training leaves out."""
    notes = source.notes if isinstance(source, HasNotes) else ()
    return (*notes, *source.left_out) if training and isinstance(source, HasLeftOut) else notes


def trainable(text: str) -> bool:
    """Return whether a text can be trained on: it is not blank and not too long for a tokenizer."""
    return bool(text.strip()) and len(text) <= MAX_CHARACTERS


def load_item(images: Mapping[str, Path], item: str, size: tuple[int, int]) -> Pixels:
    """Return one image of a folder.

    Args:
        images: Files by id.
        item: The image's id.
        size: (height, width) in pixels that the image is fitted to.

    Returns:
        Pixels [H, W, 3], uint8 RGB.

    Raises:
        NotFoundError: The id has no file.
        ImageError: The file cannot be read safely.
    """
    from nsfse_runtime.images.decode import load_image

    if item not in images:
        raise NotFoundError(f"no image for {item!r}; run `nsfse data check` on the data set to list what is missing")
    try:
        return load_image(images[item], size)
    except ImageError as error:
        raise ImageError(f"{error}; fetch or convert it, or delete the file to go on without the image") from error


def gallery_digest(gallery: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of the gallery's ids in order: only scores of equal digests compare."""
    return hashlib.sha256("\n".join(gallery).encode()).hexdigest()
