"""Free texts: what people wrote about pairs of a catalogue's images, beside the edits made of its attributes.

A JSONL file in the form of queries.jsonl (docs/data.md). A line may name its `voice`: who wrote it, or in which way.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from nsfse.data import TrainingTriplet, trainable
from nsfse.data.datasets.file_index import counted
from nsfse.data.datasets.items import ItemTable
from nsfse.data.text_files import Name, read_json_line, read_lines
from nsfse.suggest import did_you_mean
from nsfse_runtime.errors import DataError, NotFoundError, UsageError

KIND = "free text"
"""The kind of edit of triplets with a free text."""


class _Line(msgspec.Struct, frozen=True):
    """A line of the file; numbers are ids, too."""

    reference: Name | int
    texts: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]
    targets: Annotated[tuple[Name | int, ...], msgspec.Meta(min_length=1)]
    split: str = ""
    voice: str = ""


@dataclass(frozen=True, slots=True)
class FreeText:
    """A pair of images, all texts that lead from one to the other, and their voice."""

    reference: str
    texts: tuple[str, ...]
    targets: tuple[str, ...]
    voice: str


def read_free_texts(
    file: Path, table: ItemTable, split: str, held_out_voices: Collection[str] = ()
) -> tuple[FreeText, ...]:
    """Read the free texts of one split.

    Args:
        file: The JSONL file.
        table: The catalogue's items.
        split: The split whose lines are read, and those that name none.
        held_out_voices: Voices whose lines are left out.

    Returns:
        The texts in the file's order.

    Raises:
        NotFoundError: There is no such file.
        DataError: A line is not in its form, or names an item that the table or the split does not have.
        UsageError: No line has a voice that is to be held out.
    """
    if not file.is_file():
        raise NotFoundError(f"no {file.name} in {file.parent}; it needs one JSON object a line")
    known = frozenset(table.of_split(split) or table.rows)
    texts = []
    for number, line in read_lines(file):
        where = f"{file}:{number}"
        row = read_json_line(line, _Line, where, "reference, texts and targets")
        if row.split in ("", split):
            text = FreeText(str(row.reference), row.texts, tuple(map(str, row.targets)), row.voice)
            _check(text, where, known, table.file)
            texts.append(text)
    voices = {text.voice for text in texts} - {""}
    for voice in held_out_voices:
        if voice not in voices:
            there = f"there are: {', '.join(sorted(voices))}" if voices else "no line names one"
            raise UsageError(f"{file} has no voice {voice!r}{did_you_mean(voice, voices) or ';'} {there}")
    return tuple(text for text in texts if text.voice not in held_out_voices)


def _check(text: FreeText, where: str, known: Collection[str], table: Path) -> None:
    for item in (text.reference, *text.targets):
        if item not in known:
            raise DataError(f"{where} names {item!r}, which {table} does not list in this split; add it there")
    if set(text.targets) == {text.reference}:
        raise DataError(f"{where} has its reference as the only target; name another image")


class FreeTexts:
    """Draws triplets of free texts; those of images that are not among `items` are left out.

    Raises DataError where there are texts and none is left.
    """

    def __init__(self, texts: Sequence[FreeText], seed: int, items: Collection[str] = ()) -> None:
        self._seed = seed
        there = [text for text in texts if {text.reference, *text.targets} <= {*items}]
        self._texts = [text for text in there if all(map(trainable, text.texts))]
        self._missing, self._too_long = len(texts) - len(there), len(there) - len(self._texts)
        if texts and not self._texts:
            raise DataError(f"no free text is left: {'; '.join(self.left_out)}; check the images, or set text_ratio=0")

    @property
    def all(self) -> tuple[str, ...]:
        """Every text."""
        return tuple(text for entry in self._texts for text in entry.texts)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is left out, a line each."""
        missing = f"{counted(self._missing, 'free text')} left out: an image is missing or held out"
        too_long = f"{counted(self._too_long, 'free text')} left out: far too long"
        return tuple(line for number, line in ((self._missing, missing), (self._too_long, too_long)) if number)

    def triplets(self, epoch: int, count: int) -> list[TrainingTriplet]:
        """Return `count` triplets: every pair once before one comes again, each with one of its texts."""
        rng = random.Random(f"free text/{self._seed}/{epoch}")
        drawn: list[FreeText] = []
        while len(drawn) < count:
            drawn += rng.sample(self._texts, len(self._texts))
        return [TrainingTriplet(t.reference, rng.choice(t.texts), t.targets, KIND) for t in drawn[:count]]


def interleaved(made: Sequence[TrainingTriplet], free: Sequence[TrainingTriplet], seed: str) -> list[TrainingTriplet]:
    """Return both in one seeded shuffle; the two directions of a made pair stay side by side."""
    units = [*(made[start : start + 2] for start in range(0, len(made), 2)), *([triplet] for triplet in free)]
    order = random.Random(f"interleaved/{seed}").sample(range(len(units)), len(units))
    return [triplet for at in order for triplet in units[at]]
