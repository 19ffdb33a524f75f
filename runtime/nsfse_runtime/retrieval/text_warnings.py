"""What a model did not read of a query's texts, or did not follow; part of every result (docs/queries.md §8)."""

from collections.abc import Iterator, Sequence

import msgspec

from nsfse_runtime.retrieval.negation import negated, words_of
from nsfse_runtime.retrieval.query import ComposedQuery
from nsfse_runtime.types import Reading, TextReader

# Unknown words of these do not change what is wanted: without them a text means the same.
_FUNCTION_WORDS = words_of(
    "could should would might must shall have having been being were your mine ours their theirs them they",
    "this that these those there here please kindly thanks thank hello maybe perhaps just really also and",
    "bitte danke hallo und vielleicht könnte könntest sollte möchte würde hätte wäre diese dieser dieses diesen",
    "meine meinen meiner deine auch wirklich",
)
NOT_WHOLE = "so no hit has a confidence, and none is called a match"


class UnknownWord(msgspec.Struct, frozen=True):
    """A word that the vocabulary does not have. It has no effect on the answer.

    Attributes:
        word: The word as written.
        nearest: The known word that may be meant; None where none is near, or the word only makes a
            sentence whole ("should").
        position: How many of the text's known words, those of the evidence, come before it.
    """

    word: str
    nearest: str | None
    position: int


class IgnoredNegation(msgspec.Struct, frozen=True):
    """A negation that the model did not follow: `phrase` as written ("not a bag") and the `word` it ought to negate."""

    phrase: str
    word: str


class TextReading(msgspec.Struct, frozen=True, kw_only=True):
    """What was not read of one text of a query, or not followed.

    Attributes:
        negative: Whether it is one of `negative_texts`.
        words: How many words of the evidence are this text's; the evidence has the texts in order.
        unknown: Words that the vocabulary does not have.
        unread: The words after the model's limit.
        ignored_negation: The first negation not followed; None where there is none.
    """

    negative: bool = False
    words: int = 0
    unknown: tuple[UnknownWord, ...] = ()
    unread: tuple[str, ...] = ()
    ignored_negation: IgnoredNegation | None = None

    @property
    def whole(self) -> bool:
        """Return whether the text was read and followed as a whole; else a hit has no confidence.

        An unknown word that only makes a sentence whole ("should") takes no confidence away.
        """
        missing = any(unknown.word.lower() not in _FUNCTION_WORDS for unknown in self.unknown)
        return not missing and not self.unread and self.ignored_negation is None


def readings(
    tokenizer: TextReader | None,
    texts: Sequence[str],
    negative_texts: Sequence[str],
    query: ComposedQuery,
) -> tuple[TextReading, ...]:
    """Return how each text of `query` was read, `texts` first, then `negative_texts`. Raises TextError."""
    result = []
    for number, text in enumerate((*texts, *negative_texts)):  # the order of `query.texts`
        reading = None if tokenizer is None else tokenizer.read(text)
        negative, words = number >= len(texts), query.tokens[query.texts[number]]
        ignored = None if negative else negated(words, query.word_weights[query.texts[number]])
        result.append(
            TextReading(
                negative=negative,
                words=len(words),
                unknown=() if reading is None or tokenizer is None else _unknown(tokenizer, reading),
                unread=() if reading is None else reading.unread,
                ignored_negation=None if ignored is None else IgnoredNegation(*ignored),
            )
        )
    return tuple(result)


def notes_of(texts: Sequence[TextReading], max_words: int) -> tuple[str, ...]:
    """Return what a user should know of how the texts were read, a sentence each."""
    notes = [note for text in texts for note in _notes(text, max_words)]
    if not all(text.whole for text in texts):
        notes.append(NOT_WHOLE)
    return tuple(dict.fromkeys(notes))


def _unknown(tokenizer: TextReader, reading: Reading) -> tuple[UnknownWord, ...]:
    return tuple(
        UnknownWord(word, None if word.lower() in _FUNCTION_WORDS else tokenizer.nearest(word), position)
        for word, position in zip(reading.unknown, reading.positions, strict=True)
    )


def _notes(text: TextReading, max_words: int) -> Iterator[str]:
    for unknown in text.unknown:
        offer = f"; did you mean {unknown.nearest}?" if unknown.nearest else ""
        yield f"unknown word: {unknown.word}{offer}"
    if text.unread:
        yield f"not read, after the first {max_words} words: {' '.join(text.unread)}"
    if ignored := text.ignored_negation:
        yield f"this model did not follow '{ignored.phrase}'; use --exclude-text {ignored.word}"
