import pytest

torch = pytest.importorskip("torch")

from nsfse.config import ModelConfig
from nsfse.models.nsfse import NSFSE
from nsfse_runtime.errors import DataError
from tests.random_run import random_model

CONFIG = ModelConfig(width=16, dim=16, image_size=(32, 48))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, vocabulary=20)


def query(model, ids, mask, pixels):
    vectors, regions = model.encode_images(pixels)
    return model.compose(vectors, regions, *model.encode_text(ids, mask), mask)


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 32, 48, 3), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def test_images_become_unit_vectors_and_unit_regions(model):
    vectors, regions = model.encode_images(images(3))
    assert vectors.shape == (3, 16) and regions.shape == (3, 6 + CONFIG.global_tokens, 16)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(regions.norm(dim=-1), torch.ones(3, 6 + CONFIG.global_tokens))


@torch.inference_mode()
def test_the_last_regions_see_the_whole_image(model):
    image = images(1)
    changed = image.clone()
    changed[:, :, -16:] = 255 - changed[:, :, -16:]
    (_, before), (_, after) = model.encode_images(image), model.encode_images(changed)
    for view in range(-CONFIG.global_tokens, 0):
        assert not torch.allclose(before[:, view], after[:, view])


@torch.inference_mode()
@pytest.mark.parametrize("padding", [0, 5])
def test_padding_and_company_change_nothing(model, padding):
    """The same query alone, and as the short one of a padded batch."""
    ids, pixels = torch.tensor([[4, 7, 1]]), images(2)
    alone_vector, alone = query(model, ids, ids > 0, pixels[:1])
    longer = torch.tensor([[9, 8, 7, 6, 5]])
    batch = torch.cat([torch.nn.functional.pad(ids, (0, 2)), longer])
    batch = torch.nn.functional.pad(batch, (0, padding))
    vector, side = query(model, batch, batch > 0, pixels)
    kept = alone.probes.shape[1] - 3
    torch.testing.assert_close(vector[:1], alone_vector)
    torch.testing.assert_close(side.words[:1, :3], alone.words)
    torch.testing.assert_close(side.probes[:1, : kept + 3], alone.probes)
    torch.testing.assert_close(side.word_weights[:1, :3], alone.word_weights)
    torch.testing.assert_close(side.probe_weights[:1, : kept + 3], alone.probe_weights)


@torch.inference_mode()
def test_the_order_of_words_matters_but_not_that_of_a_batch(model):
    ids, pixels = torch.tensor([[4, 7, 1], [1, 7, 4]]), images(1).expand(2, -1, -1, -1)
    vectors, _ = query(model, ids, ids > 0, pixels)
    swapped, _ = query(model, ids.flip(0), ids > 0, pixels)
    assert not torch.allclose(vectors[0], vectors[1])
    torch.testing.assert_close(swapped, vectors.flip(0))


def test_every_weight_learns_from_the_scores():
    model = random_model(CONFIG, vocabulary=20).train()
    ids, pixels = torch.tensor([[4, 7, 1], [5, 2, 0]]), images(4)
    vectors, regions = model.encode_images(pixels)
    words, sentence = model.encode_text(ids, ids > 0)
    composed, side = model.compose(vectors[:2], regions[:2], words, sentence, ids > 0)
    stage1 = composed @ vectors.T
    pair = model.head.pair_similarities(side, regions[torch.arange(4).expand(2, 4)])
    scores = model.stage1_scale * stage1 + model.head_scale * model.head.total(stage1, pair)
    (scores * torch.randn(2, 4, generator=torch.Generator().manual_seed(0))).sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle <= {"head.word_weight.2.bias", "head.probe_weight.2.bias"}  # a softmax does not see what all share


def test_an_unknown_backbone_is_refused():
    with pytest.raises(DataError, match="tiny"):
        NSFSE(ModelConfig(backbone="huge"), 20)
