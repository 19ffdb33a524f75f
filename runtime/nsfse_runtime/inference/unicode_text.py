"""Text as the tokenizer takes it: one form for what looks the same, and nothing that cannot be seen."""

import unicodedata

# Letters and marks that Unicode calls ignorable and gives no category of their own.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2065")
_SELECTORS = (("\u180b", "\u180f"), ("\ufe00", "\ufe0f"), ("\U000e0000", "\U000e0fff"))
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\u201b", "'"))
_NO_WORD = ("P", "M", "Z", "C", "Sm", "Sk")


def normalise(text: str) -> str:
    """Return `text` in form NFKC, without characters that cannot be seen.

    Full-width letters, ligatures and no-break spaces become plain ones, and typographic apostrophes
    become '. Characters of no width (joiners, direction marks, byte order marks, soft hyphens,
    variation selectors, tags) are removed, and control characters are blanks.

    Returns:
        The text in its one form: normalising it again changes nothing.
    """
    if text.isascii() and text.isprintable():
        return text
    clean = unicodedata.normalize("NFKC", _visible(text.translate(_APOSTROPHES)))
    return unicodedata.normalize("NFKC", _visible(clean.translate(_APOSTROPHES)))


def _visible(text: str) -> str:
    return "".join(_shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter in _INVISIBLE or any(first <= letter <= last for first, last in _SELECTORS):
        return ""
    category = unicodedata.category(letter)
    return "" if category == "Cf" else " " if category == "Cc" else letter


def is_word(token: str) -> bool:
    """Return whether a token says anything: a letter, a digit or a symbol such as an emoji, not punctuation alone."""
    return any(not unicodedata.category(letter).startswith(_NO_WORD) for letter in token)


def trimmed(word: str) -> str:
    """Return `word` without the punctuation before and after it."""
    marks = "".join(letter for letter in word if unicodedata.category(letter).startswith("P"))
    return word.strip(marks)
