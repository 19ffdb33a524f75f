"""Metrics of CIRCO and PinPoint counted by their authors' definitions, lists of queries, CIRCO's test-server file."""

import json

import numpy as np
import pytest

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.circo_submission import write_circo_submission
from nsfse.evaluation.query_list import only_listed
from nsfse.evaluation.results import ProtocolResult, QueryRanking
from nsfse.evaluation.scores import score_rankings
from nsfse_runtime.errors import DataError

GALLERY = tuple(f"{number:012d}" for number in range(60))


def random_rankings(**fields):
    """Return a protocol of 40 queries with random answers, negatives and rankings; some have no negatives."""
    random = np.random.default_rng(4)
    rankings = []
    for number in range(40):
        items = random.permutation(GALLERY).tolist()
        targets, negatives = items[: random.integers(1, 9)], items[10 : 10 + random.integers(0, 7)]
        query = EvalQuery(
            items[20], ("red",), tuple(targets), tuple(negatives), pairid=str(number), edit=f"edit {number // 3}"
        )
        rankings.append(QueryRanking(query, 0, random.permutation(60)[:50].astype(np.int32)))
    protocol = EvaluationProtocol("p", "1", GALLERY, tuple(r.query for r in rankings), ks=(5, 10), **fields)
    return protocol, rankings


def names(ranking):
    return [GALLERY[row] for row in ranking.rows]


def average_precision(found, right, k):
    """Return AP@k in PinPoint's own form, which is CIRCO's: precision at each hit, by min(answers, k)."""
    hits, total = 0, 0.0
    for at, item in enumerate(found[:k], 1):
        if item in right:
            hits += 1
            total += hits / at
    return total / min(len(right), k)


def test_the_metrics_are_those_of_circo_and_pinpoint():
    protocol, rankings = random_rankings(map_ks=(5, 10, 50), first_target_only=True)
    scores = score_rankings(protocol, rankings)
    for k in (5, 10, 50):
        found = [(names(ranking), ranking.query) for ranking in rankings]
        expected = {
            f"mAP@{k}": [average_precision(items, q.targets, k) for items, q in found],
            f"P@{k}": [sum(item in q.targets for item in items[:k]) / k for items, q in found],
            f"NegRecall@{k}": [
                sum(item in q.hard_negatives for item in items[:k]) / min(len(q.hard_negatives), k)
                if q.hard_negatives
                else 0.0
                for items, q in found
            ],
            f"mAP@{k}_noNeg": [
                average_precision([item for item in items if item not in q.hard_negatives], q.targets, k)
                for items, q in found
            ],
        }
        for name, values in expected.items():
            assert scores[name] == pytest.approx(100 * np.mean(values), abs=5e-5), name
    first = [ranking.query.targets[0] in names(ranking)[:5] for ranking in rankings]
    assert scores["R@5"] == pytest.approx(100 * np.mean(first), abs=5e-5)
    p10 = [sum(item in r.query.targets for item in names(r)[:10]) / 10 for r in rankings]
    ranges = [max(p10[at : at + 3]) - min(p10[at : at + 3]) for at in range(0, 39, 3)]
    assert scores["phrasing_sensitivity_P@10"] == pytest.approx(100 * np.mean(ranges), abs=5e-5)


def test_without_its_ks_a_protocol_has_map_at_10_alone():
    scores = score_rankings(*random_rankings())
    assert [name for name in scores if name.startswith(("mAP", "P@", "Neg"))] == ["mAP@10"]


def test_a_list_of_queries_cuts_any_protocol(tmp_path):
    protocol, _ = random_rankings()
    (tmp_path / "circus.txt").write_text("3\n17\n")
    (cut,) = only_listed([protocol], tmp_path / "circus.txt")
    assert [query.pairid for query in cut.queries] == ["3", "17"] and cut.name == "p-only-circus"
    assert cut.note == "only the 2 queries of circus.txt"
    (tmp_path / "circus.json").write_text('[3, "99"]')
    with pytest.raises(DataError, match=r"circus\.json lists 1 id of no query here, such as '99'"):
        only_listed([protocol], tmp_path / "circus.json")


def test_circos_file_has_the_numbers_of_fifty_images_for_each_query(tmp_path):
    protocol, rankings = random_rankings()
    result = ProtocolResult(protocol, "composed", 0, {}, 0, 0, tuple(rankings))
    (path,) = write_circo_submission(result, tmp_path / "out")
    sent = json.loads(path.read_text())
    assert list(sent) == [str(number) for number in range(40)]
    assert sent["7"] == [int(row) for row in rankings[7].rows] and len(sent["7"]) == 50
    short = ProtocolResult(protocol, "composed", 0, {}, 0, 0, tuple(rankings[1:]))
    with pytest.raises(DataError, match="query 0 has no 50 answers"):
        write_circo_submission(short, tmp_path / "other")
    assert not (tmp_path / "other").exists()
