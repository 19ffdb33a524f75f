"""Evidence without labels: the mixture, negations and words of a text, and a bundle that says what matches."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("transformers", "onnx", "onnxscript", "onnxslim", "onnxruntime"):
    pytest.importorskip(needed)

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from nsfse.evaluation.metrics import auc
from nsfse.models.training_free import TokenMarks
from nsfse.models.zero_shot import untrained_run
from nsfse.training.add_evidence import add_evidence, evidence_line
from nsfse.training.fit_without_labels import fit_mixture, fit_words
from nsfse_export import export_bundle
from nsfse_runtime import Gallery, Retriever, open_model
from nsfse_runtime.errors import DataError, NotFoundError


def test_a_mixture_finds_the_two_gaussians_that_were_drawn():
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(0.1, 0.05, 18_000), random.normal(0.5, 0.08, 2_000)])
    mixture = fit_mixture(x)
    np.testing.assert_allclose(mixture.mismatched, (0.1, 0.05), atol=0.004)
    np.testing.assert_allclose(mixture.matched, (0.5, 0.08), atol=0.01)
    assert mixture.share == pytest.approx(0.1, abs=0.01)
    likely = mixture.posterior(np.linspace(-1, 2, 301))
    assert likely[0] == 0 and likely[-1] == 1 and (np.diff(likely) >= 0).all()


def test_words_of_different_offset_come_to_one_scale():
    """Two words, each true of every fourth image; raw products of one are all greater than those of the other."""
    random = np.random.default_rng(2)
    has = random.random((2, 400)) < 0.25
    rows = torch.from_numpy(random.normal(0, 0.02, (400, 6))).float()
    rows[:, 0] += 3 + torch.from_numpy(has[0])
    rows[:, 1] += 7 + torch.from_numpy(has[1])
    fit = fit_words(torch.eye(6), rows[:, None], alpha=1.0)
    raw = torch.nn.functional.normalize(rows, dim=-1).numpy().T[:2]
    assert auc(raw[~has], raw[has]) < 0.8 and auc(fit.x[:2][~has], fit.x[:2][has]) > 0.95


@pytest.mark.parametrize(
    ("text", "excluded"),
    [
        ("make it red", set()),
        ("no stripes", {"stripes"}),
        ("without a long collar but red", {"long", "collar"}),
        ("red instead of blue", {"blue"}),
        ("not blue , red", {"blue"}),
    ],
)
def test_a_negation_excludes_the_words_after_it_in_its_clause(text, excluded):
    words = text.split()
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys([*words, "of", "x"]))}, "x"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = TokenMarks(tokenizer.get_vocab_size())
    marks.read(tokenizer)
    ids = torch.tensor([tokenizer.encode(text).ids])
    _, negated, seen = marks(ids, torch.ones_like(ids, dtype=torch.bool))
    assert {word for word, *flags in zip(words, negated[0], seen[0], strict=True) if all(flags)} == excluded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for at in range(60):
        low, high = random.integers(0, 256, (2, 3))
        pixels = np.where(np.arange(40)[:, None, None] % 8 < 4, low, high).astype(np.uint8)
        Image.fromarray(np.broadcast_to(pixels, (40, 48, 3)).copy()).save(out / f"p{at:02}.png")
    (out / "broken.png").write_bytes(b"no image")
    return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from tests.small_clip import write_small_clip

    return write_small_clip(tmp_path_factory.mktemp("clip"))


def test_a_bundle_of_an_untrained_clip_says_what_matches(clip, folder, tmp_path):
    with untrained_run(str(clip)) as run:
        line = evidence_line(*add_evidence(run, folder, prompt="round"))
        export_bundle(run, tmp_path / "bundle")  # compares torch, ONNX Runtime and numpy
    assert "60 images (1 skipped: broken.png" in line
    model = open_model(tmp_path / "bundle", "cpu")
    with Gallery.open(tmp_path / "g.gallery", model, create=True) as gallery:
        gallery.sync(folder)
        found = Retriever(model, gallery).query("p02.png", "red without green", k=5)
    weights = {word.word: round(word.weight, 2) for word in found.hits[0].evidence}
    assert weights == {"red": 0.5, "without": 0.0, "green": -0.5}
    assert all(0 <= hit.confidence <= 1 and hit.is_match is not None for hit in found.hits)
    assert found.threshold is not None


def test_what_evidence_cannot_be_fitted_to_is_refused(clip, folder, tmp_path):
    with untrained_run(str(clip)) as run:
        with pytest.raises(NotFoundError, match="no folder"):
            add_evidence(run, tmp_path / "none")
        Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
        with pytest.raises(DataError, match="1 images are too few"):
            add_evidence(run, tmp_path)
