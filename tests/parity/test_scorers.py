"""One test over torch, ONNX Runtime and numpy: the same pictures and texts, the same numbers."""

import numpy as np
import pytest

pytest.importorskip("torch")

from nsfse.checkpoint import load_checkpoint
from nsfse.scorer import TorchScorer
from nsfse_export.verify import STEP, draw_sample
from nsfse_runtime.bundle import Bundle
from nsfse_runtime.features import TargetFeatures
from nsfse_runtime.rerank import HeadConstants, boundary_margin, score_pairs
from nsfse_runtime.search import rank
from nsfse_runtime.session import OnnxScorer

WORDS = 12


class NumpyHead(OnnxScorer):
    """The bundle with numpy in place of its pair graph."""

    def score_pairs(self, query, targets):
        return score_pairs(query, targets, HeadConstants.of(self.bundle.manifest))


@pytest.fixture(scope="module")
def torch_scorer(exported):
    checkpoint = load_checkpoint(exported.run)
    return TorchScorer(checkpoint.model, checkpoint.tokenizer)


@pytest.fixture(scope="module")
def sample(exported):
    bundle = Bundle.open(exported.bundle)
    return draw_sample(bundle.manifest.image_size, bundle.read("tokenizer.json"), WORDS, gallery=40)


def texts_of(sample, count):
    """Return `count` texts, one of one word and one of all words among them where there is room."""
    by_length = sorted(sample.texts, key=lambda text: len(text.split()))
    return [by_length[at] for at in np.linspace(0, len(by_length) - 1, count).astype(int)]


@pytest.mark.parametrize("count", [1, 2, 7, 16])
@pytest.mark.parametrize("make", [OnnxScorer, NumpyHead], ids=["onnx", "numpy"])
def test_every_output_is_that_of_torch(exported, torch_scorer, sample, make, count):
    other, texts, pixels = make(Bundle.open(exported.bundle)), texts_of(sample, count), sample.pictures[:count]
    encoded = []
    for scorer in (torch_scorer, other):
        targets = scorer.encode_images(pixels)
        encoded.append((targets, scorer.sentence(texts), scorer.compose(targets, texts)))
    (ours, sentences, queries), (theirs, their_sentences, their_queries) = encoded
    near = {"atol": 2e-6, "rtol": 1e-5}
    np.testing.assert_allclose(theirs.vectors, ours.vectors, **near)
    np.testing.assert_allclose(theirs.regions, ours.regions, **near)
    np.testing.assert_allclose(their_sentences, sentences, **near)
    head = HeadConstants.of(other.bundle.manifest)
    for query, same in zip(queries, their_queries, strict=True):
        assert same.tokens == query.tokens and len(same.words) == len(same.tokens)
        for name in ("vector", "words", "probes", "word_weights", "probe_weights"):
            np.testing.assert_allclose(getattr(same, name), getattr(query, name), err_msg=name, **near)
        wanted, found = torch_scorer.score_pairs(query, ours), other.score_pairs(same, theirs)
        clear = boundary_margin(query, ours, head) > STEP
        np.testing.assert_allclose(found.score[clear], wanted.score[clear], atol=1e-5)
        np.testing.assert_allclose(found.word_scores, wanted.word_scores, **near)
        assert found.boundary == wanted.boundary


@pytest.mark.parametrize("length", range(1, WORDS + 1))
def test_a_text_of_any_length_alone_is_as_in_torch(exported, torch_scorer, sample, length):
    """Batch 1: exporters like to take a size of 1 for a constant."""
    onnx, text = OnnxScorer(Bundle.open(exported.bundle)), " ".join(["red"] * length)
    references = torch_scorer.encode_images(sample.pictures[:1])
    (ours,), (theirs,) = torch_scorer.compose(references, [text]), onnx.compose(references, [text])
    assert len(theirs.words) == length
    np.testing.assert_allclose(theirs.vector, ours.vector, atol=2e-6)
    np.testing.assert_allclose(theirs.probes, ours.probes, atol=2e-6)


def test_a_query_is_the_same_alone_and_in_a_padded_batch(exported, sample):
    onnx, texts = OnnxScorer(Bundle.open(exported.bundle)), texts_of(sample, 7)
    references = onnx.encode_images(sample.pictures[:7])
    for at, query in enumerate(onnx.compose(references, texts)):
        alone = onnx.compose(references.take([at]), [texts[at]])[0]
        for name in ("vector", "words", "probes", "word_weights", "probe_weights"):
            np.testing.assert_allclose(getattr(alone, name), getattr(query, name), atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["torch", "onnx", "numpy"])
def test_two_stages_over_everything_are_the_exhaustive_ranking(exported, torch_scorer, sample, kind):
    bundle = Bundle.open(exported.bundle)
    scorer = {"torch": torch_scorer, "onnx": OnnxScorer(bundle), "numpy": NumpyHead(bundle)}[kind]
    gallery = scorer.encode_images(sample.pictures)
    for query in scorer.compose(gallery.take(range(4)), texts_of(sample, 4)):
        everything = scorer.score_pairs(query, gallery)
        found = rank(scorer, query, gallery.vectors, gallery.take, k=10, rerank=len(gallery))
        np.testing.assert_array_equal(found.rows, np.argsort(-everything.score, kind="stable")[:10])


def test_the_gram_form_is_exact_for_the_models_own_features(exported, sample):
    """In float64 the pair score is linear algebra on the features alone: float32 is within rounding of it."""
    bundle = Bundle.open(exported.bundle)
    onnx, head = OnnxScorer(bundle), HeadConstants.of(bundle.manifest)
    gallery = onnx.encode_images(sample.pictures)
    query = onnx.compose(gallery.take([3]), ["make it red"])[0]
    wide = TargetFeatures(gallery.vectors.astype(np.float64), gallery.regions.astype(np.float64))
    clear = boundary_margin(query, wide, head) > STEP
    np.testing.assert_allclose(
        onnx.score_pairs(query, gallery).score[clear], score_pairs(query, wide, head).score[clear], atol=3e-6
    )
