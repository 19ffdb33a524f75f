"""Bundles of other methods and ablations: what can be exported says what torch says, the rest is refused in a line."""

import re

import numpy as np
import pytest

for name in ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime"):
    pytest.importorskip(name)

import torch
from PIL import Image

from nsfse.config import ModelConfig
from nsfse.evaluation.reference_head import boundary_margin, score_pairs
from nsfse.models.checkpoint import load_checkpoint
from nsfse.models.torch_scorer import TorchScorer
from nsfse_export import export_bundle
from nsfse_export.export import head_constants, to_onnx
from nsfse_export.graphs import build_graphs
from nsfse_export.verify import STEP
from nsfse_runtime import Bundle, Gallery, Retriever, open_model
from nsfse_runtime.errors import UsageError
from nsfse_runtime.inference.onnx_session import Session
from nsfse_runtime.types import RankingMode
from nsfse_runtime.visualize.contact_sheet import contact_sheet
from nsfse_runtime.visualize.html_page import html_page
from nsfse_runtime.visualize.rows import sheet_row
from tests.random_run import random_model, write_random_run

SMALL = {"width": 4, "dim": 16, "image_size": (32, 48), "max_words": 12}


def export(folder, **model):
    run = write_random_run(folder / "run", ModelConfig(**SMALL, **model))
    return run, folder / "bundle", export_bundle(run, folder / "bundle")


@pytest.fixture(scope="module")
def tirg(tmp_path_factory):
    return export(tmp_path_factory.mktemp("tirg"), method="tirg")


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


def test_a_bundle_of_one_stage_has_no_pair_graph_and_says_so(tirg):
    _, folder, report = tirg
    manifest = Bundle.open(folder).manifest
    assert (manifest.method, manifest.mode, manifest.regions) == ("tirg", RankingMode.ONE_STAGE, 0)
    assert manifest.boundary == {} and manifest.head == {}
    assert sorted(report.files) == ["image.onnx", "query.onnx", "text.onnx", "tokenizer.json"]
    assert not (folder / "pair.onnx").exists()
    assert "numpy" not in report.verified["greatest_difference"]
    card = (folder / "README.md").read_text("utf-8")
    assert "without evidence" in card and "Boundaries" not in card


def test_the_bundle_says_what_torch_says(tirg):
    run, folder, _ = tirg
    checkpoint = load_checkpoint(run)
    ours, theirs = TorchScorer(checkpoint.model, checkpoint.tokenizer), open_model(folder, "cpu")
    targets, texts = [scorer.encode_images(images(7)) for scorer in (ours, theirs)], ["make it red", "is blue"]
    np.testing.assert_allclose(targets[1].vectors, targets[0].vectors, atol=2e-6)
    assert targets[0].regions.shape == targets[1].regions.shape == (7, 0, 16)
    for mine, yours in zip(
        ours.compose(targets[0].take([0, 1]), texts), theirs.compose(targets[1].take([0, 1]), texts), strict=True
    ):
        np.testing.assert_allclose(yours.vector, mine.vector, atol=2e-6)
        assert mine.tokens == yours.tokens == () and yours.words.shape == mine.words.shape == (0, 16)
        scores = [
            scorer.score_pairs(query, target).score
            for scorer, query, target in ((ours, mine, targets[0]), (theirs, yours, targets[1]))
        ]
        np.testing.assert_allclose(*scores, atol=2e-6)


def test_a_gallery_of_one_stage_answers_without_evidence(tirg, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, pixels in enumerate(images(5)):
        Image.fromarray(pixels).save(photos / f"{number}.png")
    model = open_model(tirg[1], "cpu")
    with Gallery.open(tmp_path / "my.gallery", model, create=True) as gallery:
        gallery.sync(photos)
        retriever = Retriever(model, gallery)
        result = retriever.query("3.png", "make it red", k=3)
        targets = gallery.snapshot.targets([gallery.snapshot.row(f"{number}.png") for number in range(5)])
        (query,) = model.compose(targets.take([3]), ["make it red"])
        order = [n for n in np.argsort(-(targets.vectors @ query.vector), kind="stable") if n != 3][:3]
        assert [hit.id for hit in result.hits] == [f"{n}.png" for n in order]
        assert all(hit.is_match is None and hit.evidence == () for hit in result.hits)
        assert retriever.query("3.png", "make it red", k=3, rerank=0).hits == result.hits
        row = sheet_row(photos / "3.png", "make it red", result.hits)
    contact_sheet([row], tmp_path / "sheet.png")
    html_page([row], tmp_path / "sheet.html")
    assert "✗" not in (tmp_path / "sheet.html").read_text("utf-8").split("</main>")[0]


ONE_BRANCH = {"branches": "cross", "infusion": False, "gamma": 0.0, "boundary": 0.2}
BLOCKS = {"attributes": {"colour": 3, "size": 2}}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("query", {"method": "image-only"}),
        ("query", {"method": "combiner"}),
        ("pair", ONE_BRANCH),
        ("image", BLOCKS),
        ("query", BLOCKS),
    ],
)
def test_the_graph_of_other_methods_and_ablations_is_that_of_torch(name, model):
    """Their other graphs are those of every method."""
    graph = build_graphs(random_model(ModelConfig(**SMALL, **model), 30))[name]
    given = {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in graph.example.items()}
    found = Session(to_onnx(name, graph))(**{name: x.numpy() for name, x in given.items()})
    with torch.no_grad():
        wanted = graph.module(**given)
    for mine, yours in zip(found, [wanted] if isinstance(wanted, torch.Tensor) else wanted, strict=True):
        np.testing.assert_allclose(mine, yours.numpy(), atol=1e-5)


def test_what_a_method_learned_from_facts_by_is_not_exported():
    taught = random_model(ModelConfig(**SMALL, method="tirg", attribute_supervision=True), 30)
    assert sum(name.startswith("facts.") for name in taught.state_dict()) == 6
    file = to_onnx("query", build_graphs(taught)["query"])
    names = re.findall(rb"model\.(\w+)\.", file)
    assert names and set(names) == {b"method"}


@pytest.mark.parametrize(
    "model", [{"branches": "visual"}, {"gamma": 0.0}, {"boundary": 0.4}, {"infusion": False}, ONE_BRANCH]
)
def test_the_numpy_head_of_an_ablation_is_that_of_torch(tmp_path, model):
    checkpoint = load_checkpoint(write_random_run(tmp_path / "run", ModelConfig(**SMALL, **model)))
    scorer, head = TorchScorer(checkpoint.model, checkpoint.tokenizer), head_constants(checkpoint.model)
    targets = scorer.encode_images(images(9))
    (query,) = scorer.compose(targets.take([0]), ["make it red and longer"])
    clear = boundary_margin(query, targets, head) > STEP
    assert clear.any()
    found, wanted = score_pairs(query, targets, head).score[clear], scorer.score_pairs(query, targets).score[clear]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_bundle_of_attribute_blocks_is_verified_as_any_other(tmp_path):
    _, folder, report = export(tmp_path, **BLOCKS)
    manifest = Bundle.open(folder).manifest
    assert manifest.dim == 16 and set(report.verified["greatest_difference"]) >= {"numpy"}
    assert [(block.name, block.values) for block in manifest.blocks] == [("colour", 3), ("size", 2)]
    assert all(0 < block.share < 1 and block.weight > 0 for block in manifest.blocks)


@pytest.mark.parametrize(("model", "words"), [({"method": "artemis"}, "artemis"), ({"words": "sentence"}, "sentence")])
def test_what_no_bundle_can_hold_is_refused_in_one_line(tmp_path, model, words):
    with pytest.raises(UsageError, match=words) as refusal:
        export(tmp_path, **model)
    assert "\n" not in str(refusal.value) and "nsfse evaluate" in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_text_encoder_with_a_teachers_words_is_exported_without_the_teacher(tmp_path):
    run, folder, report = export(tmp_path, text_teacher="not-here", word_dim=6, sentence="signed")
    assert report.verified["greatest_difference"]
    checkpoint, text = load_checkpoint(run), ["make it red with no stripes"]
    assert checkpoint.model.text_encoder.embedding.weight.shape[1] == 6
    expected = TorchScorer(checkpoint.model, checkpoint.tokenizer).sentence(text)
    np.testing.assert_allclose(open_model(folder, "cpu").sentence(text), expected, atol=1e-5)
