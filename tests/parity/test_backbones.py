"""CLIP the whole way: one step of training on drawn data, a verified bundle, a query without torch (EfficientNet-Lite0:
tests/e2e/test_train_to_query.py), and the image graph of a ResNet."""

from pathlib import Path

import numpy as np
import pytest

for name in ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime"):
    pytest.importorskip(name)

import torch

from nsfse.config import load_config
from nsfse.models.backbones import (
    registry,
    resnet,
)
from nsfse.models.checkpoint import load_checkpoint
from nsfse.models.nsfse import NSFSE
from nsfse.training.loop import train
from nsfse_export import export_bundle
from nsfse_export.export import to_onnx
from nsfse_export.graphs import build_graphs
from nsfse_runtime import Gallery, Retriever, open_model
from nsfse_runtime.inference.onnx_session import Session

IMAGES = Path(__file__).parents[1] / "golden" / "images"
SMALL = [
    'data.source="drawn"',
    'data.options.level="easy"',
    "data.options.gallery=96",
    "data.options.items=24",
    "data.options.triplets=16",
    "data.validation_queries=0",
    "data.fitting_queries=20",
    "model.dim=16",
    "train.batch=16",
    "train.candidates=4",
    "train.epochs=1",
]


@pytest.mark.slow
def test_clip_trains_exports_and_serves(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: nsfse[clip]")
    from tests.small_clip import write_small_clip

    weights = write_small_clip(tmp_path / "clip")
    own = ["model.image_size=[32,32]", f'model.weights="{weights}"', "model.max_words=14", "model.frozen_stages=1"]
    config = load_config(overrides=[*SMALL, 'model.backbone="clip"', *own])
    losses = []
    train(config, tmp_path / "run", progress=lambda entry: losses.append(entry.get("loss", 0.0)))
    assert losses and np.isfinite(losses).all()
    (tmp_path / "clip").rename(tmp_path / "gone")  # a run holds all it needs
    assert "clip" in load_checkpoint(tmp_path / "run").info["trained_on"]["backbone"]
    report = export_bundle(tmp_path / "run", tmp_path / "bundle")
    assert min(report.verified["least_cosine"].values()) > 0.9999
    model = open_model(tmp_path / "bundle", "cpu")
    with Gallery.open(tmp_path / "g.gallery", model, create=True) as gallery:
        gallery.sync(IMAGES)
        hits = Retriever(model, gallery).query("1-green-bag.png", "make it red", k=3).hits
    assert len(hits) == 3 and [word.word for word in hits[0].evidence] == ["make", "it", "red"]


def test_the_image_graph_of_a_resnet_is_its_encoder(monkeypatch):
    """Its other graphs are those of every backbone with a GRU."""
    monkeypatch.setitem(registry.BACKBONES, "resnet50", resnet.ResNetBackbone(8))
    monkeypatch.setattr(resnet, "BLOCKS", (1, 1, 1, 1))
    settings = ["model.image_size=[64,32]", "model.dim=16", 'model.backbone="resnet50"']
    model = NSFSE(load_config(overrides=settings).model, 30).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    session = Session(to_onnx("image", build_graphs(model)["image"]))
    with torch.no_grad():
        expected = model.encode_images(torch.from_numpy(pixels))
    for found, wanted in zip(session(pixels=pixels), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
