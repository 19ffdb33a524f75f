"""Adding a backbone takes one class, in a file of its own, and one line in the table."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.backbones.base import Backbone, ImageEncoder
from nsfse.models.backbones.registry import BACKBONES
from nsfse.models.backbones.text import GruTextEncoder
from nsfse.models.nsfse import NSFSE


class Halves(ImageEncoder):
    """Two regions: the mean colours of the upper and the lower half, projected."""

    def __init__(self, dim):
        super().__init__()
        self.region, self.vector = torch.nn.Linear(3, dim), torch.nn.Linear(6, dim)

    def forward(self, pixels):
        halves = torch.stack([half.mean((2, 3)) for half in pixels.chunk(2, 2)], 1)
        return F.normalize(self.vector(halves.flatten(1)), dim=-1), F.normalize(self.region(halves), dim=-1)


class HalvesBackbone(Backbone):
    name = "halves"
    reads_weights = False

    def build(self, config, vocabulary):
        return Halves(config.dim), GruTextEncoder(vocabulary, config)


def test_a_new_backbone_encodes_and_composes(monkeypatch):
    monkeypatch.setitem(BACKBONES, "halves", HalvesBackbone())  # the line
    model = NSFSE(ModelConfig(backbone="halves", dim=8, image_size=(8, 8), global_tokens=2), 20).eval()
    ids = torch.tensor([[4, 7, 1], [5, 2, 0]])
    with torch.inference_mode():
        vectors, regions = model.encode_images(torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8))
        query, _ = model.compose(vectors, regions, *model.encode_text(ids, ids > 0), ids > 0)
    assert vectors.shape == query.shape == (2, 8) and regions.shape == (2, 2 + 2, 8)
