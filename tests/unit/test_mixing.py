from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from nsfse.config import ModelConfig  # noqa: E402
from nsfse.data import Protocol, Triplet  # noqa: E402
from nsfse.deciding import of_training  # noqa: E402
from nsfse.mixing import _fit, fit_mix  # noqa: E402
from nsfse.vocabulary import build_vocabulary  # noqa: E402
from nsfse_runtime.text import Tokenizer  # noqa: E402
from tests.random_run import random_model  # noqa: E402

WORDS = Tokenizer.from_bytes(build_vocabulary(["make it red", "in blue"]).to_str().encode())


def pictures(names):
    return np.stack([np.random.default_rng(int(name)).integers(0, 256, (32, 32, 3), np.uint8) for name in names])


def test_the_fit_asks_all_phrasings_and_leaves_recoloured_references_out():
    config = ModelConfig(width=16, dim=16, image_size=(32, 32))
    model = random_model(config, len(WORDS))
    texts = ("make it red", "in blue")
    plain = [Triplet(str(at), texts, (str(at + 1),)) for at in range(0, 12, 2)]
    own = [Triplet(str(at), texts, (str(at),), recolour=3) for at in range(12)]
    found = fit_mix(model, WORDS, of_training(plain), pictures)
    assert torch.equal(fit_mix(model, WORDS, of_training(plain + own), pictures), found)
    first = [replace(query, texts=query.texts[at % 2 : at % 2 + 1]) for at, query in enumerate(plain)]
    assert torch.equal(fit_mix(model, WORDS, of_training(first), pictures), found)
    alike = [replace(query, texts=texts[:1]) for query in plain]
    assert not torch.equal(fit_mix(model, WORDS, of_training(alike), pictures), found)


def test_queries_in_unknown_words_say_nothing_of_the_mix():
    model = random_model(ModelConfig(width=16, dim=16, image_size=(32, 32)), len(WORDS))
    known = [Triplet(str(at), ("make it red",), (str(at + 1),)) for at in range(0, 8, 2)]
    gallery = of_training(known).gallery
    strange = replace(known[0], texts=("zzz",))
    found = fit_mix(model, WORDS, Protocol("p", "1", gallery, (*known, strange)), pictures)
    plain = fit_mix(model, WORDS, Protocol("p", "1", gallery, tuple(known)), pictures)
    torch.testing.assert_close(found, plain, rtol=1e-2, atol=1e-2)  # read in other company
    assert torch.equal(fit_mix(model, WORDS, Protocol("p", "1", gallery, (strange,)), pictures), model.head.mix)


def test_the_fit_trusts_the_part_that_knows_the_target():
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(200, 6, 3, generator=generator)
    parts[:, 0, 2] += 2.0  # the visual part alone puts the target, first, above the others
    weights = torch.nn.functional.softplus(_fit(parts))
    assert weights[2] > 3 * weights[:2].max()


def test_weights_stay_finite_where_stage_1_knows_nothing():
    generator = torch.Generator().manual_seed(0)
    parts = 0.01 * torch.randn(20, 6, 3, generator=generator)
    parts[:, 0] += torch.tensor([-0.2, 0.0, 0.1])
    assert 89 < torch.nn.functional.softplus(_fit(parts))[2] <= 100
