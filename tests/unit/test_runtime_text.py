"""Texts become ids; what cannot be used is refused in one line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from nsfse_runtime.errors import IntegrityError, NotFoundError, TextError
from nsfse_runtime.text import MAX_CHARACTERS, Tokenizer

SHARED = Path(os.environ.get("NSFSE_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture
def tokenizer():
    words = ["[PAD]", "[UNK]", "make", "it", "red", "blue", "i'd"]
    fast = FastTokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}']+|\S"), "removed", invert=True)
    return Tokenizer(fast, max_words=6)


def test_ids_mask_and_words_are_aligned(tokenizer):
    ids, mask = tokenizer.encode(["Make it red", "blue"])
    np.testing.assert_array_equal(ids, [[2, 3, 4], [5, 0, 0]])
    np.testing.assert_array_equal(mask, [[True, True, True], [True, False, False]])
    assert tokenizer.tokens("Make it RED!") == ("Make", "it", "RED", "!")


def test_long_texts_are_cut_to_max_words(tokenizer):
    ids, _ = tokenizer.encode(["red " * 20])
    assert ids.shape == (1, 6)
    assert len(tokenizer.tokens("red " * 20)) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no words"), ("  \n\t ", "no words"), ("zorblax", "knows none"), ("x" * (MAX_CHARACTERS + 1), "characters")],
)
def test_unusable_texts(tokenizer, text, said):
    with pytest.raises(TextError, match=said) as caught:
        tokenizer.encode([text])
    assert "\n" not in str(caught.value)


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(TextError):
        tokenizer.encode(["red \ud800"])


def test_naughty_strings_never_break(tokenizer):
    file = SHARED / "data" / "naughty-strings.json"
    if not file.exists():
        pytest.skip("naughty-strings.json is not beside the checkout")
    strings = json.loads(file.read_text("utf-8"))
    for text in strings:
        try:
            ids, mask = tokenizer.encode([text])
            assert ids.shape == mask.shape
        except TextError as error:
            assert "\n" not in str(error)


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(NotFoundError):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(IntegrityError, match="not a tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
