"""The vocabulary of a run, and how many of its texts are read as they are."""

import numpy as np
import pytest

from nsfse.data.text.vocabulary import build_vocabulary, count_read, read_note
from nsfse_runtime.inference.tokenizer import Reading, Tokenizer


def test_words_that_look_the_same_are_one_word():
    texts = ["i\u2019d like it", "I'd like it", "ｌｉｋｅ\u00a0ｉｔ", "\ufefflike it\u200b"]
    assert set(build_vocabulary(texts).get_vocab()) == {"[PAD]", "[UNK]", "i'd", "like", "it"}
    assert build_vocabulary(texts, typos=["\u200bＬike"], at_least=4).token_to_id("like") is None


@pytest.mark.parametrize("word", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e1c\u0e49\u0e32", "r\u0338e\u0338d"])
def test_a_word_keeps_its_marks(word):
    tokenizer = Tokenizer(build_vocabulary([f"make {word}"]))
    assert tokenizer.read(f"make {word}!") == Reading(("make", word))


def test_texts_that_are_not_read_as_they_are_are_counted():
    tokenizer = Tokenizer(build_vocabulary(["make it red"]), max_words=4)
    texts = ["make it red", "make it redd", "make it redd", "MAKE IT RDE!", "red red red red blu", "", "x" * 3000]
    found = count_read(tokenizer, texts, typos=["rde"])
    assert found == {"texts": 7, "texts_with_unknown_words": 2, "texts_cut": 1, "texts_unreadable": 2}
    said = read_note(found, 4)
    assert said.startswith("of 7 training texts, 2 have words that the vocabulary lacks; 1 are cut after 4 words")
    assert read_note(count_read(tokenizer, ["make it red"]), 4) == ""


def test_torch_leaves_unknown_words_out_as_the_runtime_does(tmp_path):
    torch = pytest.importorskip("torch")
    from nsfse.config import ModelConfig
    from nsfse.open import open_scorer
    from tests.random_run import write_random_run

    config = ModelConfig(dim=16, width=16, image_size=(32, 48))
    scorer = open_scorer(write_random_run(tmp_path / "run", config))
    targets = scorer.encode_images(torch.zeros(2, 32, 48, 3, dtype=torch.uint8).numpy())
    plain, noted = scorer.compose(targets, ["make it red", "make xyzzy it, red!"])
    (alone,) = scorer.compose(targets.take([1]), ["make it , red"])
    assert plain.tokens == ("make", "it", "red") and noted.tokens == ("make", "it", ",", "red")
    np.testing.assert_allclose(noted.vector, alone.vector, atol=1e-6)
    np.testing.assert_allclose(noted.word_weights, alone.word_weights, atol=1e-6)
