"""The baselines: their papers' equations at weights chosen by hand, and the road that they share with NSFSE."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nsfse.config import ModelConfig, TrainConfig, load_config
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.evaluation.evaluate import evaluate_source
from nsfse.models.baselines import METHODS, Artemis, Baseline, Combiner, Tirg, build_model, vector_sum
from nsfse.models.checkpoint import load_checkpoint
from nsfse.models.torch_scorer import TorchScorer
from nsfse.open import open_scorer
from nsfse.training.dataloader import Batch
from nsfse.training.loop import train
from nsfse.training.objectives import AttributeHeads, BaselineObjective, EncodedBatch
from nsfse_runtime.errors import DataError
from nsfse_runtime.search.two_stage import rank
from nsfse_runtime.types import RankingMode

SMALL = [
    'data.source="drawn"',
    'data.options.level="easy"',
    "data.options.items=64",
    "data.options.triplets=32",
    "data.validation_queries=0",
    "data.fitting_queries=20",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=16",
    "train.batch=16",
    "train.epochs=1",
]
G, M = torch.tensor([[0.6, 0.8]]), torch.tensor([[0.0, 1.0]])


def last_layer(layers, bias):
    """Make a perceptron that says `bias` whatever it is shown."""
    torch.nn.init.zeros_(layers[-1].weight)
    layers[-1].bias.data = torch.tensor(bias)


def test_the_sum_is_the_normalised_sum():
    torch.testing.assert_close(vector_sum(G, M), torch.tensor([[0.6, 1.8]]) / math.sqrt(3.6))


@torch.inference_mode()
def test_tirg_gates_the_reference_and_adds_a_residual():
    method = Tirg(2)
    last_layer(method.gate, [0.0, math.log(3.0)])  # σ = ½, ¾
    last_layer(method.residual, [0.1, 0.2])
    method.gate_weight.fill_(2.0)
    method.residual_weight.fill_(10.0)
    # 2 (½·0.6, ¾·0.8) + 10 (0.1, 0.2) = (1.6, 3.2)
    torch.testing.assert_close(method(G, M), torch.tensor([[1.0, 2.0]]) / math.sqrt(5.0))


@torch.inference_mode()
def test_the_combiner_is_a_convex_combination_plus_a_mixture():
    method = Combiner(2).eval()
    last_layer(method.share, [math.log(3.0)])  # λ = ¾
    last_layer(method.mixture, [0.1, 0.0])
    # ¼ (0.6, 0.8) + ¾ (0, 1) + (0.1, 0) = (0.25, 0.95)
    torch.testing.assert_close(method(G, M), torch.tensor([[0.25, 0.95]]) / math.hypot(0.25, 0.95))


@torch.inference_mode()
def test_artemis_adds_explicit_matching_and_implicit_similarity():
    method = Artemis(2)
    method.transform.weight.copy_(torch.eye(2))
    torch.nn.init.zeros_(method.transform.bias)
    last_layer(method.explicit[:-1], [0.0, math.log(3.0)])  # softmax: ¼, ¾
    last_layer(method.implicit[:-1], [0.0, 0.0])  # ½, ½
    found = method.scores(method(G, M), torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    # (1, 0): cos((0, 1), (¼, 0)) = 0 and cos(G, (½, 0)) = 0.6; G itself: 0.6 / √(0.15² + 0.6²) and 1
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.6 / math.hypot(0.15, 0.6) + 1.0]]))


@torch.inference_mode()
def test_artemis_in_rows_is_artemis_by_the_letter():
    torch.manual_seed(0)
    method, cosine = Artemis(8), torch.nn.functional.cosine_similarity
    image, sentence, targets = (torch.nn.functional.normalize(torch.randn(n, 8), dim=-1) for n in (3, 3, 5))
    found = method.scores(method(image, sentence), targets)
    for q in range(3):
        a, b = method.explicit(sentence[q]), method.implicit(sentence[q])
        letter = cosine(method.transform(sentence[q])[None], a * targets) + cosine((b * image[q])[None], b * targets)
        torch.testing.assert_close(found[q], letter)
    assert method.nearest(method(image, sentence)).norm(dim=-1) == pytest.approx([1, 1, 1])


@torch.inference_mode()
@pytest.mark.parametrize("name", METHODS)
def test_every_method_composes_unit_vectors_and_reads_what_it_should(name):
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=16, dim=16, image_size=(32, 48), method=name), 20).eval()
    pixels = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    vectors, regions = model.encode_images(pixels)
    assert vectors.shape == (2, 16) and regions.shape == (2, 0, 16)

    def query(rows, ids):
        ids = torch.tensor(ids)
        return model.compose(vectors[rows], regions[rows], *model.encode_text(ids, ids > 0), ids > 0)

    (one, side), (other_text, _), (other_image, _) = query([0], [[4, 7]]), query([0], [[9]]), query([1], [[4, 7]])
    assert one.shape == (1, 16) and one.norm().item() == pytest.approx(1.0)
    assert side.words.shape == (1, 0, 16) and side.probes.shape == (1, 4 if name == "artemis" else 0, 16)
    assert torch.equal(one, other_text) == (name == "image-only")
    assert torch.equal(one, other_image) == (name == "text-only")


def test_what_is_blocked_is_no_negative():
    vectors = torch.eye(4)[:, :3]
    rows = torch.tensor([0])
    right = torch.tensor([[False, True, True, False]])
    batch = Batch(vectors, torch.arange(4), rows, rows + 1, rows, rows, right, right.long(), rows, rows[:0], rows, rows)
    model = build_model(ModelConfig(dim=16, method="text-only"), 5)
    torch.nn.init.zeros_(model.stage1_scale)
    for blocked, left in (([False, False, True, False], 3), ([True, False, True, False], 2)):
        encoded = EncodedBatch(vectors, vectors, rows, vectors[3:], None, torch.tensor([blocked]), rows, rows)
        found = BaselineObjective(model, TrainConfig(), AttributeHeads(16, []))(batch, encoded, torch.Generator())
        assert found["stage1"].item() == pytest.approx(math.log(left))  # every cosine is 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in METHODS:
        result = train(load_config(overrides=[*SMALL, f"model.method={name}"]), folder / name)
        assert not result.interrupted
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_of_training_then_an_evaluation(runs, name):
    checkpoint = load_checkpoint(runs / name)
    assert isinstance(checkpoint.model, Baseline) and checkpoint.config.model.method == name
    log = (runs / name / "metrics.jsonl").read_text()
    assert '"step":2,' in log and '"loss":' in log and "t_c" not in log
    source = DrawnSource(DrawnOptions("easy", gallery=32))
    protocol = source.protocols("test")[0]
    short = dataclasses.replace(protocol, queries=protocol.queries[:6])
    (result,) = evaluate_source(open_scorer(runs / name), source, [short]).results
    assert 0 <= result.scores["R@1"] <= result.scores["R@10"] <= 100
    assert result.rerank == (32 if name == "artemis" else 0)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["sum", "artemis"])
def test_the_ranking_is_that_of_the_score(runs, name):
    checkpoint = load_checkpoint(runs / name)
    scorer = TorchScorer(checkpoint.model, checkpoint.tokenizer)
    gallery = scorer.encode_images(np.random.default_rng(0).integers(0, 256, (30, 32, 48, 3), dtype=np.uint8))
    (query,) = scorer.compose(gallery.take([3]), ["make it red"])
    expected = RankingMode.ALL_PAIRS if name == "artemis" else RankingMode.ONE_STAGE
    assert query.tokens == () and scorer.info.mode is expected
    every = scorer.score_pairs(query, gallery)
    assert every.score.shape == (30,) and every.word_scores.shape == (30, 0)
    depth = {RankingMode.ALL_PAIRS: 30, RankingMode.ONE_STAGE: 0}[scorer.info.mode]
    found = rank(scorer, query, gallery.vectors, gallery.take, 10, depth)
    np.testing.assert_array_equal(found.rows, np.argsort(-every.score, kind="stable")[:10])


def test_a_stopped_run_with_dropout_resumes_to_the_same_weights(runs, tmp_path):
    config = load_config(overrides=[*SMALL, "model.method=combiner"])
    assert train(config, tmp_path / "run", should_stop=lambda: True).interrupted
    assert not train(config, tmp_path / "run").interrupted
    files = [folder / "model.safetensors" for folder in (tmp_path / "run", runs / "combiner")]
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1


def test_an_unknown_method_is_refused():
    with pytest.raises(DataError, match="tirg"):
        build_model(ModelConfig(method="tigr"), 5)
