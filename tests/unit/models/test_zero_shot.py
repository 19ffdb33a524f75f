"""A bundle without training: what it answers, what it needs, what it refuses."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("transformers", "onnx", "onnxscript", "onnxslim", "onnxruntime"):
    pytest.importorskip(needed)

from nsfse.models.baselines import slerp, vector_sum
from nsfse.models.zero_shot import untrained_run
from nsfse_export import export_bundle
from nsfse_runtime import Bundle, Gallery, Retriever, open_model
from nsfse_runtime.errors import NotFoundError, UsageError
from nsfse_runtime.inference.onnx_scorer import OnnxScorer

G, M = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_slerp_walks_along_the_arc_and_the_sum_along_the_chord():
    for share in (0.0, 0.25, 0.5, 1.0):
        angle = share * math.pi / 2
        torch.testing.assert_close(slerp(G, M, share), torch.tensor([[math.cos(angle), math.sin(angle)]]))
        chord = torch.nn.functional.normalize(torch.tensor([[1 - share, share]]))
        torch.testing.assert_close(vector_sum(G, M, share), chord)
    torch.testing.assert_close(slerp(G, G, 0.3), G)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from tests.small_clip import write_small_clip

    return write_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def bundle(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "clip.bundle"
    with untrained_run(str(clip), text_share=0.3) as run:
        export_bundle(run, out)
    return out


def test_the_bundle_says_what_its_clip_says(clip, bundle):
    """Against transformers: its own pipeline from pixels and token ids to features."""
    from tokenizers import Tokenizer
    from transformers import CLIPModel

    from nsfse.models.backbones.dual_encoder import MEAN, STD

    model = CLIPModel.from_pretrained(clip).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    planes = (torch.from_numpy(pixels).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    ids = torch.tensor([Tokenizer.from_file(str(clip / "tokenizer.json")).encode("make it round").ids])
    ids = ids[:, : int((ids[0] == model.config.text_config.eos_token_id).nonzero()[0]) + 1]
    with torch.inference_mode():
        seen = model.visual_projection(model.vision_model(planes.permute(0, 3, 1, 2)).pooler_output)
        read = model.text_projection(model.text_model(ids).pooler_output)
    seen, read = (torch.nn.functional.normalize(x, dim=-1) for x in (seen, read))
    scorer = OnnxScorer(Bundle.open(bundle))
    images = scorer.encode_images(pixels)
    np.testing.assert_allclose(images.vectors, seen.numpy(), atol=1e-5)
    query = scorer.compose(images.take([1]), ["make it round"])[0]
    np.testing.assert_allclose(query.vector, slerp(seen[1:2], read, 0.3)[0].numpy(), atol=1e-5)


def test_a_folder_can_be_searched_at_once(bundle, tmp_path):
    from PIL import Image

    for at in range(6):
        Image.new("RGB", (40, 40), (40 * at, 20, 200 - 30 * at)).save(tmp_path / f"p{at}.png")
    model = open_model(bundle, "cpu")
    with Gallery.open(tmp_path / "g.gallery", model, create=True) as gallery:
        gallery.sync(tmp_path)
        found = Retriever(model, gallery).query(tmp_path / "p2.png", "make it red", k=3)
    assert len(found.hits) == 3 and found.hits[0].score >= found.hits[2].score


def test_its_card_says_that_nothing_was_trained(bundle):
    card = (bundle / "README.md").read_text("utf-8")
    assert "training: none; slerp of image and text, the text's share 0.3" in card
    assert "No validation was run" in card


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        ({"backbone": "tiny"}, UsageError, "no common space"),
        ({"method": "tirg"}, UsageError, "has to learn"),
        ({"method": "slurp"}, UsageError, "is no method"),
        ({"weights": "nowhere"}, NotFoundError, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(clip, choice, error, words):
    with pytest.raises(error, match=words), untrained_run(**({"weights": str(clip)} | choice)):
        pass
