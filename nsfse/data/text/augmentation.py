"""Augmented training texts: more phrasings, frames, fillers and typos.

Queries in use have words and turns that training never showed. So a training text is often not one of a few plain
sentences. It may be a frame around a phrase ("do you sell this" + "in red"), stand between fillers ("hello, ... if
possible"), and hold a mistyped word, never one that carries the edit.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from nsfse.data.text.templates import Edit, TemplateSet
from nsfse.data.text.voices import VoiceSet

AUGMENT_PROB = 0.7
"""Share of training texts that are augmented; the others are the plain phrasings that the drawn benchmark has, too."""
FRAME_PROB = 0.3
"""Of these, how many are a frame around a phrase."""
FILLER_PROB = 0.12
"""How many have a filler before, and how many one after."""
TYPO_PROB = 0.06
"""How many have one mistyped word."""
_MIN_TYPO_LETTERS = 4
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SampledText:
    """A training text, its mistyped words, and whether it says that the old value must not be there."""

    text: str
    typos: tuple[str, ...] = ()
    refuses_old: bool = False


class TextAugmenter:
    """Makes texts of edits, a share of them augmented; the same for the same seed and epoch.

    Args:
        templates: The language.
        augment_prob: Share of texts that are augmented, from 0 to 1.
        seed: Seed of the data set.
        epoch: Epoch of training; each has other texts.
        voices: Who may say an augmented text; None for the templates alone.
        voice_ratio: Share of augmented texts that a voice says.
    """

    def __init__(
        self,
        templates: TemplateSet,
        augment_prob: float,
        seed: int,
        epoch: int,
        voices: VoiceSet | None = None,
        voice_ratio: float = 0.0,
    ) -> None:
        self._templates, self._augment_prob = templates, augment_prob
        self._voices, self._voice_ratio = voices, voice_ratio if voices else 0.0
        self.random = random.Random(f"texts/{seed}/{epoch}")

    def sample(self, edits: Sequence[Edit], base: int, variation: float, old: Edit | None = None) -> SampledText:
        """Return a text for one or two edits.

        Args:
            edits: One or two edits.
            base: Which of the `base` templates a text has that is not augmented.
            variation: A chance in [0, 1) that varies such a text.
            old: The edit that would request the reference's value, which some voices name; None where it is not known.
        """
        if self.random.random() >= self._augment_prob:
            template = self._templates.templates_for(edits).base[base]
            return SampledText(self._templates.vary(self._templates.fill(template, edits), variation))
        voices = self._voices if self._voice_ratio > 0 else None  # without them, a seed draws what it always drew
        if voices and self.random.random() < self._voice_ratio and voices.speaks(edits):
            spoken = voices.say(edits, old, self._templates, self.random)
            text = self._templates.vary(spoken.text, self.random.random())
            return SampledText(text, spoken.typos, spoken.old == "refused")
        return SampledText(*self._augmented(edits))

    def _augmented(self, edits: Sequence[Edit]) -> tuple[str, tuple[str, ...]]:
        language, chance = self._templates, self.random.random
        templates = language.templates_for(edits)
        if language.frames and chance() < FRAME_PROB:
            template = self._choice(language.frames).replace("{f}", self._choice(templates.phrases))
        else:
            template = self._choice((*templates.base, *templates.extra))
        text = language.fill(template, edits)
        if language.before and chance() < FILLER_PROB:
            text = f"{self._choice(language.before)} {text}"
        if language.after and chance() < FILLER_PROB:
            text = f"{text} {self._choice(language.after)}"
        text = language.vary(text, chance())
        return self._mistype(text, edits) if chance() < TYPO_PROB else (text, ())

    def _mistype(self, text: str, edits: Sequence[Edit]) -> tuple[str, tuple[str, ...]]:
        """Drop a letter, or swap two, in a word that no edit needs; return the text and the mistyped word."""
        words = text.split()
        needed = {word for edit in edits for value in edit.fields.values() for word in value.lower().split()}
        needed.update(word for edit in edits for word in edit.words)
        free = [
            index
            for index, word in enumerate(words)
            if len(word) >= _MIN_TYPO_LETTERS and word.isalpha() and word.lower() not in needed
        ]
        if not free:
            return text, ()
        index = self._choice(free)
        word, place = words[index], self.random.randrange(1, len(words[index]) - 1)
        tail = word[place + 1 :] if self.random.random() < 0.5 else word[place + 1] + word[place] + word[place + 2 :]
        words[index] = word[:place] + tail
        return " ".join(words), (words[index],)

    def _choice(self, options: Sequence[T]) -> T:
        return options[int(self.random.random() * len(options))]
