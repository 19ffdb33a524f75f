"""A word vocabulary from the training texts, as a tokenizer.json that the runtime reads."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from nsfse_runtime.text import PADDING, UNKNOWN
from nsfse_runtime.unicode_text import normalise

SEEN_IN_TITLES = 3  # fewer products do not tell what a word looks like
WORD = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:['’][\p{L}][\p{L}\p{M}]*)*|[^\s\p{L}\p{N}]"
"""A word with its marks (Hindi vowels, accents that have no letter of their own), or one other sign."""


def build_vocabulary(
    texts: Iterable[str], at_least: int = 1, slips: Iterable[str] = (), titles: Iterable[str] = ()
) -> Tokenizer:
    """Return a tokenizer of lower-case words (after `normalise`) seen `at_least` times in `texts`; others become the unknown word.

    `slips` are words that the texts hold mistyped on purpose: they are not counted. Words of `titles` are kept where
    SEEN_IN_TITLES of them or more have them.
    """
    splitter = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])

    def words(text: str) -> list[str]:
        return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(normalise(text)))]

    counts, called = Counter[str](), Counter[str]()
    for text in texts:
        counts.update(words(text))
    for title in titles:
        called.update(set(words(title)))
    counts.subtract(normalizer.normalize_str(normalise(slip)) for slip in slips)
    kept = {word for word, count in counts.items() if count >= at_least}
    kept |= {word for word, count in called.items() if count >= SEEN_IN_TITLES}
    vocabulary = {word: at for at, word in enumerate([PADDING, UNKNOWN, *sorted(kept)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    return tokenizer
