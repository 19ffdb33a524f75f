"""Baselines that learn from facts: the losses to the number, what they move, and that plain ones stay as they are."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nsfse.config import ModelConfig, load_config
from nsfse.data.registry import open_source
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.baselines import METHODS, build_model
from nsfse.models.checkpoint import load_checkpoint
from nsfse.open import open_scorer
from nsfse.training import losses
from nsfse.training.dataloader import ImageCache, make_batch
from nsfse.training.distributed import DistributedContext
from nsfse.training.loop import train
from nsfse.training.objectives import EncodedBatch, attribute_losses
from nsfse.training.trainer import Trainer
from nsfse_runtime.errors import DataError
from nsfse_runtime.inference.tokenizer import Tokenizer
from nsfse_runtime.types import RankingMode

TINY = [
    "data.options.level=easy",
    "data.options.items=64",
    "data.options.triplets=32",
    "data.validation_queries=0",
    "data.fitting_queries=20",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=16",
    "train.batch=16",
    "train.epochs=1",
    "train.max_grad_norm=1000",
]
METHOD_FACTS = ModelConfig(width=16, dim=4, image_size=(32, 48), method="sum", attribute_supervision=True)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def numbers(seed=0):
    """Return words [2, 3, 4], vectors [3, 4], sentences [2, 4], ids, named and fulfils of a batch of two texts."""
    rng = np.random.default_rng(seed)
    words, vectors, sentence = (unit(rng.normal(size=shape)) for shape in ((2, 3, 4), (3, 4), (2, 4)))
    # Text 0 asks for word 7 and for the absence of 9, text 1 asks for 8; the third word is said and does not ask.
    ids, named = np.array([[7, 9, 3], [3, 8, 5]]), np.array([[1, -1, 0], [0, 1, 0]])
    fulfils = np.array([[1, -1, -1], [1, -1, 0], [-1, 1, 0]])
    return words, vectors, sentence, ids, named, fulfils


def tensors(arrays):
    return [torch.tensor(a, dtype=torch.float64 if a.dtype.kind == "f" else torch.long) for a in arrays]


def attribute_losses_of(model, words, vectors, sentence, ids, named, fulfils):
    encoded = EncodedBatch(vectors, vectors[:, None], words, sentence, None, named, named, fulfils)
    return attribute_losses(model, encoded, ids)


def test_word_grounding_and_word_roles_to_the_number():
    words, vectors, sentence, ids, named, fulfils = numbers()
    model = build_model(METHOD_FACTS, 10).double()
    found = attribute_losses_of(model, *tensors((words, vectors, sentence, ids, named, fulfils)))
    mapped = []
    for part, rows in (
        (model.facts.word, words),
        (model.facts.image, vectors),
        (model.facts.sentence, sentence),
    ):
        mapped.append(unit(rows @ part.weight.detach().numpy().T + part.bias.detach().numpy()))
    w, g, s = mapped
    places = [(0, 0), (0, 1), (1, 1)]
    signs = np.array([1, -1, 1])
    # λ_e: every asking word against every image of the batch, has and has not alike; "no 9" is fulfilled by lacking it.
    x = np.array([w[b, at] @ g.T for b, at in places])
    has = fulfils * signs[:, None]
    weights = [(has == kind) / np.maximum((has == kind).sum(1, keepdims=True), 1) for kind in (1, -1)]
    means = [(x * weight).sum() / weight.sum() for weight in weights]
    middle = sum(means) / 2
    pushed = [np.log1p(np.exp(sign * (x - middle) / 0.05)) for sign in (-1, 1)]
    terms = [(push * weight).sum() / weight.sum() for push, weight in zip(pushed, weights, strict=True)]
    assert found["evidence"].item() == pytest.approx(terms[0] + 2.0 * terms[1])  # α = 2
    # λ_n: each text among the batch's asking words with their signs, without the other one that it asks by itself.
    classes = signs[:, None] * np.array([w[b, at] for b, at in places])
    logits = np.exp(model.stage1_scale.item()) * s @ classes.T
    each = [
        np.log(np.exp(logits[0, 0]) + np.exp(logits[0, 2])) - logits[0, 0],
        np.log(np.exp(logits[0, 1]) + np.exp(logits[0, 2])) - logits[0, 1],
        np.log(np.exp(logits[1]).sum()) - logits[1, 2],
    ]
    assert found["naming"].item() == pytest.approx(((each[0] + each[2]) / 2 + each[1]) / 2)


def test_a_word_that_several_texts_ask_by_is_one_class():
    sentence = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    word = torch.eye(4)[:3]
    words = word[[0, 0, 1]][:, None]
    ids, named, scale = torch.tensor([[5], [5], [6]]), torch.ones(3, 1, dtype=torch.long), torch.tensor(2.0)
    found = losses.sentence_word_role_loss(sentence, words, ids, named, scale)
    expected = torch.nn.functional.cross_entropy(2.0 * sentence @ word[:2].T, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(found, expected)
    assert losses.sentence_word_role_loss(sentence, words, ids, named * 0, scale) == 0


def test_gradients_reach_the_encoders_outputs_and_are_those_of_differences():
    *floats, ids, named, fulfils = tensors(numbers())
    model = build_model(METHOD_FACTS, 10).double()

    def loss(words, vectors, sentence):
        return sum(attribute_losses_of(model, words, vectors, sentence, ids, named, fulfils).values())

    inputs = [value.requires_grad_() for value in floats]
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-5)
    loss(*inputs).backward()
    words, vectors, sentence = (value.grad.abs().sum(-1) for value in inputs)
    assert ((words > 0) == (named != 0)).all() and (vectors > 0).all() and (sentence > 0).all()


@pytest.fixture(scope="module")
def batch():
    config = load_config(overrides=TINY)
    source = open_source("drawn", None, **config.data.options)
    triplets = source.triplets(0)[:16]
    words = build_vocabulary(triplet.text for triplet in triplets)
    tokenizer = Tokenizer.from_bytes(words.to_str().encode())
    return make_batch(triplets, ImageCache(source, config.model.image_size, 0), tokenizer, DistributedContext()), len(
        tokenizer
    )


def trainer(batch, method, *settings):
    config = load_config(overrides=[*TINY, f"model.method={method}", *settings])
    torch.manual_seed(0)
    return Trainer(config, build_model(config.model, batch[1]), 10)


@pytest.mark.parametrize("method", METHODS)
def test_every_baseline_takes_a_step_by_facts(batch, method):
    one = trainer(batch, method, "model.attribute_supervision=true")
    before = copy.deepcopy(one.model.state_dict())
    parts = one.train_step(batch[0])
    assert parts["evidence"] > 0 and parts["naming"] > 0
    assert parts["loss"] == pytest.approx(parts["stage1"] + 3.0 * parts["evidence"] + 0.3 * parts["naming"], rel=1e-5)
    moved = {name for name, value in one.model.state_dict().items() if not torch.equal(value, before[name])}
    wanted = {f"facts.{part}.weight" for part in ("word", "image", "sentence")}
    assert wanted | {"text_encoder.embedding.weight", "image_encoder.vector.weight"} <= moved


@pytest.mark.parametrize("method", ["sum", "tirg", "combiner", "artemis"])
def test_a_plain_baseline_knows_nothing_of_facts(batch, method):
    plain = trainer(batch, method)
    same = trainer(batch, method, "train.word_grounding_weight=50", "train.word_role_weight=50")
    taught = trainer(batch, method, "model.attribute_supervision=true")
    unheard = trainer(
        batch, method, "model.attribute_supervision=true", "train.word_grounding_weight=0", "train.word_role_weight=0"
    )
    names = plain.model.state_dict().keys()
    assert not [name for name in names if name.startswith("facts")]
    assert all(torch.equal(value, taught.model.state_dict()[name]) for name, value in plain.model.state_dict().items())
    parts = [one.train_step(batch[0]) for one in (plain, same, taught, unheard)]
    assert parts[0].keys() == {"stage1", "loss", "grad_norm"} and parts[0] == parts[1]
    after = [one.model.state_dict() for one in (plain, same, taught, unheard)]
    for name in names:
        assert torch.equal(after[0][name], after[1][name])
        if not name.startswith("text_encoder.word."):  # without a gradient it does not even decay
            torch.testing.assert_close(after[0][name], after[3][name], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(after[0][name], after[2][name]) for name in names)


def test_facts_reach_the_encoders_where_a_head_would_be_held_back(batch):
    one = trainer(batch, "tirg", "model.attribute_supervision=true", "model.head_grad_scale=0")
    parts = one.batch_losses(batch[0], torch.Generator().manual_seed(0))
    parts["evidence"].backward()
    assert one.model.text_encoder.embedding.weight.grad.abs().sum() > 0


def test_dropped_words_are_not_taught(batch):
    one = trainer(batch, "tirg", "model.attribute_supervision=true", "train.word_dropout=1.0")
    parts = one.batch_losses(batch[0], torch.Generator().manual_seed(0))
    assert parts["naming"] == 0 and parts["evidence"] == 0


def test_a_run_by_facts_is_saved_resumed_and_opened(tmp_path):
    config = load_config(overrides=[*TINY, "model.method=tirg", "model.attribute_supervision=true", "train.epochs=2"])
    assert train(config, tmp_path / "a", should_stop=lambda: True).interrupted
    assert not train(config, tmp_path / "a").interrupted
    assert not train(config, tmp_path / "b").interrupted
    states = [load_checkpoint(tmp_path / name).model.state_dict() for name in "ab"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert open_scorer(tmp_path / "a").info.mode is RankingMode.ONE_STAGE


def test_nsfse_takes_no_facts_of_baselines():
    with pytest.raises(DataError, match="word_grounding_weight"):
        build_model(ModelConfig(attribute_supervision=True), 5)
