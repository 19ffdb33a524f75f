"""Adding a method takes one class or function and one line in the table."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

from nsfse.config import load_config
from nsfse.models.baselines import METHODS, build_model
from nsfse.training.trainer import Trainer
from tests.unit.training.test_trainer import OVERRIDES, batch_of


class Residual(torch.nn.Module):
    """q = unit(g + W m): the text shifts the reference."""

    def __init__(self, dim):
        super().__init__()
        self.shift = torch.nn.Linear(dim, dim)

    def forward(self, image, sentence):
        return F.normalize(image + self.shift(sentence), dim=-1)


def test_a_new_method_takes_a_training_step(monkeypatch):
    monkeypatch.setitem(METHODS, "residual", lambda config: Residual(config.dim))  # the line
    config = load_config(overrides=[*OVERRIDES, "model.method=residual"])
    model = build_model(config.model, 9)
    before = model.method.shift.weight.detach().clone()
    losses = Trainer(config, model, 10).train_step(batch_of(6))
    assert losses["stage1"] > 0 and not torch.equal(model.method.shift.weight, before)
