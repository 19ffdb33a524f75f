"""R_subset of a run in torch and of a served bundle: the members of an image set by S itself, whatever is re-ranked."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from nsfse.config import ModelConfig
from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.evaluate import evaluate
from nsfse.open import open_scorer
from tests.random_run import TEXTS, write_random_run

BUNDLE = Path(__file__).parents[1] / "golden" / "bundle"
GALLERY = tuple(f"image {at}" for at in range(24))


@pytest.fixture(scope="module", params=["run", "bundle"])
def scorer(request, tmp_path_factory):
    if request.param == "bundle":
        return open_scorer(BUNDLE)
    config = ModelConfig(width=4, dim=16, image_size=(32, 48), max_words=12)
    return open_scorer(write_random_run(tmp_path_factory.mktemp("subset") / "run", config))


@pytest.mark.parametrize("more", [{}, {"negative_texts": ("stripes",)}], ids=["plain", "minus"])
def test_the_members_stand_as_in_a_ranking_of_everything_by_s(scorer, more):
    height, width = scorer.image_size

    def images(ids):
        seeds = [np.random.default_rng(GALLERY.index(item)) for item in ids]
        blocks = [rng.integers(0, 256, (4, 4, 3), np.uint8) for rng in seeds]
        return np.stack([np.kron(block, np.ones((height // 4, width // 4, 1), np.uint8)) for block in blocks])

    texts = TEXTS if hasattr(scorer, "model") else ("make it green", "in blue", "a red one", "make it yellow")
    queries = tuple(
        EvalQuery(GALLERY[at], (text,), (GALLERY[at + 4],), subset=tuple(GALLERY[at + 4 : at + 20 : 3]), **more)
        for at, text in enumerate(texts)
    )
    toy = EvaluationProtocol("toy", "1", GALLERY, queries, ks=(1, 24))
    few, all_, none = (evaluate(scorer, toy, images, rerank=count) for count in (1, 24, 0))
    members = [{GALLERY.index(item) for item in query.subset} for query in queries]
    for one, whole, stage_1, rows in zip(few.rankings, all_.rankings, none.rankings, members, strict=True):
        assert one.subset.tolist() == [row for row in whole.rows.tolist() if row in rows]
        assert stage_1.subset.tolist() == [row for row in stage_1.rows.tolist() if row in rows]
    # Scores of these members lie 7e-4 and more apart, so that no rounding of another machine changes their order.
    assert any((a.subset != b.subset).any() for a, b in zip(few.rankings, none.rankings, strict=True))
