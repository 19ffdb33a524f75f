from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from nsfse.config import load_config
from nsfse.models.baselines import build_model
from nsfse.models.nsfse import NSFSE
from nsfse.training import losses
from nsfse.training.dataloader import Batch
from nsfse.training.objectives import learns_attributes
from nsfse.training.trainer import Trainer

OVERRIDES = ["model.image_size=[32,32]", "model.width=16", "model.dim=16", "train.batch=6"]


def batch_of(count: int, titles: Sequence[tuple[int, int]] = ()) -> Batch:
    """Queries in a ring: image i is the reference of query i, image i + 1 its target; the first have `titles`."""
    generator = torch.Generator().manual_seed(1)
    images = torch.arange(count)
    target = (images + 1) % count
    return Batch(
        torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8),
        images,
        images,
        target,
        torch.randint(2, 9, (count, 3), generator=generator),
        torch.ones(count, 3, dtype=torch.bool),
        torch.nn.functional.one_hot(target, count).bool(),
        torch.zeros(count, 3, dtype=torch.long).index_fill(1, torch.tensor([2]), 1),
        torch.nn.functional.one_hot(target, count) - torch.nn.functional.one_hot(images, count),
        images[: len(titles)],
        torch.tensor(titles, dtype=torch.long).view(len(titles), 2),
        torch.ones(len(titles), 2, dtype=torch.bool),
    )


def test_a_dropped_word_is_not_taught_to_ask():
    found = {}
    for share in (0.0, 1.0):
        config = load_config(overrides=[*OVERRIDES, f"train.word_dropout={share}"])
        trainer = Trainer(config, NSFSE(config.model, 9), 10)
        found[share] = trainer.batch_losses(batch_of(6), torch.Generator().manual_seed(0))
    assert found[0.0]["evidence"] > 0 and found[0.0]["naming"] > 0
    assert found[1.0]["evidence"] == found[1.0]["naming"] == 0


@pytest.mark.parametrize("method", ["nsfse", "sum"])
def test_titles_are_told_from_images_of_other_titles(method):
    exact = "train.bf16_autocast=off"  # the loss is held to 1e-4 of one that is computed here, in float32
    given = [f"model.method={method}", "train.word_dropout=0", "train.augment_strength=0", exact]
    config = load_config(overrides=[*OVERRIDES, *given])
    found = {}
    for titles in ((), ((5, 6), (7, 8)), ((5, 6), (5, 6))):
        torch.manual_seed(0)
        model = build_model(config.model, 9).eval()
        trainer = Trainer(config, model, 10)
        found[titles] = trainer.batch_losses(batch_of(6, titles), torch.Generator().manual_seed(0))
    without, apart, alike = found.values()
    assert "titles" not in without and apart["titles"] > 0
    assert alike["titles"] == 0  # no other image to tell it from
    assert (apart["loss"] - alike["loss"]).item() == pytest.approx(0.5 * apart["titles"].item(), rel=1e-4)
    assert alike["loss"] == without["loss"]
    ids = torch.tensor([[5, 6], [7, 8]])
    called, images = model.encode_text(ids, ids > 0)[1], model.encode_images(batch_of(6).pixels)[0]
    logits = model.stage1_scale.exp() * called @ images[:2].T
    each = [torch.nn.functional.cross_entropy(x, torch.arange(2)).item() for x in (logits, logits.T)]
    assert apart["titles"].item() == pytest.approx(sum(each) / 2, rel=1e-4)


def test_no_denominator_holds_the_reference_or_another_right_answer(monkeypatch):
    config = load_config(overrides=OVERRIDES)
    torch.manual_seed(0)
    trainer = Trainer(config, NSFSE(config.model, 9), 10)
    batch = batch_of(6)
    batch.right[0, 3] = True
    seen = []
    plain = losses.masked_cross_entropy
    monkeypatch.setattr(
        losses,
        "masked_cross_entropy",
        lambda logits, blocked, *rest: seen.append(blocked) or plain(logits, blocked, *rest),
    )
    listed = []
    entropy = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        torch.nn.functional,
        "cross_entropy",
        lambda scores, *rest: listed.append(scores.shape[1]) or entropy(scores, *rest),
    )
    trainer.batch_losses(batch, torch.Generator().manual_seed(0))
    expected = torch.eye(6, dtype=torch.bool)
    expected[0, 3] = True
    assert len(seen) == 3 and all(torch.equal(blocked, expected) for blocked in seen)
    # Stage 1, sentence and views over the masked batch; words with the reference, regions and all without.
    assert listed == [6, 6, 6, 6, 5, 5]


@pytest.mark.parametrize("reach", [0.0, 0.5, 1.0])
def test_a_share_of_what_the_head_learns_reaches_what_stage_1_learns_from(reach):
    config = load_config(overrides=[*OVERRIDES, f"model.head_grad_scale={reach}"])
    torch.manual_seed(0)
    trainer = Trainer(config, NSFSE(config.model, 9), 10)
    parts = trainer.batch_losses(batch_of(6), torch.Generator().manual_seed(0))
    (parts["head"] + parts["views"] + parts["naming"] + parts["evidence"]).backward()
    moved = {name: value.grad.abs().sum() for name, value in trainer.model.named_parameters() if value.grad is not None}
    own = [moved[f"{name}.weight"] for name in ("image_encoder.region", "text_encoder.word", "views")]
    shared = [moved.get(f"{name}.weight", 0) for name in ("image_encoder.vector", "text_encoder.embedding")]
    shared.append(moved.get("image_encoder.stem.0.weight", 0))
    assert all(value > 0 for value in own)
    assert all(bool(value > 0) is (reach > 0) for value in shared)


def attributed(*settings: str) -> tuple[Trainer, Batch]:
    """Return a trainer of two attributes, of three and of two values, and a batch of images that have them."""
    config = load_config(overrides=[*OVERRIDES, "train.attribute_weight=2", *settings])
    torch.manual_seed(0)
    classes = [3, 2] if learns_attributes(config) else []
    trainer = Trainer(config, build_model(config.model, 9), 10, classes=classes)
    values = torch.arange(6)
    return trainer, replace(batch_of(6), attributes=torch.stack([values % 3, values % 2], 1))


@pytest.mark.parametrize("method", ["nsfse", "tirg", "artemis"])
def test_attributes_teach_images_and_queries(method):
    told = () if method == "nsfse" else ("model.attribute_supervision=true",)
    trainer, batch = attributed(f"model.method={method}", *told)
    parts = trainer.batch_losses(batch, torch.Generator().manual_seed(0))
    without = sum(weight * parts[name] for name, weight in trainer.loss_weights.items() if name in parts)
    torch.testing.assert_close(parts["loss"], without)
    assert parts["attributes"] > 0 and trainer.loss_weights["attributes"] == 2
    parts["attributes"].backward()
    moved = {name for name, value in trainer.model.named_parameters() if value.grad is not None and value.grad.any()}
    composer = {"nsfse": "composer.mlp", "tirg": "method.residual", "artemis": "method.implicit"}[method]
    for part in ("image_encoder.vector", "text_encoder.sentence", composer):
        assert any(name.startswith(part) for name in moved), part
    assert all(value.grad.any() for value in trainer.attributes.parameters())


def test_a_baseline_learns_no_attributes_unless_told():
    trainer, batch = attributed("model.method=tirg")
    assert "attributes" not in trainer.batch_losses(batch, torch.Generator().manual_seed(0))
    assert not any(name.startswith("attributes.") for name in trainer.state())


def test_the_classifiers_of_attributes_learn_and_are_continued():
    first, batch = attributed()
    before = {name: value.clone() for name, value in first.attributes.state_dict().items()}
    first.train_step(batch)
    assert all(not torch.equal(value, before[name]) for name, value in first.attributes.state_dict().items())
    second, _ = attributed()
    second.load_state({name: value.clone() for name, value in first.state().items()})
    first.train_step(batch)
    second.train_step(batch)
    for name, value in first.state().items():
        assert torch.equal(value, second.state()[name]), name
    assert not any("attributes" in name for name in first.model.state_dict())  # what serves has none
