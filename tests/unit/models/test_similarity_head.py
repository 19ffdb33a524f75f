import pytest

torch = pytest.importorskip("torch")

from dataclasses import replace

import numpy as np

from nsfse.config import ModelConfig
from nsfse.models.similarity_head import QueryEncoding, gathered_cosine, masked_softmax
from tests.random_run import random_model

CONFIG = ModelConfig(width=16, dim=16, image_size=(32, 48))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, vocabulary=20)


def unit(*shape, seed=0, dtype=torch.float64):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(rows, dim=-1)


def test_masked_softmax_is_softmax_of_the_kept_and_nothing_of_nothing():
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    keep = torch.tensor([[True, False, True], [False, False, False]])
    found = masked_softmax(logits, keep)
    torch.testing.assert_close(found[0, [0, 2]], torch.softmax(torch.tensor([1.0, 3.0]), 0))
    assert found[0, 1] == 0 and not found[1].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_gathered_cosine_is_that_of_the_summed_regions(dtype, tolerance):
    rows, regions = unit(4, 8, dtype=dtype), unit(6, 8, seed=1, dtype=dtype)
    weights = torch.softmax(3 * rows @ regions.T, -1)
    wanted = torch.nn.functional.cosine_similarity(rows, weights @ regions)
    found = gathered_cosine(weights, rows @ regions.T, regions @ regions.T)
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def test_no_attention_gathers_nothing():
    regions = unit(6, 8)
    assert not gathered_cosine(torch.zeros(3, 6), torch.ones(3, 6), (regions @ regions.T).float()).any()


def side_of(model, count=3, length=4, seed=2):
    words, regions = unit(count, length, 16, seed=seed).float(), unit(count, 6, 16, seed=seed + 1).float()
    mask = torch.arange(length) < torch.arange(length, length - count, -1)[:, None]
    sentence = unit(count, 16, seed=seed + 2).float()
    _, side = model.compose(unit(count, 16).float(), regions, words * mask[..., None], sentence, mask)
    return side


@torch.inference_mode()
def test_weights_sum_to_one_over_what_is_there_and_masked_rows_are_nothing(model):
    side = side_of(model)
    kept = side.probes.shape[1] - side.words.shape[1]
    torch.testing.assert_close(side.word_weights.abs().sum(1), torch.ones(3))
    torch.testing.assert_close(side.probe_weights.sum(1), torch.ones(3))
    for weights, rows in (
        (side.word_weights, side.words),
        (side.probe_weights[:, kept:], side.probes[:, kept:]),
    ):
        assert not weights[~side.mask].any() and not rows[~side.mask].any()
    norms = torch.cat([side.words[side.mask], side.probes[:, :kept].flatten(0, 1)]).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@torch.inference_mode()
def test_a_padded_query_scores_as_it_does_alone(model):
    side, regions = side_of(model), unit(3, 5, 6, 16, seed=7).float()
    padded = model.head.pair_similarities(side, regions)
    kept = side.probes.shape[1] - side.words.shape[1]
    length = int(side.mask[2].sum())
    assert length < side.mask.shape[1]
    alone = QueryEncoding(
        side.words[2:, :length],
        side.probes[2:, : kept + length],
        side.word_weights[2:, :length],
        side.probe_weights[2:, : kept + length],
        side.mask[2:, :length],
    )
    found = model.head.pair_similarities(alone, regions[2:])
    torch.testing.assert_close(found.cross[0], padded.cross[2])
    torch.testing.assert_close(found.visual[0], padded.visual[2])


@torch.inference_mode()
def test_a_view_is_compared_with_the_same_view_alone(model):
    side, regions = side_of(model), unit(3, 5, 6, 16, seed=7).float()
    views = model.head.global_tokens
    places = 6 - views
    products = torch.einsum("bvd,bmvd->bmv", side.probes[:, places : places + views], regions[:, :, places:])
    found = model.head.pair_similarities(side, regions)
    torch.testing.assert_close(found.y[:, :, places : places + views], products)
    alone = model.head.view_scores(side.probes[:, places : places + views], regions[:, 0])
    t = model.head.visual_boundary.t
    own = products[:, 0].clone()
    wanted = (own + own * (own > t) + (own - t).clamp_max(0)).mean(-1)
    torch.testing.assert_close(alone.diagonal(), wanted)


@torch.inference_mode()
def test_a_word_of_a_weight_under_zero_counts_against_what_has_it(model):
    side, regions = side_of(model), unit(3, 5, 6, 16, seed=7).float()
    turned = replace(side, word_weights=-side.word_weights)
    with_it, against = model.head.pair_similarities(side, regions), model.head.pair_similarities(turned, regions)
    over = with_it.x - model.head.cross_boundary.t
    words = side.word_weights[:, None]
    wrong = torch.where(words < 0, over.clamp_min(0), over.clamp_max(0))
    other = torch.where(words < 0, over.clamp_max(0), over.clamp_min(0))
    positive = with_it.cross - (words * wrong).sum(-1)
    torch.testing.assert_close(against.cross, -positive - (words * other).sum(-1))


@torch.inference_mode()
def test_the_total_is_a_mix_with_positive_weights(model):
    side = side_of(model)
    pair = model.head.pair_similarities(side, unit(3, 5, 6, 16, seed=7).float())
    nothing = torch.zeros(3, 5)
    weights = torch.nn.functional.softplus(model.head.mix)
    wanted = weights[1] * pair.cross + weights[2] * pair.visual
    torch.testing.assert_close(model.head.total(nothing, pair), wanted)
    torch.testing.assert_close(model.head.total(nothing + 1, pair) - wanted, nothing + weights[0])


@torch.inference_mode()
def test_infusion_is_as_its_equations_say():
    """docs/method.md §2, written once more in numpy."""
    model = random_model(CONFIG, 20)
    head, words, regions = model.head, unit(1, 3, 16).float(), unit(1, 6, 16, seed=5).float()
    sentence, mask = unit(1, 16).float(), torch.ones(1, 3) > 0
    found = head.read(words, sentence, mask, regions).words[0].numpy()
    w, v = words[0].numpy(), regions[0].numpy()
    a = w @ v.T
    a = np.where(a > 0, a, 0.1 * a)
    logits = head.infuse_scale.item() * a / np.linalg.norm(a, axis=0)
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    c = share @ v
    gate = head.infuse_gate.weight.numpy() @ np.concatenate([w, c], 1).T + head.infuse_gate.bias.numpy()[:, None]
    z = w + (c @ head.infuse_value.weight.numpy().T) / (1 + np.exp(-gate.T))
    z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + head.infuse_norm.eps)
    z = z * head.infuse_norm.weight.numpy() + head.infuse_norm.bias.numpy()
    np.testing.assert_allclose(found, z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-6)
    assert np.abs(found - w).max() > 0.01


@torch.inference_mode()
def test_without_infusion_words_stay_as_they_were():
    model = random_model(ModelConfig(width=16, dim=16, image_size=(32, 48), infusion=False), 20)
    words = unit(1, 3, 16).float()
    _, side = model.compose(
        unit(1, 16).float(), unit(1, 6, 16).float(), words, unit(1, 16).float(), torch.ones(1, 3) > 0
    )
    np.testing.assert_allclose(side.words, words)
