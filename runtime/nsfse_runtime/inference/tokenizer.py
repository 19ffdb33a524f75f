"""Modification text → ids and mask, from a tokenizer.json; training uses it too."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from nsfse_runtime.errors import IntegrityError, NotFoundError, TextError
from nsfse_runtime.inference.spelling import Speller
from nsfse_runtime.inference.unicode_text import is_word, normalise, trimmed
from nsfse_runtime.regular_files import read_regular
from nsfse_runtime.types import Reading

MAX_CHARACTERS = 2000
_MAX_GROWTH = 64  # times that a normalizer may lengthen a text
_REMEMBERED = 16  # texts
UNKNOWN, PADDING = "[UNK]", "[PAD]"


class Tokenizer:
    """Splits a text into at most `max_words` words, of which the known ones are encoded."""

    def __init__(self, tokenizer: FastTokenizer, max_words: int = 24) -> None:
        self._tokenizer, self.max_words = tokenizer, max_words
        self.unknown = tokenizer.token_to_id(UNKNOWN)
        self._speller: Speller | None = None
        self._opening = Lock()
        self._split = lru_cache(_REMEMBERED)(self._split_text)  # a query reads its text several times

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], max_words: int = 24) -> "Tokenizer":
        """Open a tokenizer.json. Raises NotFoundError or IntegrityError."""
        try:
            return cls.from_bytes(read_regular(path), max_words, str(path))
        except FileNotFoundError:
            raise NotFoundError(f"no tokenizer at {path}; train or export the model again") from None

    @classmethod
    def from_bytes(cls, data: bytes, max_words: int = 24, origin: str = "tokenizer.json") -> "Tokenizer":
        """Open a tokenizer.json from its bytes; it neither cuts nor pads. Raises IntegrityError."""
        try:
            tokenizer = FastTokenizer.from_buffer(data)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            if tokenizer.normalizer and _growth(json.loads(tokenizer.normalizer.__getstate__())) > _MAX_GROWTH:
                raise ValueError("its normalizer makes texts much longer")
            return cls(tokenizer, max_words)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and panics, which are none
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise IntegrityError(f"{origin} is not a tokenizer: {reason}; export the model again") from None

    def __len__(self) -> int:
        """Return the vocabulary's size."""
        return int(self._tokenizer.get_vocab_size())

    def _split_text(self, text: str) -> "_Tokens":
        if len(text) > MAX_CHARACTERS:
            raise TextError(f"the text has {len(text)} characters, the limit is {MAX_CHARACTERS}; say it shorter")
        try:
            clean = normalise(text)
            encoding = self._tokenizer.encode(clean)
        except (UnicodeError, TypeError):
            raise TextError("the text holds characters that are not valid Unicode; type it again") from None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of the library, such as of an expression that takes too long, is no Exception
            raise TextError(f"this model's tokenizer cannot read {text[:80]!r}; say it in other words") from None
        if not encoding.ids:
            raise TextError('the text has no words; say what should be different, such as "make it red"')
        return _Tokens(clean, encoding.ids, encoding.offsets)

    def _read(self, text: str) -> tuple[list[int], Reading]:
        """Return the ids of the known words of `text`, and its Reading."""
        tokens = self._split(text)
        words = tokens.words
        is_known = [id != self.unknown for id in tokens.ids]
        # Punctuation that the vocabulary lacks is no word.
        counted = [index for index, word in enumerate(words) if is_known[index] or is_word(word)]
        read, rest = counted[: self.max_words], counted[self.max_words :]
        known = [index for index in read if is_known[index]]
        unknown = [index for index in read if not is_known[index]]
        reading = Reading(
            tuple(words[index] for index in known),
            tuple(words[index] for index in unknown),
            tuple(sum(index < other for index in known) for other in unknown),
            tokens.words_from(rest[0]) if rest else (),
        )
        return [tokens.ids[index] for index in known], reading

    def read(self, text: str) -> Reading:
        """Return which words of `text` are read, unknown, and beyond the limit.

        Raises TextError for a text that has no words, too many characters, or invalid Unicode; not
        for one whose words are all unknown.
        """
        return self._read(text)[1]

    def nearest(self, word: str) -> str | None:
        """Return the known word that `word` may be a slip or another form of, None where there is none."""
        with self._opening:
            if self._speller is None:
                self._speller = Speller(self._tokenizer.get_vocab()) if self.unknown is not None else Speller(())
        return self._speller.nearest(word)

    def words(self) -> list[str]:
        """Return the entries of the vocabulary that are plain words, sorted."""
        return sorted(word for word in self._tokenizer.get_vocab() if word.isalpha())

    def knows(self, text: str) -> bool:
        """Tell whether every word of `text` is known and read.

        Raises TextError for a text that has no words or too many characters.
        """
        reading = self.read(text)
        return not reading.unknown and not reading.unread

    def tokens(self, text: str, unknown: bool = False) -> tuple[str, ...]:
        """Return the words of `text` as written, aligned with `encode` of the same `unknown`. Raises TextError."""
        return self._split(text).words[: self.max_words] if unknown else self._read(text)[1].words

    def encode(self, texts: Sequence[str], unknown: bool = False) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return ids [B, L] int64 (0 = padding) and mask [B, L] bool.

        Args:
            texts: B texts.
            unknown: Whether each unknown word becomes the unknown token, as training reads its
                texts. Otherwise they are left out, as if they were not written.

        Raises:
            TextError: A text is empty, too long, or has no known word.
        """
        rows = [self._ids(text, unknown) for text in texts]
        ids = np.zeros((len(rows), max(map(len, rows), default=1)), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return ids, np.arange(ids.shape[1])[None] < np.array([len(r) for r in rows], np.int64)[:, None]

    def _ids(self, text: str, unknown: bool) -> list[int]:
        ids, reading = (self._split(text).ids[: self.max_words], None) if unknown else self._read(text)
        if ids and not (self.unknown is not None and all(id == self.unknown for id in ids)):
            return ids
        reading = reading or self.read(text)
        offers = list(dict.fromkeys(near for word in reading.unknown if (near := self.nearest(word))))
        advice = f"did you mean {' '.join(offers)}?" if offers else "use other words"
        raise TextError(f"this model knows none of the words of {text[:80]!r}; {advice}")


def _growth(normalizer: dict[str, Any]) -> int:
    """Return how many times longer a normalizer may make a text of one character, by its inserted texts."""
    inserted = normalizer.get("content") or normalizer.get("prepend") or ""
    parts = [_growth(part) for part in normalizer.get("normalizers") or ()]
    return math.prod(parts) * (1 + len(inserted))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of a normalised text: `ids` and (start, end) `offsets`, one each."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]

    @property
    def words(self) -> tuple[str, ...]:
        """Return the tokens as written; those of SentencePiece have the space before them, which is left out."""
        return tuple(self.text[start:end].strip() for start, end in self.offsets)

    def words_from(self, token: int) -> tuple[str, ...]:
        """Return the words from a token on, the whole word where the token is within one."""
        start = self.offsets[token][0]
        while start and self.text[start - 1].isalnum() and self.text[start].isalnum():
            start -= 1
        return tuple(word for part in self.text[start:].split() if is_word(word := trimmed(part)))
