"""A sentence that can take an embedding away: by numbers, without traces of padding, and apart from the plain one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nsfse.config import ModelConfig
from nsfse.models.backbones.text import SignedSum
from nsfse.models.baselines import build_model

SIGNED = ModelConfig(width=16, dim=8, image_size=(32, 32), sentence="signed")


def test_the_sum_to_the_number():
    torch.manual_seed(0)
    part = SignedSum(3).double()
    embedded, states = torch.randn(2, 4, 3).double(), torch.randn(2, 4, 3).double()
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    found = part(embedded, states, mask).detach().numpy()
    x, h = embedded.numpy(), states.numpy()
    for row, length in enumerate((4, 2)):
        weigh, sign = (
            h[row, :length] @ layer.weight.detach().numpy()[0] + layer.bias.item() for layer in (part.weight, part.sign)
        )
        weights = np.exp(weigh) / np.exp(weigh).sum() * np.tanh(sign)
        np.testing.assert_allclose(found[row], 4.0 * weights @ x[row, :length])


def test_a_word_can_be_taken_away_and_at_first_all_are_wanted():
    part = SignedSum(2)
    embedded = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert (part(embedded, torch.zeros(1, 2, 2), mask) > 0).all()
    with torch.no_grad():
        part.sign.weight.copy_(torch.tensor([[0.0, -2.0]]))
        red_not_blue = part(embedded, torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]), mask)[0]
    assert red_not_blue[0] > 0 > red_not_blue[1]


@pytest.mark.parametrize("config", [SIGNED, ModelConfig(width=16, dim=8, image_size=(32, 32))], ids=["signed", "peak"])
def test_padding_changes_no_sentence(config):
    torch.manual_seed(0)
    encoder = build_model(config, 9).text_encoder.eval()
    ids = torch.tensor([[3, 4, 5]])
    alone = encoder(ids, ids > 0)
    padded = torch.tensor([[3, 4, 5, 0, 0], [2, 3, 4, 5, 6]])
    beside = encoder(padded, padded > 0)
    torch.testing.assert_close(alone[1][0], beside[1][0])
    torch.testing.assert_close(alone[0][0], beside[0][0, :3])


def test_a_plain_sentence_has_the_parameters_it_always_had():
    plain = build_model(ModelConfig(width=16, dim=8, image_size=(32, 32)), 9).text_encoder.state_dict().keys()
    signed = build_model(SIGNED, 9).text_encoder.state_dict().keys()
    more = {f"signed_sum.{part}.{name}" for part in ("weight", "sign") for name in ("weight", "bias")}
    assert signed - plain == more and not plain - signed
