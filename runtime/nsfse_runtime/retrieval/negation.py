"""Negations in a text, English and German, and whether the model followed them by its words' weights."""

from collections.abc import Sequence

from nsfse_runtime.types import Floats


def words_of(*lines: str) -> frozenset[str]:
    """Return the words of several lines."""
    return frozenset(" ".join(lines).split())


CUES = words_of(
    "not no without never none neither nor except excluding minus isn't aren't don't doesn't shouldn't",
    "remove avoid exclude nicht kein keine keinen keinem keiner keines ohne statt anstatt außer",
)
PAIRS = words_of(
    "instead_of rather_than other_than different_than apart_from anything_but everything_but all_but",
    "drop_the lose_the skip_the anstelle_von",
)
_QUANTIFIERS = words_of("any every all other another different")
ENDS = words_of(", ; . : ! ? but and or instead rather aber und oder sondern")
EMPTY = words_of("a an the this that these those it one me der die das den dem ein eine einen")
_REACH = 5  # words after the cue in which what it negates is looked for


def negated(words: Sequence[str], weights: Floats) -> tuple[str, str] | None:
    """Return the first negation of `words` [L] that the model did not follow, as (phrase, word), else None.

    A model that follows "no stripes" gives "stripes" a weight κ under 0. A cue negates the first
    word after it in its clause whose weight counts: at least half the greatest weight there, and
    half an even share of the text. Where that weight is over 0, the model took the word as wanted.

    Args:
        words: The L words of a text.
        weights: Their weights κ [L].
    """
    lower, size = [word.lower() for word in words], [abs(float(weight)) for weight in weights]
    for start, after in _cues(lower):
        clause = range(after, _end(lower, after))
        min_size = max([0.5 * sum(size) / len(words), *(0.5 * size[index] for index in clause)])
        counts = [index for index in clause if size[index] >= min_size and lower[index] not in EMPTY]
        if counts and weights[counts[0]] > 0:
            return " ".join(words[start : counts[0] + 1]), words[counts[0]]
    return None


def _end(words: Sequence[str], start: int) -> int:
    """Return where the clause ends in which the words negated from `start` on are."""
    for index in range(start, min(start + _REACH, len(words))):
        if words[index] in ENDS or words[index] in CUES:
            return index
    return min(start + _REACH, len(words))


def _cues(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return where each cue begins and where the words after it do."""
    cues = []
    for index, word in enumerate(words):
        if word in CUES:
            cues.append((index, index + 1))
        elif "_".join(words[index : index + 2]) in PAIRS:
            cues.append((index, index + 2))
        elif words[index + 2 : index + 3] and words[index + 2] in ("but", "than", "except") and word in _QUANTIFIERS:
            cues.append((index, index + 3))  # any colour but, a different colour than
    return cues
