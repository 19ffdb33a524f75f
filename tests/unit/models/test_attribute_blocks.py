"""Vectors with blocks of attributes: unit length, coefficients to the number, and what a text replaces."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nsfse.benchmark.methods import method_settings
from nsfse.config import ModelConfig, load_config
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.evaluation.reference_head import score_pairs
from nsfse.models.attribute_blocks import AttributeBlocks
from nsfse.models.checkpoint import load_checkpoint
from nsfse.models.nsfse import NSFSE
from nsfse.models.torch_scorer import TorchScorer
from nsfse.training.dataloader import AttributeClasses
from nsfse.training.loop import train
from nsfse.training.objectives import with_blocks
from nsfse_export.export import head_constants
from nsfse_runtime.errors import DataError
from nsfse_runtime.inference.tokenizer import Tokenizer
from tests.random_run import random_model

ATTRIBUTES = {"colour": 3, "size": 2}
WORDS = Tokenizer.from_bytes(build_vocabulary(["make it red"]).to_str().encode())


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1)


def blocks(dim=12, seed=0):
    torch.manual_seed(seed)
    made = AttributeBlocks(dim, ATTRIBUTES)
    with torch.no_grad():
        made.weights.copy_(torch.tensor([0.5, 1.0, -0.3]))
    return made


def test_the_inner_product_is_the_sum_of_the_coefficients_of_all_attributes():
    made, images = blocks(), unit(torch.randn(2, 12))
    with torch.no_grad():
        g = made.describe(images)
        colours, sizes = (p.numpy() for p in made.distributions(g))
        rest = made.own(images)
    np.testing.assert_allclose(colours.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(sizes.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(g.norm(dim=1), 1, atol=1e-6)
    squares = np.exp([0.5, 1.0, -0.3]) / np.exp([0.5, 1.0, -0.3]).sum()
    one, other = (row / np.linalg.norm(row) for row in rest.numpy())
    wanted = squares[0] * (one @ other) + squares[1] * np.sqrt(colours[0] * colours[1]).sum()
    wanted += squares[2] * np.sqrt(sizes[0] * sizes[1]).sum()
    assert (g[0] @ g[1]).item() == pytest.approx(wanted, abs=1e-5)


def test_a_text_replaces_the_attributes_that_it_names():
    made = blocks()
    with torch.no_grad():
        made.replaced.weight.zero_()
        made.replaced.bias.copy_(torch.tensor([50.0, -50.0]))  # the colour is the text's, the size the reference's
        reference = made.describe(unit(torch.randn(1, 12)))
        sentence, composed = unit(torch.randn(1, 12)), torch.randn(1, 12)
        query = made.compose(reference, sentence, composed)
        colour, size = made.distributions(query)
        wanted = torch.softmax(made.requested(16 * sentence)[:, :3], -1)
    torch.testing.assert_close(colour, wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(size, made.distributions(reference)[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(unit(query[:, :7]), unit(composed[:, :7]))
    assert query.norm().item() == pytest.approx(1, abs=1e-6)


def test_agreement_is_the_chance_that_both_have_one_value():
    made, images = blocks(), unit(torch.randn(5, 12))
    with torch.no_grad():
        g = made.describe(images)
        colours, sizes = (p.numpy() for p in made.distributions(g))
        found = made.agreements(g[:2], torch.stack([g[2:], g[:3]])).numpy()
        shares = made.shares().numpy()
    assert found.shape == (2, 3, 2)
    for query, candidate, image in ((0, 0, 2), (0, 2, 4), (1, 0, 0)):
        chances = [p[query] @ p[image] for p in (colours, sizes)]
        np.testing.assert_allclose(found[query, candidate], np.log(np.add(chances, 1e-3)), atol=1e-4)
    weights = np.exp([0.5, 1.0, -0.3])
    np.testing.assert_allclose(shares, weights[1:] / weights.sum(), atol=1e-6)


def test_the_whole_score_counts_agreement_by_its_weights_and_numpy_agrees():
    small = {"width": 16, "dim": 16, "image_size": (32, 48), "attributes": ATTRIBUTES}
    model, tokenizer = random_model(ModelConfig(**small), len(WORDS)), WORDS
    scorer = TorchScorer(model, tokenizer)
    images = scorer.encode_images(np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8))
    (query,) = scorer.compose(images.take([0]), ["make it red"])
    head = head_constants(model)
    assert [block.name for block in head.blocks] == ["colour", "size"] and all(b.weight > 0.2 for b in head.blocks)
    whole = scorer.score_pairs(query, images).score
    np.testing.assert_allclose(score_pairs(query, images, head).score, whole, atol=1e-4)
    before = score_pairs(query, images, replace(head, blocks=())).score
    model.blocks.agreement_weights.zero_()
    np.testing.assert_allclose(scorer.score_pairs(query, images).score, before, atol=1e-4)
    assert np.ptp(whole - before) > 0.01


def test_weights_from_before_agreement_counted_are_read_and_training_continues():
    made = blocks()
    words, vectors = unit(torch.randn(1, 3, 12)), unit(torch.randn(1, 4, 12))
    buffers = {name for name, _ in made.named_buffers()}
    assert buffers == {"agreement_weights", "naming_weight", "naming_bias"}
    old = {name: value for name, value in made.state_dict().items() if name not in buffers}
    made = blocks(seed=1)
    made.load_state_dict(old)
    assert made.agreement_weights.tolist() == [0.0, 0.0] and made.word_gains(words, vectors).abs().max() < 1e-6


def test_a_word_gains_by_the_chance_of_the_value_that_it_names():
    made, images = blocks(), unit(torch.randn(4, 12))
    words = torch.eye(12)[None, :3]  # the first names the colour 1, the second the size 0, the third nothing
    with torch.no_grad():
        made.naming_bias.zero_()
        made.naming_weight[[1, 4], 0], made.naming_weight[[2, 6], 1], made.naming_weight[0, 2] = 10.0, 10.0, 10.0
        g = made.describe(images)
        colours, sizes = made.distributions(g)
        gains = made.word_gains(words, g[None])[0]
    chances = torch.stack([colours[:, 1], sizes[:, 0]], 1)
    torch.testing.assert_close(gains[:, :2], 0.4 * torch.log((chances + 0.02) / 0.3), atol=1e-4, rtol=0)
    assert gains[:, 2].abs().max() < 1e-4


def test_a_certain_value_has_a_finite_gradient():
    made = blocks()
    with torch.no_grad():
        made.values.bias.copy_(torch.tensor([200.0, 0, 0, 0, -200.0]))
    images = unit(torch.randn(2, 12)).requires_grad_()
    made.describe(images).sum().backward()
    assert images.grad.isfinite().all() and made.values.weight.grad.isfinite().all()


def test_too_many_values_are_refused_in_one_line():
    with pytest.raises(DataError, match=r"5 values of 2 attributes leave 1 of model\.dim=6; give it 7 or more"):
        AttributeBlocks(6, ATTRIBUTES)


def test_a_model_without_attributes_has_no_blocks_and_one_with_them_composes_unit_vectors():
    small = {"width": 16, "dim": 16, "image_size": (32, 48)}
    assert NSFSE(ModelConfig(**small), 20).blocks is None
    model = random_model(ModelConfig(**small, attributes=ATTRIBUTES), 20)
    pixels = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    ids = torch.tensor([[4, 7, 1], [3, 0, 0]])
    with torch.inference_mode():
        vectors, regions = model.encode_images(pixels)
        query, _ = model.compose(vectors, regions, *model.encode_text(ids, ids > 0), ids > 0)
    assert vectors.shape == query.shape == (2, 16)
    assert all(math.isclose(row.norm().item(), 1, abs_tol=1e-5) for row in (*vectors, *query))


DRAWN = [
    "data.options={level='easy', items=64, triplets=32}",
    "data.validation_queries=0",
    "data.fitting_queries=20",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=128",
    "model.attribute_blocks=true",
    "train.attribute_weight=1",
    "train.batch=16",
    "train.candidates=6",
    "train.epochs=1",
]


def test_a_run_keeps_its_attributes_and_continues(tmp_path):
    config = load_config(overrides=DRAWN)
    train(config, tmp_path / "run", steps=1)
    done = train(config, tmp_path / "run")
    assert not done.interrupted and done.metrics["step"] == 2
    kept = load_checkpoint(tmp_path / "run")
    assert kept.config.model.attributes["colour"] > 1 and kept.model.blocks
    assert sum(kept.config.model.attributes.values()) == kept.model.blocks.values.out_features
    assert '"attributes":' in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("method", ["nsfse:no-blocks", "nsfse:unnamed", "tirg:facts"])
def test_other_methods_have_no_blocks(method):
    config = load_config(overrides=[*DRAWN, *method_settings(method)])
    assert not with_blocks(config, AttributeClasses({"colour": ("blue", "red")})).model.attributes
