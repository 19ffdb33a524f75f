"""FashionIQ and CIRR at full size: one image drawn per real id, an oracle that knows a known share of the answers."""

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsfse.data import FolderOptions
from nsfse.data.datasets.cirr import CIRR
from nsfse.data.datasets.fashioniq import CATEGORIES, FashionIQ
from nsfse.evaluation.cirr_submission import submission_faults
from nsfse.evaluation.datasets import evaluate_dataset
from nsfse_runtime.types import PairScores, QueryFeatures, TargetFeatures
from tests.galleries import PLAIN_INFO

ANNOTATIONS = Path(os.environ.get("NSFSE_ANNOTATIONS", Path(__file__).parents[3] / "shared/data/annotations"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="the official annotations are not here"),
]


def digest(text):
    return hashlib.sha256(text.encode()).digest()


def draw_placeholder_images(ids, folder):
    """Draw one 6x4 image per id, its two halves coloured by the id's digest."""
    folder.mkdir()
    for item in ids:
        code = digest(item)
        image = Image.new("RGB", (6, 4), tuple(code[:3]))
        image.paste(tuple(code[3:6]), (3, 0, 6, 4))
        image.save(folder / f"{item}.png", compress_level=1)


class Oracle:
    """Knows the target of about half of the queries, by the digest of their text, and guesses the others."""

    fingerprint = "oracle"
    image_size = (4, 6)
    info = PLAIN_INFO
    tokenizer = None

    def __init__(self, protocols):
        queries = [query for protocol in protocols for query in protocol.queries]
        self.answers = {(self.code(q.reference), q.texts[0]): self.code(q.targets[0]) for q in queries if q.targets}
        self.code_of = {}

    @staticmethod
    def code(item):
        return digest(item)[:6]

    @staticmethod
    def knows(text):
        return digest(text)[0] < 128

    @staticmethod
    @functools.cache
    def vector(code):
        rng = np.random.default_rng(int.from_bytes(code, "big"))
        vector = rng.standard_normal(48, np.float32)
        return vector / np.linalg.norm(vector)

    def encode_images(self, pixels):
        codes = [pixels[i, 0, 0].tobytes() + pixels[i, 0, -1].tobytes() for i in range(len(pixels))]
        vectors = np.stack([self.vector(code) for code in codes])
        self.code_of.update({vector.tobytes(): code for vector, code in zip(vectors, codes, strict=True)})
        return TargetFeatures(vectors, vectors[:, None])

    def sentence(self, texts):
        return np.stack([self.vector(digest(text)[:6]) for text in texts])

    def compose(self, references, texts):
        return [self.query(self.code_of[v.tobytes()], text) for v, text in zip(references.vectors, texts, strict=True)]

    def query(self, reference, text):
        known = self.answers.get((reference, text)) if self.knows(text) else None
        ones = np.ones((1, 1), np.float32)
        return QueryFeatures(self.vector(known or digest(text)[:6]), ones, ones, ones[0], ones[0], (text,))

    def score_pairs(self, query, targets):
        score = targets.regions[:, 0] @ query.vector
        return PairScores(score, score[:, None], 0.0)


def share_known(protocol):
    return 100 * sum(Oracle.knows(query.texts[0]) for query in protocol.queries) / len(protocol.queries)


def test_fashioniq(tmp_path):
    folder = ANNOTATIONS / "fashioniq"
    bare = FashionIQ(folder).protocols("val")
    draw_placeholder_images({item for p in bare for item in p.missing_ids}, tmp_path / "images")
    oracle = Oracle(bare)
    found = evaluate_dataset(oracle, "fashioniq", "val", folder, images=tmp_path / "images", rerank=10)
    scores = found.to_json()["protocols"]
    sizes = {"original": (3817, 6346, 5373), "VAL": (2628, 3089, 2902)}
    queries = dict(zip(CATEGORIES, (2017, 2038, 1961), strict=True))
    for gallery, counts in sizes.items():
        for category, size in zip(CATEGORIES, counts, strict=True):
            for keep in ("", "-keepref"):
                score = scores[f"fashioniq-{gallery}{keep}-{category}"]
                assert (score["protocol"]["gallery_size"], score["queries"]) == (size, queries[category])
                assert score["incomplete"] is None
    for result in found.results:
        assert result.scores["R@1"] == pytest.approx(share_known(result.protocol), abs=0.5)
    assert {g: s["categories"] for g, s in found.summary.items()} == dict.fromkeys(
        ("fashioniq-original", "fashioniq-original-keepref", "fashioniq-VAL", "fashioniq-VAL-keepref"), 3
    )


def test_cirr_val_and_test_server_files(tmp_path):
    folder, source = ANNOTATIONS / "cirr", CIRR(ANNOTATIONS / "cirr")
    bare = {split: source.protocols(split)[0] for split in ("val", "test1")}
    draw_placeholder_images({item for p in bare.values() for item in p.missing_ids}, tmp_path / "dev")
    found = evaluate_dataset(Oracle([bare["val"]]), "cirr", "val", folder, images=tmp_path / "dev", rerank=10)
    score = found.to_json()["protocols"]["cirr-val"]
    assert (score["queries"], score["protocol"]["gallery_size"], score["incomplete"]) == (4181, 2297, None)
    assert score["R@1"] == pytest.approx(share_known(bare["val"]), abs=0.5)
    differ = [query for query in bare["val"].queries if dict(query.soft).get(query.targets[0]) != 1.0]
    assert len(differ) == 42  # hard and soft recall differ on these alone
    lost = 100 * sum(Oracle.knows(query.texts[0]) for query in differ) / 4181
    assert score["soft_R@1"] == pytest.approx(score["R@1"] - lost, abs=0.5)
    assert score["soft_R@1"] != score["R@1"]
    # CoVR's Recall_subset, from the official soft targets and the members in our order.
    (val,) = found.results
    for k in (1, 2, 3):
        firsts = [{val.protocol.gallery[row] for row in ranked.subset[:k]} for ranked in val.rankings]
        best = [
            max([0.0, *(weight for item, weight in ranked.query.soft if item in first)])
            for ranked, first in zip(val.rankings, firsts, strict=True)
        ]
        assert score[f"soft_R_subset@{k}"] == pytest.approx(100 * sum(best) / 4181, abs=1e-4)
    assert score["soft_R_subset@1"] < score["R_subset@1"] and score["odd_queries"] == []
    assert score["headline"] == pytest.approx((score["R@5"] + score["R_subset@1"]) / 2, abs=1e-3)
    # Known targets come first; of five guessed members each is first as often as any other.
    assert score["R_subset@1"] == pytest.approx(score["R@1"] + (100 - score["R@1"]) / 5, abs=2)

    oracle = Oracle([bare["test1"]])
    sent = evaluate_dataset(
        oracle, "cirr", "test1", folder, images=tmp_path / "dev", rerank=10, submission=tmp_path / "send"
    )
    (test1,) = CIRR(folder, FolderOptions(images=tmp_path / "dev")).protocols("test1")
    for file, names in zip(sent.files, (50, 3), strict=True):
        content = json.loads(file.read_text())
        assert len(content) == 4148 + 2
        assert {len(value) for value in content.values() if isinstance(value, list)} == {names}
        assert submission_faults(file, test1) == []
        assert file.stat().st_size <= 5_000_000
    assert "R@1" not in sent.results[0].scores
