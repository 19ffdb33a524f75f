"""R_subset as a peer counts it: the members of a query's image set ranked by the score that ranks, each by itself.

Candidate-Reranking-CIR (bf3935f) scores the five members by stage 2, CLIP4Cir (dfed9f7) and SPRC (2935a53) mask the
sorted gallery, CoVR (f335ebc) takes the best soft weight among the first K of that. `peer_order` and `peer_recalls`
are those rules in plain Python.
"""

import json

import numpy as np
import pytest

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation import ranker
from nsfse.evaluation.cirr_submission import write_submission
from nsfse.evaluation.evaluate import evaluate
from nsfse.evaluation.metrics import ranks_in_subset
from nsfse_runtime.inference.region_codec import pack, unpack
from nsfse_runtime.types import PairScores, QueryFeatures, TargetFeatures
from tests.galleries import PLAIN_INFO
from tests.unit.evaluation.number_scorer import NumberScorer, number_images

IMAGES, QUERIES, DIM, RERANK = 300, 150, 24, 20


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Simulated:
    """Knows image n by two random vectors, one a stage. A query is its target's, drowned in noise.

    `strength` of stage 1 says how far; stage 2 is always the same.
    """

    fingerprint = "simulated"
    image_size = (1, 2)
    info = PLAIN_INFO
    tokenizer = None

    def __init__(self, strength, targets):
        rng = np.random.default_rng(7)
        self.first, self.second = (unit(rng.standard_normal((IMAGES, DIM))) for _ in range(2))
        noise = [unit(rng.standard_normal((len(targets), DIM))) for _ in range(2)]
        self.vectors = unit(strength * self.first[targets] + noise[0])
        self.wishes = unit(0.4 * self.second[targets] + noise[1])

    def encode_images(self, pixels):
        low, high = pixels[:, 0, 0, 0].astype(int), pixels[:, 0, 1, 0].astype(int)
        rows = low + 256 * high
        return TargetFeatures(self.first[rows], self.second[rows][:, None])

    def compose(self, references, texts):
        one = np.ones(1, np.float32)
        return [
            QueryFeatures(self.vectors[int(text)], self.wishes[[int(text)]], one[None], one, one, (text,))
            for text in texts
        ]

    def sentence(self, texts):
        return self.vectors[[int(text) for text in texts]]

    def score_pairs(self, query, targets):
        score = np.vecdot(targets.regions[:, 0], query.words[0])
        return PairScores(score, score[:, None], 0.0)


def images(ids):
    return np.array([[[[int(item) % 256] * 3, [int(item) // 256] * 3]] for item in ids], np.uint8)


@pytest.fixture(scope="module")
def toy():
    """CIRR's form: reference and five members drawn from the gallery, the target one of them."""
    rng = np.random.default_rng(3)
    queries = []
    for at in range(QUERIES):
        reference, *members = (str(row) for row in rng.choice(IMAGES, 6, replace=False))
        soft = ((members[0], 1.0), (members[1], 0.5), (members[2], -1.0))
        queries.append(
            EvalQuery(reference, (str(at),), (members[0],), subset=tuple(members), soft=soft, pairid=str(at))
        )
    return EvaluationProtocol("toy", "rc2", tuple(map(str, range(IMAGES))), tuple(queries), ks=(1, 5, 10, 50))


def kept(features):
    """Return features as a gallery keeps them: the same images for both sides."""
    return TargetFeatures(features.vectors, unpack(*pack(features.regions)))


def peer_order(scorer, query, gallery):
    """Score the members one by one, in gallery order; a stable sort leaves equal ones there."""
    members = sorted((item for item in query.subset if item in gallery), key=gallery.index)
    [composed] = scorer.compose(None, query.texts)
    scores = [scorer.score_pairs(composed, kept(scorer.encode_images(images([item])))).score[0] for item in members]
    return [item for _, item in sorted(zip(-np.array(scores), members, strict=True), key=lambda pair: pair[0])]


def peer_recalls(orders, queries):
    """Count hard and soft recall over the members, in percent."""
    found = {}
    for k in (1, 2, 3):
        hits = [query.targets[0] in order[:k] for order, query in zip(orders, queries, strict=True)]
        best = [
            max([0.0, *(weight for item, weight in query.soft if item in order[:k])])
            for order, query in zip(orders, queries, strict=True)
        ]
        found |= {f"R_subset@{k}": 100 * sum(hits) / len(hits), f"soft_R_subset@{k}": 100 * sum(best) / len(best)}
    return found


@pytest.mark.parametrize("strength", [0.9, 0.35, 0.1], ids=["strong", "middling", "weak"])
@pytest.mark.parametrize("rerank", [1, RERANK, IMAGES])
def test_r_subset_is_that_of_a_peer_however_strong_stage_1_is(toy, strength, rerank):
    scorer = Simulated(strength, [int(query.targets[0]) for query in toy.queries])
    result = evaluate(scorer, toy, images, rerank=rerank)
    orders = [peer_order(scorer, query, toy.gallery) for query in toy.queries]
    ours = [[toy.gallery[row] for row in ranked.subset] for ranked in result.rankings]
    assert ours == orders
    expected = peer_recalls(orders, toy.queries)
    assert {key: result.scores[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert result.scores["headline"] == pytest.approx((result.scores["R@5"] + expected["R_subset@1"]) / 2, abs=1e-4)
    if rerank == RERANK:  # most members lie beyond what is re-ranked, so that the ranking's own order is another one
        head = [set(ranked.rows[:rerank].tolist()) for ranked in result.rankings]
        outside = [int(item) not in rows for rows, q in zip(head, toy.queries, strict=True) for item in q.subset]
        assert np.mean(outside) > 0.7


def test_without_stage_2_it_is_that_of_the_whole_ranking(toy):
    scorer = Simulated(0.35, [int(query.targets[0]) for query in toy.queries])
    for mode in ("composed", "text-only"):
        result = evaluate(scorer, toy, images, rerank=0, mode=mode)
        order = [np.argsort(-np.vecdot(scorer.first, vector), kind="stable") for vector in scorer.vectors]
        right = [{int(query.targets[0])} for query in toy.queries]
        ranks = ranks_in_subset(order, [set(map(int, query.subset)) for query in toy.queries], right)
        for k in (1, 2, 3):
            assert result.scores[f"R_subset@{k}"] == pytest.approx(100 * np.mean(ranks < k), abs=1e-4)


def subset_of(query, rerank=2, gallery=tuple("01234567"), **options):
    protocol = EvaluationProtocol("toy", "1", gallery, (query,), ks=(1, 5), **options)
    result = evaluate(NumberScorer(), protocol, number_images, rerank=rerank)
    return [gallery[row] for row in result.rankings[0].subset]


def test_members_beyond_the_re_ranked_are_ordered_by_s_too():
    # Stage 1 has 1 2 3 4; S, the other way round, 4 before 3 before 2. Only 1 and 2 are re-ranked.
    query = EvalQuery("0", ("1 2 3 4 swap",), ("4",), subset=("2", "3", "4"))
    assert subset_of(query, rerank=2) == subset_of(query, rerank=8) == ["4", "3", "2"]
    assert subset_of(query, rerank=0) == ["2", "3", "4"]


def test_equal_members_stand_in_gallery_order():
    query = EvalQuery("0", ("7",), ("3",), subset=("5", "3", "4"))
    assert subset_of(query) == subset_of(query, rerank=0) == ["3", "4", "5"]
    assert subset_of(query, gallery=tuple("01254367")) == ["5", "4", "3"]


def test_members_within_a_tie_stand_in_gallery_order(monkeypatch):
    # A step of float32 between two scores, as another processor may round them, changes no order.
    step = np.float32([0, 1, 2]) * np.finfo(np.float32).eps / 2
    monkeypatch.setattr(ranker, "score_rows", lambda *_: [PairScores(0.5 + step, step[:, None], 0.0)])
    query = EvalQuery("0", ("7",), ("3",), subset=("5", "3", "4"))
    assert subset_of(query) == ["3", "4", "5"]


def test_the_reference_and_what_is_not_there_are_no_members():
    query = EvalQuery("0", ("3",), ("3",), subset=("0", "3", "4", "9", "4"))
    assert subset_of(query) == ["3", "4"]
    assert subset_of(query, remove_reference=False) == ["3", "0", "4"]


def test_a_text_that_cannot_be_read_leaves_the_image_to_rank_the_members():
    query = EvalQuery("2", ("",), ("3",), subset=("4", "3", "2"))
    assert subset_of(query, remove_reference=False) == ["2", "3", "4"]


def test_the_subset_file_has_the_members_by_s(tmp_path):
    gallery = tuple(str(row) for row in range(60))
    query = EvalQuery("0", ("1 2 3 4 5 swap",), (), subset=("1", "2", "3", "4", "5"), pairid="7")
    protocol = EvaluationProtocol("cirr-test1", "rc2", gallery, (query,), ks=(1, 5, 10, 50))
    files = write_submission(evaluate(NumberScorer(60), protocol, number_images, rerank=2), tmp_path)
    recall, subset = (json.loads(file.read_text()) for file in files)
    assert subset["7"] == ["5", "4", "3"]
    assert recall["7"][:5] == ["2", "1", "3", "4", "5"] and len(recall["7"]) == 50


def test_soft_recall_of_the_members_by_hand():
    # Members in order: 1 (no weight), 2 (-1), 3 (0.5), 4 (1). CoVR: never below 0, the best among the first K.
    soft = (("2", -1.0), ("3", 0.5), ("4", 1.0), ("0", 1.0))
    query = EvalQuery("0", ("1 2 3 4",), ("4",), subset=("4", "3", "2", "1"), soft=soft)
    protocol = EvaluationProtocol("toy", "1", tuple("01234567"), (query,), ks=(1, 5))
    found = evaluate(NumberScorer(), protocol, number_images).scores
    assert [found[f"soft_R_subset@{k}"] for k in (1, 2, 3)] == [0.0, 0.0, 50.0]
    assert [found[f"R_subset@{k}"] for k in (1, 2, 3)] == [0.0, 0.0, 0.0]
