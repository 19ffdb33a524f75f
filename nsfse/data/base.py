"""What every data set becomes: triplets to train on, and named protocols to score by.

A reader is a class with the methods of `Source`; `sources.py` opens one by name. Each names its images by id.
Readers of folders keep `images` (id → file) and load through `load_item`; the drawn catalogue draws instead.
"""

import hashlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nsfse_runtime.errors import ImageError, NotFoundError
from nsfse_runtime.inference.tokenizer import MAX_CHARACTERS
from nsfse_runtime.types import Pixels

if typing.TYPE_CHECKING:
    from nsfse.data.anomalies import Finding

__all__ = [
    "CheckReport",
    "Claim",
    "Pixels",
    "Protocol",
    "Source",
    "Triplet",
    "gallery_digest",
    "load_item",
    "notes_of",
    "trainable",
]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a text asks of one attribute: the `words` that say so, and which `values` of `fact` an image may have.

    `fact` is a name of `Described.facts`: for sleeves of a shirt it is not the attribute (length), which a mug has too.
    Where `absent` the words name what must not be there ("no stripes").
    """

    attribute: str
    words: tuple[str, ...]
    fact: str
    values: tuple[str, ...]
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Triplet:
    """One query: a reference image, what to change, and every image known to answer it.

    `texts` holds one phrasing in training and one or several in a protocol: positions are the same for all its
    queries, so that phrasing_gap compares like with like. `targets` are ALL known right answers, the preferred one
    first (training pulls towards it and masks the others from the negatives). `targets` is empty where the answers
    are kept on a test server.
    """

    reference: str
    texts: tuple[str, ...]
    targets: tuple[str, ...]
    hard_negatives: tuple[str, ...] = ()
    kind: str = ""
    """The kind of edit (`colour`, `double`, `negation`, ...) where the source knows it."""
    subset: tuple[str, ...] = ()
    """CIRR: the members of the image set that R_subset ranks, without the reference."""
    soft: tuple[tuple[str, float], ...] = ()
    """CIRR: (id, weight in [-1, 1]) of soft targets."""
    pairid: str = ""
    recolour: int = 0
    """In training: the seed by which the reference's colours are changed, so that it may be the target; 0 for none."""
    truth: tuple[Claim, ...] = ()
    """What the first text asks for, where the source knows."""
    slips: tuple[str, ...] = ()
    """In training: words of the text that were mistyped on purpose; the vocabulary does without them."""
    more_references: tuple[str, ...] = ()
    more_texts: tuple[tuple[str, ...], ...] = ()
    """Further edits, each in as many phrasings as `texts` has."""
    negative_texts: tuple[str, ...] = ()
    """What must not be there, in words."""
    negative_images: tuple[str, ...] = ()
    """Images that the answer must not be like."""

    @property
    def plain(self) -> bool:
        """Return whether this is one image and one text."""
        return not (self.more_references or self.more_texts or self.negative_texts or self.negative_images)

    @property
    def reference_ids(self) -> tuple[str, ...]:
        """Return every image that the query shows; none of them is an answer."""
        return (self.reference, *self.more_references, *self.negative_images)

    def texts_at(self, position: int) -> tuple[str, ...]:
        """Return the edits of a phrasing, one text each."""
        return (self.texts[position], *(texts[position] for texts in self.more_texts))


@dataclass(frozen=True, slots=True)
class Protocol:
    """A named, versioned way to score: the gallery, the queries, and the rules between them.

    Ties break by gallery order. `texts` of several phrasings are ranked one by one, position by position.
    """

    name: str
    version: str
    gallery: tuple[str, ...]
    queries: tuple[Triplet, ...]
    remove_reference: bool = True
    ks: tuple[int, ...] = (1, 10, 50)
    note: str = ""
    """Anything a reader of the score must know: the caption join rule, which phrasings training never saw."""
    missing: int = 0
    """How many gallery images of the official list are not there: the score is stamped with it."""
    missing_ids: tuple[str, ...] = ()
    """Which ones, where the source knows: a score from an incomplete gallery names them."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `nsfse data check` found: counts by name against the official ones, files missing or broken, odd entries."""

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
    """(folder or file, reason) of what could not be looked at; what is missing for it is in `missing`."""

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
        """Return one image [H, W, 3] fitted to `size` (H, W); raise ImageError or NotFoundError, never skip."""

    def items(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split (`train`, `val`, `test`), those missing left out."""

    def triplets(self, epoch: int) -> list[Triplet]:
        """Return the training triplets of one epoch, in training order, each with one text.

        Fresh for each (seed, epoch) where the source makes its texts, a seeded shuffle where they are given. Sources
        that know both directions of a pair put a→b and b→a next to each other: a batch encodes each image once.
        """

    def protocols(self, split: str) -> list[Protocol]:
        """Return the ways to score a split; empty where there is none."""

    def check(self) -> CheckReport:
        """Compare what is there with what should be."""


@typing.runtime_checkable
class Scanned(typing.Protocol):
    """A source that looks for images through folders."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Folders and files that could not be looked at, a line each."""


@typing.runtime_checkable
class Selective(typing.Protocol):
    """A source of given texts, some of which cannot be trained on."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """What training leaves out beside missing images, a line each."""


@typing.runtime_checkable
class Worded(typing.Protocol):
    """A source that tells a pair in one of several given texts, another one each epoch."""

    @property
    def training_texts(self) -> tuple[str, ...]:
        """Every text that training may tell: the vocabulary needs the words of all."""


@typing.runtime_checkable
class Described(typing.Protocol):
    """A source that knows what is in its images."""

    def facts(self, item: str) -> Mapping[str, str]:
        """Return the known values of an image by fact; a fact that is not there is not known."""


@typing.runtime_checkable
class Titled(typing.Protocol):
    """A source whose images have titles."""

    @property
    def titles(self) -> Mapping[str, str]:
        """The words that a table calls its training images by; an image without any is not there."""


@typing.runtime_checkable
class HoldsOut(typing.Protocol):
    """A source that can keep images out of training, neither trained on nor scored, to fit a few numbers to."""

    def held_out(self) -> Protocol | None:
        """Return queries among such images; None where none are kept out."""


@typing.runtime_checkable
class EditsCategories(typing.Protocol):
    """A source that knows what kind of thing each image shows."""

    def category_edits(self, gallery: Sequence[str], count: int) -> tuple[Triplet, ...]:
        """Return up to `count` queries about `gallery` that exclude or replace a kind; `targets` may be empty."""


def held_out(source: Source) -> Protocol | None:
    """Return what `source` holds out of training, if anything."""
    return source.held_out() if isinstance(source, HoldsOut) else None


def notes_of(source: Source, training: bool = False) -> tuple[str, ...]:
    """Return what `source` has to say of what it left out; with `training` also of what training leaves out."""
    notes = source.notes if isinstance(source, Scanned) else ()
    return (*notes, *source.left_out) if training and isinstance(source, Selective) else notes


def trainable(text: str) -> bool:
    """Return whether a text can be trained on: it is not blank, and a tokenizer takes its length."""
    return bool(text.strip()) and len(text) <= MAX_CHARACTERS


def load_item(images: Mapping[str, Path], item: str, size: tuple[int, int]) -> Pixels:
    """Return image `item` [H, W, 3] fitted to `size` (H, W).

    Raises NotFoundError for an id without a file and ImageError for a file that cannot be read safely.
    """
    from nsfse_runtime.images.decode import load_image

    if item not in images:
        raise NotFoundError(f"no image for {item!r}; run `nsfse data check` on the data set to list what is missing")
    try:
        return load_image(images[item], size)
    except ImageError as error:
        raise ImageError(f"{error}; fetch or convert it, or delete the file to go on without the image") from error


def gallery_digest(gallery: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of the gallery's ids in order: two scores compare only where this is equal."""
    return hashlib.sha256("\n".join(gallery).encode()).hexdigest()
