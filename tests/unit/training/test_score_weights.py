from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import numpy as np

from nsfse.config import ModelConfig
from nsfse.data import EvalQuery, EvaluationProtocol, TrainingTriplet
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.boundary import solve_boundary
from nsfse.models.torch_scorer import TorchScorer
from nsfse.training.calibration import protocol_from_triplets
from nsfse.training.score_weights import (
    CandidateLists,
    WeightSample,
    _fit,
    _fusion_weights,
    fit_boundaries,
    fit_served,
    make_lists,
    random_wrong,
)
from nsfse_runtime.inference.tokenizer import Tokenizer
from nsfse_runtime.types import QueryFeatures, TargetFeatures
from tests.random_run import random_model

WORDS = Tokenizer.from_bytes(build_vocabulary(["make it red", "in blue"]).to_str().encode())


def random_images(names):
    return np.stack([np.random.default_rng(int(name)).integers(0, 256, (32, 32, 3), np.uint8) for name in names])


def fit_mix(model, protocol):
    return _fusion_weights(model, make_lists(TorchScorer(model, WORDS), protocol, random_images, 600))


def protocol_of(queries):
    gallery = tuple(dict.fromkeys(name for query in queries for name in (query.targets[0], query.reference)))
    return EvaluationProtocol("p", "1", gallery, tuple(queries))


def test_the_fit_asks_all_phrasings_and_leaves_recoloured_references_out():
    config = ModelConfig(width=16, dim=16, image_size=(32, 32))
    model = random_model(config, len(WORDS))
    texts = ("make it red", "in blue")
    plain = [EvalQuery(str(at), texts, (str(at + 1),)) for at in range(0, 12, 2)]
    found = fit_mix(model, protocol_of(plain))
    first = [replace(query, texts=query.texts[at % 2 : at % 2 + 1]) for at, query in enumerate(plain)]
    assert torch.equal(fit_mix(model, protocol_of(first)), found)
    given = [TrainingTriplet(query.reference, query.texts[0], query.targets) for query in first]
    own = [TrainingTriplet(str(at), texts[0], (str(at),), recolour_seed=3) for at in range(12)]
    assert torch.equal(fit_mix(model, protocol_from_triplets(given + own)), found)
    alike = [replace(query, texts=texts[:1]) for query in plain]
    assert not torch.equal(fit_mix(model, protocol_of(alike)), found)


def test_queries_in_unknown_words_say_nothing_of_the_mix():
    model = random_model(ModelConfig(width=16, dim=16, image_size=(32, 32)), len(WORDS))
    known = [EvalQuery(str(at), ("make it red",), (str(at + 1),)) for at in range(0, 8, 2)]
    gallery = protocol_of(known).gallery
    strange = replace(known[0], texts=("zzz",))
    found = fit_mix(model, EvaluationProtocol("p", "1", gallery, (*known, strange)))
    plain = fit_mix(model, EvaluationProtocol("p", "1", gallery, tuple(known)))
    torch.testing.assert_close(found, plain, rtol=1e-2, atol=1e-2)  # read in other company
    assert torch.equal(fit_mix(model, EvaluationProtocol("p", "1", gallery, (strange,))), model.head.mix)


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


def test_a_part_that_misleads_is_left_out_and_the_rest_fitted_again():
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(300, 6, 5, generator=generator)
    parts[:, 0, [0, 2, 4]] += 1.0
    parts[:, 0, 3] -= 1.0  # an attribute on which targets disagree
    fitted = _fit(parts)
    assert fitted[3] == 0 and fitted[4] > 0.5
    torch.testing.assert_close(fitted[[0, 1, 2, 4]], _fit(parts[..., [0, 1, 2, 4]]))


def test_attributes_have_weights_of_their_own():
    config = ModelConfig(width=16, dim=16, image_size=(32, 32), attributes={"colour": 3, "size": 2})
    model = random_model(config, len(WORDS))
    plain = [EvalQuery(str(at), ("make it red",), (str(at + 1),)) for at in range(0, 12, 2)]
    found = fit_mix(model, protocol_of(plain))
    fit_served(TorchScorer(model, WORDS), protocol_of(plain), random_images)
    assert len(found) == 5 and (model.blocks.agreement_weights >= 0).all()
    torch.testing.assert_close(model.blocks.agreement_weights, fit_mix(model, protocol_of(plain))[3:])
    none = EvaluationProtocol("p", "1", (), tuple(plain))
    assert torch.equal(fit_mix(model, none), torch.cat([model.head.mix, model.blocks.agreement_weights]))


def test_a_right_answer_that_is_not_there_gives_way_to_the_next():
    model = random_model(ModelConfig(width=16, dim=16, image_size=(32, 32)), len(WORDS))
    plain = [EvalQuery(str(at), ("make it red",), (str(at + 1),)) for at in range(0, 12, 2)]
    gallery = protocol_of(plain).gallery
    found = fit_mix(model, EvaluationProtocol("p", "1", gallery, tuple(plain)))
    first = [replace(query, targets=("99", query.reference, *query.targets)) for query in plain]
    assert torch.equal(fit_mix(model, EvaluationProtocol("p", "1", gallery, tuple(first))), found)
    gone = [
        EvalQuery("98", ("in blue",), ("1",)),
        EvalQuery("0", ("in blue",), ("99",)),
        EvalQuery("0", ("in blue",), ("0",)),
    ]
    assert torch.equal(fit_mix(model, EvaluationProtocol("p", "1", gallery, (*gone, *plain))), found)
    assert torch.equal(fit_mix(model, EvaluationProtocol("p", "1", gallery, tuple(gone))), model.head.mix)
    assert torch.equal(fit_mix(model, EvaluationProtocol("p", "1", (), tuple(plain))), model.head.mix)


def rows(random, *shape):
    made = random.normal(size=shape).astype(np.float32)
    return made / np.linalg.norm(made, axis=-1, keepdims=True)


def lists_of_answers(model, count=120, images=150, words=3):
    """Return queries whose words and probes are near a region of their answer, and a gallery of the model's shape."""
    random, views, dim = np.random.default_rng(3), model.head.global_tokens, model.config.dim
    places = 5
    gallery = TargetFeatures(rows(random, images, dim), rows(random, images, places + views, dim))
    samples = []
    for answer in range(count):
        own = gallery.regions[answer]
        near = np.concatenate([own[[1, 2, 4]], own[:places], own[places:], own[[0, 3, 1]]])
        near = near + 0.15 * random.normal(size=near.shape).astype(np.float32)
        near /= np.linalg.norm(near, axis=-1, keepdims=True)
        kappa = np.array([0.4, -0.2, 0.4], np.float32)
        nu = random.dirichlet(np.ones(places + views + words)).astype(np.float32)
        query = QueryFeatures(rows(random, dim), near[:words], near[words:], kappa, nu, ("a", "b", "c"))
        samples.append(WeightSample(query, answer, (images - 1 - answer % 7, (answer + 1) % count)))
    return CandidateLists(gallery, tuple(samples))


def by_hand(values, weights):
    values, weights = np.concatenate(values).astype(np.float64), np.concatenate(weights).astype(np.float64)
    mean = (values * weights).sum() / weights.sum()
    return mean, np.sqrt(((values - mean) ** 2 * weights).sum() / weights.sum())


def test_both_boundaries_are_those_of_a_computation_by_hand():
    model = random_model(ModelConfig(width=16, dim=16, image_size=(32, 32)), len(WORDS))
    lists, places = lists_of_answers(model), 5
    assert fit_boundaries(model, lists) == {"t_c": "refitted", "t_v": "refitted"}
    found = {(side, kind): ([], []) for side in "cv" for kind in "+-"}
    for number, sample in enumerate(lists.samples):
        query = sample.query
        for row in (sample.answer, *random_wrong(lists.gallery, sample, number)):
            kind, regions = "+" if row == sample.answer else "-", lists.gallery.regions[row]
            y = (query.probes @ regions.T).max(1)
            views = slice(places, places + model.head.global_tokens)
            y[views] = (query.probes[views] * regions[places:]).sum(1)
            for side, x, w in (
                ("c", (query.words @ regions.T).max(1), query.word_weights),
                ("v", y, query.probe_weights),
            ):
                found[side, kind][0].append(x)
                found[side, kind][1].append(np.maximum(w, 0))
    for side, boundary in (("c", model.head.cross_boundary), ("v", model.head.visual_boundary)):
        moments = by_hand(*found[side, "+"]), by_hand(*found[side, "-"])
        assert boundary.t == pytest.approx(solve_boundary(*moments, boundary.alpha)[0], abs=1e-5)
        assert boundary.summary()["mu_p"] == pytest.approx(moments[0][0], abs=1e-5)


def test_mismatched_images_are_random_wrong_ones_without_the_hardest():
    model = random_model(ModelConfig(width=16, dim=16, image_size=(32, 32)), len(WORDS))
    lists = lists_of_answers(model)
    for number, sample in enumerate(lists.samples):
        chosen = random_wrong(lists.gallery, sample, number)
        wrong = set(range(150)) - {sample.answer, *sample.others}
        hardest = sorted(wrong, key=lambda row: -float(lists.gallery.vectors[row] @ sample.query.vector))[:32]
        assert len(set(chosen)) == 32 and set(chosen) <= wrong - set(hardest)
        assert chosen == random_wrong(lists.gallery, sample, number)
    few = TargetFeatures(lists.gallery.vectors[:3], lists.gallery.regions[:3])
    assert random_wrong(few, WeightSample(lists.samples[0].query, 0, (1,)), 0) == []


def test_omega_is_fitted_with_the_boundaries_that_are_served():
    """S depends on t: fitted the other way round, the mix is that of another S."""
    model = random_model(ModelConfig(width=16, dim=16, image_size=(32, 32)), len(WORDS))
    plain = [EvalQuery(str(at), ("make it red", "in blue"), (str(at + 1),)) for at in range(0, 160, 2)]
    protocol = protocol_of(plain)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mixed = fit_mix(model, protocol)

    def move(_model, _lists):
        _model.head.cross_boundary.state[6] = 0.45
        return {"t_c": "refitted", "t_v": "rejected"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nsfse.training.score_weights.fit_boundaries", move)
        assert fit_served(TorchScorer(model, WORDS), protocol, random_images) == {"t_c": "refitted", "t_v": "rejected"}
    assert not torch.equal(model.head.mix, mixed)
    torch.testing.assert_close(model.head.mix.detach(), fit_mix(model, protocol))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.mix", "head.cross_boundary.state"}
