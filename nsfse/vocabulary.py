"""A word vocabulary from the training texts, as a tokenizer.json that the runtime reads."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from nsfse_runtime.text import PADDING, UNKNOWN


def build_vocabulary(texts: Iterable[str], at_least: int = 1, slips: Iterable[str] = ()) -> Tokenizer:
    """Return a tokenizer of lower-case words seen `at_least` times in `texts`; others become the unknown word.

    `slips` are words that the texts hold mistyped on purpose: they are not counted.
    """
    splitter = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}]+(?:['’][\p{L}]+)*|[^\s\p{L}\p{N}]"), "removed", invert=True)
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    counts.subtract(normalizer.normalize_str(slip) for slip in slips)
    kept = sorted(word for word, count in counts.items() if count >= at_least)
    vocabulary = {word: at for at, word in enumerate([PADDING, UNKNOWN, *kept])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    return tokenizer
