"""Augmented training texts: more phrasings, frames, fillers and typos.

Queries in use have words and turns that training never showed. So a training text is often not one of a few plain
sentences. It may be a frame around a phrase ("do you sell this" + "in red"), stand between fillers ("hello, ... if
possible"), and hold a mistyped word, never one that carries the edit.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from nsfse.data.text.templates import Edit, TemplateSet

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


class TextAugmenter:
    """Makes texts of edits, a share of them augmented; the same for the same seed and epoch.

    Args:
        templates: The language.
        augment_prob: Share of texts that are augmented, from 0 to 1.
        seed: Seed of the data set.
        epoch: Epoch of training; each has other texts.
    """

    def __init__(self, templates: TemplateSet, augment_prob: float, seed: int, epoch: int) -> None:
        self._templates, self._augment_prob = templates, augment_prob
        self.random = random.Random(f"texts/{seed}/{epoch}")

    def sample(self, edits: Sequence[Edit], base: int, variation: float) -> tuple[str, tuple[str, ...]]:
        """Return a text for one or two edits, and its mistyped words.

        Args:
            edits: One or two edits.
            base: Which of the `base` templates a text has that is not augmented.
            variation: A chance in [0, 1) that varies such a text.
        """
        if self.random.random() < self._augment_prob:
            return self._augmented(edits)
        template = self._templates.templates_for(edits).base[base]
        return self._templates.vary(self._templates.fill(template, edits), variation), ()

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
