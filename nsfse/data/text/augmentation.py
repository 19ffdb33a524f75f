"""Training texts told anew each time: more phrasings, carriers, fillers and typos.

What a model is asked later has words and turns it has never seen. So a training text is often not one of a few plain
sentences: it may be a carrier with a fragment ("do you sell this" + "in red"), stand between fillers ("hello, ... if
possible") and hold a mistyped word, never one that carries the edit.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from nsfse.data.text.templates import Edit, Phrasings

VARIETY = 0.7
"""Share of training texts that are told anew; the others are the plain phrasings that the drawn benchmark has, too."""
CARRIED = 0.3
"""Of these, how many are a carrier with a fragment."""
FILLED = 0.12
"""How many have a filler before, and how many one after."""
TYPO_PROB = 0.06
"""How many have one mistyped word."""
_LEAST_LETTERS = 4
T = TypeVar("T")


class Retelling:
    """Tells edits in the words of `phrasings`, a share of them anew; the same for the same seed and epoch."""

    def __init__(self, phrasings: Phrasings, variety: float, seed: int, epoch: int) -> None:
        self._phrasings, self._variety = phrasings, variety
        self.random = random.Random(f"texts/{seed}/{epoch}")

    def tell(self, edits: Sequence[Edit], seen: int, variation: float) -> tuple[str, tuple[str, ...]]:
        """Return a text for one or two edits, and its mistyped words.

        A text that is not told anew is plain: the `seen` phrasing of that number, varied by a chance in [0, 1).
        """
        if self.random.random() < self._variety:
            return self._anew(edits)
        template = self._phrasings.phrases_of(edits).seen[seen]
        return self._phrasings.vary(self._phrasings.fill(template, edits), variation), ()

    def _anew(self, edits: Sequence[Edit]) -> tuple[str, tuple[str, ...]]:
        phrasings, chance = self._phrasings, self.random.random
        phrases = phrasings.phrases_of(edits)
        if phrasings.carriers and chance() < CARRIED:
            template = self._one(phrasings.carriers).replace("{f}", self._one(phrases.fragments))
        else:
            template = self._one((*phrases.seen, *phrases.more))
        text = phrasings.fill(template, edits)
        if phrasings.before and chance() < FILLED:
            text = f"{self._one(phrasings.before)} {text}"
        if phrasings.after and chance() < FILLED:
            text = f"{text} {self._one(phrasings.after)}"
        text = phrasings.vary(text, chance())
        return self._mistype(text, edits) if chance() < TYPO_PROB else (text, ())

    def _mistype(self, text: str, edits: Sequence[Edit]) -> tuple[str, tuple[str, ...]]:
        """Drop a letter, or swap two, in a word that no edit needs; return the text and what became of the word."""
        words = text.split()
        needed = {word for edit in edits for said in edit.fields.values() for word in said.lower().split()}
        needed.update(word for edit in edits for word in edit.words)
        free = [
            at
            for at, word in enumerate(words)
            if len(word) >= _LEAST_LETTERS and word.isalpha() and word.lower() not in needed
        ]
        if not free:
            return text, ()
        at = self._one(free)
        word, place = words[at], self.random.randrange(1, len(words[at]) - 1)
        tail = word[place + 1 :] if self.random.random() < 0.5 else word[place + 1] + word[place] + word[place + 2 :]
        words[at] = word[:place] + tail
        return " ".join(words), (words[at],)

    def _one(self, options: Sequence[T]) -> T:
        return options[int(self.random.random() * len(options))]
