"""Texts become ids; what cannot be used is refused in one line."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from nsfse_runtime.errors import IntegrityError, NotFoundError, TextError
from nsfse_runtime.inference.spelling import Speller, distance
from nsfse_runtime.inference.tokenizer import MAX_CHARACTERS, Reading, Tokenizer
from nsfse_runtime.inference.unicode_text import normalise

SHARED = Path(os.environ.get("NSFSE_SHARED", Path(__file__).parents[4] / "shared"))


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
    assert tokenizer.tokens("Make it RED!") == ("Make", "it", "RED")
    assert tokenizer.tokens("Make it RED!", unknown=True) == ("Make", "it", "RED", "!")


def test_an_unknown_word_is_left_out_and_training_keeps_its_place(tokenizer):
    with_it, without = tokenizer.encode(["make xyzzy it red"]), tokenizer.encode(["make it red"])
    assert all(np.array_equal(one, other) for one, other in zip(with_it, without, strict=True))
    ids, mask = tokenizer.encode(["make xyzzy it red"], unknown=True)
    assert ids.tolist() == [[2, 1, 3, 4]] and mask.all()
    assert tokenizer.encode(["make it red"], unknown=True)[0].tolist() == without[0].tolist()


def test_a_reading_names_what_is_unknown_and_where(tokenizer):
    assert tokenizer.read("Xyzzy make it, redd 🔴!") == Reading(("make", "it"), ("Xyzzy", "redd", "🔴"), (0, 2, 2))
    assert tokenizer.read("redd") == Reading((), ("redd",), (0,))
    assert tokenizer.read("make it red.") == Reading(("make", "it", "red"))
    assert not tokenizer.knows("make it redd") and not tokenizer.knows("red " * 7) and tokenizer.knows("red, blue!")


def test_what_comes_after_the_limit_is_unread(tokenizer):
    for text in ("make it red, make xyzzy blue red I'd", "make it red make xyzzy blue; red, I'd"):
        found = tokenizer.read(text)
        assert found.words == ("make", "it", "red", "make", "blue") and found.unknown == ("xyzzy",)
        assert found.unread == ("red", "I'd")
    assert tokenizer.read("red " * 6).unread == ()


def test_a_word_that_is_cut_within_is_unread_whole():
    letters = {letter: at for at, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    fast = FastTokenizer(models.BPE(letters, []))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"\p{L}+"), "removed", invert=True)
    subwords = Tokenizer(fast, max_words=5)
    assert subwords.read("red blue").unread == ("blue",)
    assert subwords.read("red blue").unknown == () and subwords.nearest("blu") is None


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffmake it red",
        "make\u200b it r\u200ced\u200d",
        "make it \u202ered\u202c",
        "make\u00a0it\u202fred",
        "make\u3000it\u2003red",
        "ｍａｋｅ　ｉｔ　ｒｅｄ",
        "make it re\u00add",
        "make it red\ufe0f",
        "make\x00it\x07red\x1b",
        "make it \U000e0072red",
        "\u1d50ake it red",
    ],
)
def test_what_looks_the_same_is_read_the_same(tokenizer, text):
    assert tokenizer.read(text) == Reading(("make", "it", "red"))


def test_normalising_keeps_plain_text_and_is_stable():
    for text in ("make it red", "I'd like 2, please!", "größer", "\u0e40\u0e2a\u0e37\u0e49\u0e2d", "हिन्दी"):
        assert normalise(text) == unicodedata.normalize("NFC", text)
    assert normalise("I\u2019d like it") == "I'd like it"
    assert normalise("e\u0301\u200d") == normalise("\u00e9") == "\u00e9"
    for text in (
        "e\u200d\u0301",
        "\ufb01\u00ad",
        "\u3164x\uffa0",
        "\ufdfa",
        "\u0130\u0307",
        "a\u0315\u0300\u05ae\u0301b",
    ):
        assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        *(("redd", "red"), ("rde", "red"), ("rad", "red"), ("ed", "red"), ("gray", "grey"), ("colour", "color")),
        *(("stripe", "stripes"), ("stripey", "striped"), ("checker", "checkered"), ("boxes", "box"), ("box", "box")),
        *(("purpel", "purple"), ("trosers", "trousers"), ("tirosers", "trousers"), ("dont", "don't"), ("réd", "red")),
        *(("longer", "long"), ("biger", "big"), ("grün", "grün"), ("grun", "grün"), ("xyzzy", None), ("x", None)),
        *(("red" * 40, None), ("🔴", None), ("tree", None)),
    ],
)
def test_the_nearest_word_is_offered(word, nearest):
    words = "red grey color stripes striped checkered box purple trousers don't long big grün green it , 7 gravy"
    assert Speller(words.split()).nearest(word) == nearest


def test_the_distance_counts_letters_and_swaps():
    pairs = [
        ("rde", "red", 1),
        ("kitten", "sitting", 3),
        ("ca", "abc", 3),
        ("", "ab", 2),
        ("ab", "ab", 0),
        ("ba", "ab", 1),
    ]
    assert [distance(one, other) for one, other, _ in pairs] == [said for *_, said in pairs]


def test_every_single_slip_of_a_word_is_mended():
    words = ["yellow", "trousers", "pocket", "sleeves"]
    speller = Speller(words)
    for word in words:
        for at in range(len(word) - 1):
            slips = word[:at] + word[at + 1 :], word[:at] + "q" + word[at:], word[:at] + "q" + word[at + 1 :]
            swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            assert {speller.nearest(slip) for slip in (*slips, swapped)} == {word}


def test_a_text_of_unknown_words_is_refused_with_what_may_be_meant(tokenizer):
    with pytest.raises(TextError, match="did you mean red blue\\?"):
        tokenizer.encode(["redd blu zorblax"])
    with pytest.raises(TextError, match="use other words"):
        tokenizer.encode(["zorblax"], unknown=True)


def test_a_long_text_of_unknown_words_costs_little():
    fast = FastTokenizer(
        models.WordLevel({"[UNK]": 0, **{f"w{i:05d}x": i + 1 for i in range(20000)}}, unk_token="[UNK]")
    )
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True)
    tokenizer = Tokenizer(fast, 24)
    found = tokenizer.read(" ".join(f"w{i:05d}" for i in range(250)))
    assert len(found.unknown) == 24 and len(found.unread) == 226
    assert [tokenizer.nearest(word) for word in found.unknown] == [f"w{i:05d}x" for i in range(24)]


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
            reading = tokenizer.read(text)
            assert len(reading.words) == mask.sum() and len(reading.unknown) == len(reading.positions)
            assert normalise(normalise(text)) == normalise(text)
        except TextError as error:
            assert "\n" not in str(error)


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(NotFoundError):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(IntegrityError, match="not a tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
