"""Which words name which value is learned from the labels of training texts, for words in any image's company."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import numpy as np

from nsfse.config import ModelConfig
from nsfse.data import TrainingTriplet, WordLabel
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.torch_scorer import TorchScorer
from nsfse.training.dataloader import AttributeClasses
from nsfse.training.word_naming import UNKNOWN, _target, fit_naming
from nsfse_runtime.inference.tokenizer import Tokenizer
from tests.random_run import random_model

WORDS = Tokenizer.from_bytes(
    build_vocabulary(["make it red", "make it blue", "make it large not small"]).to_str().encode()
)
CLASSES = AttributeClasses({"colour": ("blue", "green", "red"), "size": ("large", "small")})


def labelled(text, attribute, word, values, absent=False):
    return TrainingTriplet("0", text, ("1",), word_labels=(WordLabel(attribute, (word,), attribute, values, absent),))


TRIPLETS = [
    labelled("make it red", "colour", "red", ("red",)),
    labelled("make it blue", "colour", "blue", ("blue",)),
    labelled("make it large", "size", "large", ("large",)),
    labelled("not small", "size", "small", ("large",), absent=True),
]


def test_a_label_tells_the_attribute_and_where_it_is_one_the_value():
    (red,), (small,) = TRIPLETS[0].word_labels, TRIPLETS[3].word_labels
    assert _target("Red", (red,), CLASSES) == (1, 2)
    assert _target("small", (small,), CLASSES) == (2, UNKNOWN)
    assert _target("make", (red,), CLASSES) == (0, UNKNOWN)
    assert _target("red", (red, replace(small, words=("red",))), CLASSES) == (0, UNKNOWN)
    assert _target("red", (replace(red, attribute_key="length"),), CLASSES) == (0, UNKNOWN)


def test_words_learn_what_they_name_and_texts_without_labels_change_nothing():
    config = ModelConfig(width=16, dim=16, image_size=(32, 32), attributes=CLASSES.counts)
    model = random_model(config, len(WORDS))
    scorer, blocks = TorchScorer(model, WORDS), model.blocks
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    gallery = scorer.encode_images(pixels)
    before = blocks.naming_weight.clone()
    fit_naming(scorer, blocks, gallery, [TrainingTriplet("0", "make it red", ("1",))], CLASSES)
    fit_naming(scorer, blocks, gallery.take([]), TRIPLETS, CLASSES)
    assert torch.equal(blocks.naming_weight, before)
    fit_naming(scorer, blocks, gallery, TRIPLETS * 5, CLASSES)
    for text, attributes, value in (("make it red", [0, 0, 1], 2), ("make it blue", [0, 0, 1], 0)):
        (query,) = scorer.compose(gallery.take([0]), [text])
        logits, values = blocks.naming_logits(torch.from_numpy(query.words), blocks.naming_weight, blocks.naming_bias)
        assert logits.argmax(-1).tolist() == attributes and values[0][-1].argmax() == value
