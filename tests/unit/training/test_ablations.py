"""The switches of docs/method.md §8: each changes what it names and nothing else."""

import pytest

torch = pytest.importorskip("torch")

from nsfse.benchmark.methods import method_settings
from nsfse.config import ModelConfig, load_config
from nsfse.data.registry import open_source
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.models.boundary import AdaptiveBoundary
from nsfse.models.checkpoint import load_checkpoint
from nsfse.models.torch_scorer import TorchScorer
from nsfse.training.dataloader import ImageCache, make_batch
from nsfse.training.distributed import DistributedContext
from nsfse.training.loop import train
from nsfse.training.trainer import Trainer
from nsfse_runtime.errors import DataError
from nsfse_runtime.inference.tokenizer import Tokenizer
from tests.random_run import TEXTS, random_model

SMALL = {"width": 16, "dim": 16, "image_size": (32, 48)}


TOY = [
    "data.options={level='easy', items=64, triplets=32}",
    "data.validation_queries=4",
    "data.fitting_queries=20",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=16",
    "train.batch=16",
    "train.candidates=6",
    "train.epochs=1",
]


def scores(**model):
    """Return (query side, pair side, S) of one query against three images."""
    found = random_model(ModelConfig(**SMALL, **model), vocabulary=20)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 32, 48, 3), dtype=torch.uint8, generator=generator)
    ids = torch.tensor([[4, 7, 1]])
    with torch.inference_mode():
        vectors, regions = found.encode_images(pixels)
        query, side = found.compose(vectors[:1], regions[:1], *found.encode_text(ids, ids > 0), ids > 0)
        pair = found.head.pair_similarities(side, regions[None])
        return side, pair, found.head.total(query @ vectors.T, pair)


def test_a_fixed_boundary_stays_and_is_awake_from_the_start():
    boundary = AdaptiveBoundary(fixed=0.2)
    assert boundary.ready and boundary.t == 0.2
    ones = torch.ones(1000)
    boundary.update(torch.rand(1000) + 1, ones, torch.rand(1000) - 1, ones)
    assert boundary.t == 0.2 and boundary.summary()["mu_p"] > 1
    for t in (0, 0.4):
        config = load_config(overrides=[f"model.boundary={t}"]).model
        head = random_model(ModelConfig(**SMALL, boundary=config.boundary), 20).head
        assert head.cross_boundary.fixed == head.visual_boundary.fixed == t


def test_one_branch_alone_is_that_part_of_the_whole():
    _, both, whole = scores()
    _, cross, only_cross = scores(branches="cross")
    _, visual, only_visual = scores(branches="visual")
    assert not cross.visual.any() and not visual.cross.any()
    assert torch.equal(cross.cross, both.cross) and torch.equal(visual.visual, both.visual)
    weight = torch.nn.functional.softplus(torch.tensor([0.3, 0.9, 0.6]))
    torch.testing.assert_close(only_cross, whole - weight[2] * both.visual)
    torch.testing.assert_close(only_visual, whole - weight[1] * both.cross)


def test_the_sentence_stands_for_its_words():
    side, pair, _ = scores(words="sentence")
    assert side.words.shape == (1, 1, 16) and pair.x.shape == (1, 3, 1)
    assert side.word_weights.tolist() == [[1.0]]
    assert side.probes.shape[1] == scores()[0].probes.shape[1] - 2


def test_a_sentence_is_its_own_evidence():
    vocabulary = build_vocabulary(TEXTS)
    model = random_model(ModelConfig(**SMALL, words="sentence"), vocabulary.get_vocab_size())
    scorer = TorchScorer(model, Tokenizer.from_bytes(vocabulary.to_str().encode()))
    targets = scorer.encode_images(torch.zeros(2, 32, 48, 3, dtype=torch.uint8).numpy())
    queries = scorer.compose(targets, ["make it red", "red"])
    assert [query.tokens for query in queries] == [("make it red",), ("red",)]
    assert scorer.score_pairs(queries[0], targets).word_scores.shape == (2, 1)


def test_a_branch_that_is_off_has_no_boundary_loss():
    found = {}
    for branches in ("both", "cross", "visual"):
        config = load_config(overrides=[*TOY, f"model.branches={branches}", "model.boundary=0.2"])
        source = open_source("drawn", None, **config.data.options)
        triplets = source.triplets(0)
        words = build_vocabulary(triplet.text for triplet in triplets)
        tokenizer = Tokenizer.from_bytes(words.to_str().encode())
        model = random_model(config.model, len(tokenizer))
        batch = make_batch(triplets, ImageCache(source, config.model.image_size, 0), tokenizer, DistributedContext())
        trainer = Trainer(config, model, 1)
        parts = trainer.batch_losses(batch, torch.Generator().manual_seed(0))
        found[branches] = parts["boundary"].item()
        assert (parts["evidence"] > 0) == (branches != "visual")
    assert found["cross"] > 0 and found["visual"] > 0
    assert found["both"] == pytest.approx(found["cross"] + found["visual"], rel=1e-3)


@pytest.mark.parametrize("name", ["fixed-t=0.2", "sentence", "cross-only", "visual-only", "gamma=0+no-infusion"])
def test_every_ablation_trains_and_is_scored(name, tmp_path):
    config = load_config(overrides=[*TOY, *method_settings(f"nsfse:{name}")])
    assert not train(config, tmp_path / "run").interrupted
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.config == config
    if name.startswith("fixed"):
        assert checkpoint.model.head.cross_boundary.t == checkpoint.model.head.visual_boundary.t == 0.2
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"drawn":{"queries":' in log


@pytest.mark.parametrize("setting", ["model.boundary=sometimes", "model.words=some", "model.branches=none"])
def test_a_switch_has_its_own_positions_only(setting):
    with pytest.raises(DataError, match=setting.split(".")[1].split("=")[0]):
        load_config(overrides=[setting])
