"""The nearest known word: "redd" may be "red", "stripe" is a form of "stripes". It is offered, never put in place."""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_LONGEST, _SHORTEST = 32, 3
_ENDINGS = ("s", "es", "d", "ed", "ing", "er", "est", "y", "ish", "n", "en", "e", "em")
"""What a word of the same stem may have more, in English and German."""


class Speller:
    """Knows a vocabulary of words, and how they may be misspelt."""

    def __init__(self, words: Iterable[str]) -> None:
        known = sorted(w for w in words if _SHORTEST <= len(w) <= _LONGEST and w[0].isalpha() and w[-1].isalpha())
        self._known = frozenset(known)
        self._by_part: dict[str, list[str]] = {}
        for word in known:
            for part in _parts(plain(word)):
                self._by_part.setdefault(part, []).append(word)
        self.nearest = lru_cache(4096)(self._nearest)

    def _nearest(self, word: str) -> str | None:
        """Return the known word nearest to `word`, None where none is near.

        Near is another form of the same stem. Else it is one letter more, less, other or swapped
        with its neighbour; in words of six letters or more, two such changes. Several are ordered
        by: a plural or singular, the fewest changes, changes of vowels alone, the same first letter,
        then the alphabet.
        """
        if not 2 <= len(word) <= _LONGEST:
            return None
        written = plain(word.lower())
        candidates = {known for part in _parts(written) for known in self._by_part.get(part, ())}
        candidates |= {form for form in _forms(written) if form in self._known}
        ranked = sorted((self._rank(written, known), known) for known in candidates)
        return next((known for rank, known in ranked if rank[0] <= 3), None)

    @staticmethod
    def _rank(written: str, known: str) -> tuple[int, bool, bool, int]:
        other = plain(known)
        if written == other or written + "s" == other or other + "s" == written:
            return (0, False, False, 0)
        changes = distance(written, other)
        form = other in _forms(written)
        max_changes = 2 if min(len(written), len(other)) >= 6 else 1
        tier = changes if changes <= max_changes else 3 if form else 4
        return (
            tier,
            _consonants(written) != _consonants(other),
            written[:1] != other[:1],
            abs(len(written) - len(other)),
        )


def plain(word: str) -> str:
    """Return `word` without accents and apostrophes: "réd" → "red", "don't" → "dont"."""
    parts = unicodedata.normalize("NFD", word)
    return "".join(letter for letter in parts if letter != "'" and not unicodedata.category(letter).startswith("M"))


def _parts(word: str) -> set[str]:
    """Return `word` and all that it is with one letter less: words one change apart have one of these in common."""
    return {word} | {word[:index] + word[index + 1 :] for index in range(len(word))}


def _forms(word: str) -> set[str]:
    """Return other forms of the same stem: "checker" of "checkered", "striped" of "stripes"."""
    stems = {word} | {word[: -len(end)] for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= 3}
    stems |= {stem[:-1] for stem in stems if len(stem) > 3 and stem[-1:] == stem[-2:-1]}  # bigg(er)
    return {stem + end for stem in stems for end in ("", *_ENDINGS)}


def _consonants(word: str) -> str:
    return "".join(letter for letter in word if letter not in "aeiouy")


def distance(word: str, other: str) -> int:
    """Return the least number of letters added, lost, changed or swapped with their neighbour between two words."""
    above: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(word, 1):
        twice_above, above, row = above, row, [i]
        for j, wanted in enumerate(other, 1):
            least = min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and word[i - 2] == wanted:
                least = min(least, twice_above[j - 2] + 1)
            row.append(least)
    return row[-1]
