"""What a contact sheet or page shows: queries, their hits as thumbnails, and what is known of each."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nsfse_runtime.errors import ImageError, NotFoundError
from nsfse_runtime.types import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = (176, 176)
"""(height, width) of the images in a sheet or page, pixels."""


class Word(Protocol):
    """One word's evidence, as a hit carries it."""

    @property
    def word(self) -> str:
        """Return the word as written."""

    @property
    def matched(self) -> bool | None:
        """Return whether it is in the image, or not in it where the text says so; None where that is not sure."""

    @property
    def weight(self) -> float:
        """Return its share of what the text says, −1 to 1: under 0 it names what must not be there."""


def verdict(word: Word, count: int) -> str:
    """Return `matched`, `mismatched`, or `silent` for one of `count` words that is unsure or has under half a share."""
    if word.matched is None or abs(word.weight) * count < 0.5:
        return "silent"
    return "matched" if word.matched else "mismatched"


@dataclass(frozen=True, slots=True)
class SheetHit:
    """One found image [H, W, 3] with what is written under it.

    `pixels` is None where its file is gone since it was indexed. `is_match` is None where the model
    does not say, `right` where the answer is not known.
    """

    pixels: Pixels | None
    id: str
    score: float
    is_match: bool | None
    words: tuple[Word, ...] = ()
    right: bool | None = None
    rank: str = ""
    """Its rank, where that is not its position among the hits."""
    note: str = ""
    """A short line about it: a hard negative."""


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One query: the reference image [H, W, 3] (None for words alone), its text, and its hits, best first."""

    pixels: Pixels | None
    text: str
    hits: tuple[SheetHit, ...]
    note: str = ""
    """A short line under the text: the reference's id, the kind of edit."""
    more: tuple[tuple[str, Pixels], ...] = ()
    """Further images of the query, each with what it is there for: `and like`, `not like`."""
    notes: tuple[str, ...] = ()
    """What of the text was not read or not followed: sentences."""


class SheetSource(Protocol):
    """What a row needs of a hit (`nsfse_runtime.retrieval.retriever.Hit` is one)."""

    @property
    def id(self) -> str:
        """Return the gallery's id."""

    @property
    def path(self) -> str:
        """Return the image's file."""

    @property
    def score(self) -> float:
        """Return the score."""

    @property
    def is_match(self) -> bool | None:
        """Return whether the whole is a match, None where the model does not say."""

    @property
    def evidence(self) -> Sequence[Word]:
        """Return the evidence per word."""


def sheet_row(
    reference: str | os.PathLike[str] | None,
    text: str,
    hits: Sequence[SheetSource],
    *,
    right: Collection[str] | None = None,
    note: str = "",
    more: Sequence[tuple[str, str | os.PathLike[str]]] = (),
    notes: Sequence[str] = (),
) -> SheetRow:
    """Load the thumbnails of one query.

    Args:
        reference: The reference image's file; None for words alone.
        text: The query's text.
        hits: The hits, best first; one whose file is gone stays, without an image.
        right: Ids of the right answers; None where they are not known.
        note: A short line under the text.
        more: Further images of the query: (what it is there for, file).
        notes: What of the text was not read, as sentences.

    Raises:
        NotFoundError: A file of the query's own images is absent.
        ImageError: One of the query's own images cannot be read.
    """
    from nsfse_runtime.images.decode import load_image

    def pixels_of(path: str) -> Pixels | None:
        try:
            return load_image(path, THUMBNAIL)
        except (NotFoundError, ImageError):
            return None

    thumbnails = (
        SheetHit(
            pixels_of(h.path), h.id, h.score, h.is_match, tuple(h.evidence), None if right is None else h.id in right
        )
        for h in hits
    )
    others = tuple((caption, load_image(path, THUMBNAIL)) for caption, path in more)
    pixels = None if reference is None else load_image(reference, THUMBNAIL)
    return SheetRow(pixels, text, tuple(thumbnails), note, others, tuple(notes))


def thumbnail(pixels: Pixels) -> "Image":
    """Return `pixels` [H, W, 3] as a Pillow image that fits THUMBNAIL; small images are enlarged."""
    from PIL import Image, ImageOps

    image = Image.fromarray(pixels)
    return ImageOps.contain(image, THUMBNAIL[::-1], Image.Resampling.LANCZOS)
