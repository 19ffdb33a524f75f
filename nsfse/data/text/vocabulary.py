"""A word vocabulary from the training texts, as a tokenizer.json that the runtime reads."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from nsfse_runtime.errors import TextError
from nsfse_runtime.inference.tokenizer import PADDING, UNKNOWN
from nsfse_runtime.inference.unicode_text import normalise
from nsfse_runtime.types import TextReader

SEEN_IN_TITLES = 3  # fewer products do not show what a word looks like
WORD = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:['’][\p{L}][\p{L}\p{M}]*)*|[^\s\p{L}\p{N}]"
"""A word with its marks (Hindi vowels, accents that have no letter of their own), or one other sign."""


def build_vocabulary(
    texts: Iterable[str],
    at_least: int = 1,
    typos: Iterable[str] = (),
    titles: Iterable[str] = (),
    known: Iterable[str] = (),
) -> Tokenizer:
    """Return a tokenizer of lower-case words; others become the unknown word. Texts are normalised as the runtime does.

    Args:
        texts: The training texts.
        at_least: How often a word must be in the texts.
        typos: Words that the texts hold mistyped on purpose; they do not count.
        titles: Titles of images, whose words count where SEEN_IN_TITLES of them or more have them.
        known: Words that the model knows from elsewhere.
    """
    splitter = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])

    def words(text: str) -> list[str]:
        return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(normalise(text)))]

    counts, in_titles = Counter[str](), Counter[str]()
    for text in texts:
        counts.update(words(text))
    for title in titles:
        in_titles.update(set(words(title)))
    counts.subtract(normalizer.normalize_str(normalise(typo)) for typo in typos)
    chosen = {word for word, count in counts.items() if count >= at_least}
    chosen |= {word for word, count in in_titles.items() if count >= SEEN_IN_TITLES}
    chosen.update(word for text in known for word in words(text))
    vocabulary = {word: index for index, word in enumerate([PADDING, UNKNOWN, *sorted(chosen)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    return tokenizer


def count_read(tokenizer: TextReader, texts: Iterable[str], typos: Iterable[str] = ()) -> dict[str, int]:
    """Count how training texts are read.

    Args:
        tokenizer: The model's.
        texts: The training texts.
        typos: Words that are mistyped on purpose; they do not count as unknown.

    Returns:
        The numbers of `texts`, of those with unknown words, of those cut, and of those that cannot be read at all.
    """
    totals = {"texts": 0, "texts_with_unknown_words": 0, "texts_cut": 0, "texts_unreadable": 0}
    known = {normalise(typo).lower() for typo in typos}
    for text, count in Counter(texts).items():
        totals["texts"] += count
        try:
            reading = tokenizer.read(text)
        except TextError:
            totals["texts_unreadable"] += count
            continue
        totals["texts_with_unknown_words"] += count * any(word.lower() not in known for word in reading.unknown)
        totals["texts_cut"] += count * bool(reading.unread)
    return totals


def read_note(totals: Mapping[str, int], max_words: int) -> str:
    """Return a line on the training texts that the model does not read in full, "" where there are none."""
    meanings = {
        "texts_with_unknown_words": "have words that the vocabulary lacks",
        "texts_cut": f"are cut after {max_words} words (model.max_words)",
        "texts_unreadable": "cannot be read",
    }
    parts = [f"{totals[name]} {meaning}" for name, meaning in meanings.items() if totals.get(name)]
    return f"of {totals['texts']} training texts, {'; '.join(parts)}" if parts else ""
