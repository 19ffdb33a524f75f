"""The golden bundle without torch: what torch said when it was made, ONNX Runtime and numpy say here."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from nsfse.evaluation.reference_head import HeadConstants, score_pairs
from nsfse_runtime.images.decode import load_image
from nsfse_runtime.inference.bundle import Bundle
from nsfse_runtime.inference.onnx_scorer import OnnxScorer

HERE = Path(__file__).parent
IMAGES = sorted((HERE / "images").glob("*.png"))
CASES = json.loads((HERE / "torch_scores.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def scorer():
    return OnnxScorer(Bundle.open(HERE / "bundle"), threads=1)


@pytest.fixture(scope="module")
def gallery(scorer):
    return scorer.encode_images(np.stack([load_image(path, scorer.image_size) for path in IMAGES]))


def test_the_golden_files_are_few_and_small():
    files = [*(HERE / "bundle").iterdir(), *IMAGES]
    assert len(IMAGES) == 6 and sum(path.stat().st_size for path in files) <= 200_000


@pytest.mark.parametrize("head", ["onnx", "numpy"])
@pytest.mark.parametrize("case", CASES, ids=[case["text"] for case in CASES])
def test_scores_are_those_of_torch(scorer, gallery, case, head):
    reference = [path.name for path in IMAGES].index(case["reference"])
    (query,) = scorer.compose(gallery.take([reference]), [case["text"]])
    constants = HeadConstants.of(scorer.bundle.manifest)
    found = scorer.score_pairs(query, gallery) if head == "onnx" else score_pairs(query, gallery, constants)
    np.testing.assert_allclose(found.score, case["scores"], atol=1e-3)  # another Pillow may round a pixel otherwise
    np.testing.assert_allclose(found.word_scores, case["words"], atol=1e-3)
    assert query.tokens == tuple(case["text"].split())
