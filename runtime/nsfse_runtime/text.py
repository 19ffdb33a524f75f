"""Modification text → ids and mask, from a tokenizer.json; training uses it too."""

import os
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from nsfse_runtime.errors import IntegrityError, NotFoundError, TextError

MAX_CHARACTERS = 2000
UNKNOWN, PADDING = "[UNK]", "[PAD]"


class Tokenizer:
    """Splits a text into at most `max_words` known or unknown words."""

    def __init__(self, tokenizer: FastTokenizer, max_words: int = 24) -> None:
        self._tokenizer, self.max_words = tokenizer, max_words
        self.unknown = tokenizer.token_to_id(UNKNOWN)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], max_words: int = 24) -> "Tokenizer":
        """Open a tokenizer.json. Raises NotFoundError or IntegrityError."""
        try:
            with open(path, "rb") as file:
                return cls.from_bytes(file.read(), max_words, str(path))
        except FileNotFoundError:
            raise NotFoundError(f"no tokenizer at {path}; train or export the model again") from None

    @classmethod
    def from_bytes(cls, data: bytes, max_words: int = 24, origin: str = "tokenizer.json") -> "Tokenizer":
        """Open a tokenizer.json from its bytes. Raises IntegrityError."""
        try:
            return cls(FastTokenizer.from_buffer(data), max_words)
        except Exception as error:  # the library raises plain Exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise IntegrityError(f"{origin} is not a tokenizer: {reason}; export the model again") from None

    def __len__(self) -> int:
        """Return the vocabulary's size."""
        return int(self._tokenizer.get_vocab_size())

    def _encode(self, text: str) -> tuple[list[int], tuple[str, ...]]:
        if len(text) > MAX_CHARACTERS:
            raise TextError(f"the text has {len(text)} characters, the limit is {MAX_CHARACTERS}; say it shorter")
        try:
            clean = unicodedata.normalize("NFC", text)
            encoding = self._tokenizer.encode(clean)
        except (UnicodeError, TypeError):
            raise TextError("the text holds characters that are not valid Unicode; type it again") from None
        if not encoding.ids:
            raise TextError('the text has no words; say what should be different, such as "make it red"')
        words = tuple(clean[start:end] for start, end in encoding.offsets)
        return encoding.ids[: self.max_words], words[: self.max_words]

    def words(self) -> list[str]:
        """Return the entries of the vocabulary that are plain words, sorted."""
        return sorted(word for word in self._tokenizer.get_vocab() if word.isalpha())

    def knows(self, text: str) -> bool:
        """Tell whether every word of `text` is known. Raises TextError for a text that has no words or too many."""
        return self.unknown is None or self.unknown not in self._encode(text)[0]

    def tokens(self, text: str) -> tuple[str, ...]:
        """Return the words of `text` as written, aligned with `encode`. Raises TextError."""
        return self._encode(text)[1]

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return ids [B, L] int64 (0 = padding) and mask [B, L] bool.

        Raises TextError for a text that is empty, too long, or has no known word.
        """
        rows = [self._encode(text)[0] for text in texts]
        for row, text in zip(rows, texts, strict=True):
            if self.unknown is not None and all(i == self.unknown for i in row):
                raise TextError(f"this model knows none of the words of {text[:80]!r}; use other words")
        ids = np.zeros((len(rows), max(map(len, rows), default=1)), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        return ids, np.arange(ids.shape[1])[None] < np.array([len(r) for r in rows], np.int64)[:, None]
