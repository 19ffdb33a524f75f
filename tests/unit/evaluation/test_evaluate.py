import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from PIL import Image

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.datasets import evaluate_dataset, evaluate_query_set
from nsfse.evaluation.evaluate import evaluate, evaluate_source
from nsfse.evaluation.features import encode_in_batches
from nsfse.evaluation.notices import notices
from nsfse.evaluation.results import Evaluation
from nsfse_runtime.errors import DataError, ImageError, UsageError
from tests.unit.evaluation.number_scorer import NumberScorer, number_images

GALLERY = tuple("01234567")


def protocol(*queries, **options):
    return EvaluationProtocol("toy", "1", GALLERY, queries, ks=(1, 2, 5), **options)


def scores(*queries, rerank=100, mode="composed", **options):
    return evaluate(NumberScorer(), protocol(*queries, **options), number_images, rerank=rerank, mode=mode).scores


def test_a_hit_is_any_target_in_the_top_k():
    found = scores(
        EvalQuery("0", ("3 1 4",), ("4", "1")), EvalQuery("0", ("5 6",), ("6",)), EvalQuery("0", ("7",), ("7",))
    )
    assert (found["queries"], found["R@1"], found["R@2"]) == (3, pytest.approx(33.3333), 100.0)
    assert found["hard_negative_rate"] is None
    assert found["phrasing_gap"] is None


def test_the_reference_is_removed_unless_the_protocol_keeps_it():
    query = EvalQuery("3", ("3 1",), ("1",))
    assert scores(query)["R@1"] == 100.0
    assert scores(query, remove_reference=False)["R@1"] == 0.0


def test_ties_break_by_gallery_order():
    # All but 7 tie, so 0 and 1 follow it: 1 comes third, outside the first two.
    assert scores(EvalQuery("2", ("7",), ("1",)))["R@2"] == 0.0
    assert scores(EvalQuery("2", ("7",), ("0",)))["R@2"] == 100.0


def test_hard_negatives_count_at_the_top_only():
    top = EvalQuery("0", ("2 1",), ("1",), hard_negatives=("2",))
    second = EvalQuery("0", ("1 2",), ("1",), hard_negatives=("2",))
    assert scores(top, second, EvalQuery("0", ("5",), ("5",)))["hard_negative_rate"] == pytest.approx(33.3333)


def test_phrasings_are_averaged_and_their_gap_reported():
    first = EvalQuery("0", ("1", "2", "1 2"), ("1",))
    second = EvalQuery("0", ("3", "4", "4 3"), ("3",))
    found = scores(first, second)
    # R@1 by position: 100, 0, 50.
    assert (found["queries"], found["R@1"], found["phrasing_gap"]) == (2, 50.0, 100.0)


def test_a_query_with_fewer_phrasings_weighs_the_same():
    found = scores(EvalQuery("0", ("1", "2"), ("1",)), EvalQuery("0", ("3",), ("3",)))
    assert (found["R@1"], found["phrasing_gap"]) == (75.0, None)


def test_stage_2_reorders_the_head_and_nothing_else():
    swap = EvalQuery("0", ("1 2 3 4 swap",), ("1",))
    assert [scores(swap, rerank=r)["R@1"] for r in (0, 1, 2)] == [100.0, 100.0, 0.0]
    assert scores(swap, rerank=2)["R@2"] == 100.0
    third = EvalQuery("0", ("1 2 3 4 swap",), ("3",))
    assert scores(third, rerank=2)["R@2"] == 0.0


def test_modes():
    query = EvalQuery("3", ("5 3",), ("5",))
    assert scores(query, mode="composed")["R@1"] == 100.0
    assert scores(query, mode="text-only")["R@1"] == 100.0
    # Image alone: the reference's own vector, removed; the rest tie in gallery order, 5 is the fifth of them.
    assert [scores(query, mode="image-only")[key] for key in ("R@2", "R@5")] == [0.0, 100.0]
    assert scores(EvalQuery("3", ("5 3 swap",), ("5",)), mode="text-only")["R@1"] == 100.0  # no stage 2
    with pytest.raises(UsageError, match="image-only"):
        scores(query, mode="both")


def test_words_alone_are_ranked_by_the_sentence():
    alone, unread = EvalQuery("", ("5 3",), ("5",)), EvalQuery("", ("",), ("1",))
    assert scores(alone)["R@1"] == 100.0
    assert scores(alone, EvalQuery("5", ("5 3",), ("3",)))["R@1"] == 100.0  # beside one with a reference
    result = evaluate(NumberScorer(), protocol(alone, unread), number_images)
    assert result.unreadable == 1 and result.scores["R@2"] == 100.0  # all tie: 1 is the second


def test_cirr_scores():
    query = EvalQuery("0", ("6 1 2",), ("2",), subset=("1", "2", "3"), soft=(("6", 0.5), ("2", 1.0)), pairid="9")
    toy = EvaluationProtocol("cirr-toy", "rc2", GALLERY, (query,), ks=(1, 5, 10, 50))
    found = evaluate(NumberScorer(), toy, number_images).scores
    assert [found[f"R@{k}"] for k in (1, 5)] == [0.0, 100.0]
    assert [found[f"R_subset@{k}"] for k in (1, 2, 3)] == [0.0, 100.0, 100.0]
    assert [found[f"soft_R@{k}"] for k in (1, 5)] == [50.0, 100.0]
    assert found["headline"] == 50.0


def test_the_subset_is_ranked_from_the_whole_ranking():
    query = EvalQuery("0", ("6",), ("59",), subset=("59", "58"))
    toy = EvaluationProtocol("toy", "1", tuple(str(i) for i in range(60)), (query,), ks=(1, 5))
    found = evaluate(NumberScorer(60), toy, number_images, rerank=2).scores
    assert (found["R_subset@1"], found["R_subset@2"]) == (0.0, 100.0)  # 58 ties with 59 and comes first


def test_kinds_are_told_apart():
    found = scores(EvalQuery("0", ("1",), ("1",), kind="colour"), EvalQuery("0", ("1",), ("2",), kind="negation"))
    assert {kind: row["R@1"] for kind, row in found["kinds"].items()} == {"colour": 100.0, "negation": 0.0}


def test_a_query_counts_for_each_of_its_aspects():
    first = EvalQuery("0", ("1",), ("1", "5"), aspects=("addition", "negation"))
    found = scores(first, EvalQuery("0", ("1",), ("6",), aspects=("addition",)), EvalQuery("0", ("1",), ("1",)))
    alone = scores(first)["aspects"]["negation"]["mAP@10"]
    assert alone > 50 and found["aspects"]["negation"] == {"queries": 1, "mAP@10": alone}
    other = scores(EvalQuery("0", ("1",), ("6",), aspects=("addition",)))["aspects"]["addition"]["mAP@10"]
    assert found["aspects"]["addition"] == {"queries": 2, "mAP@10": pytest.approx((alone + other) / 2, abs=1e-4)}
    assert "aspects" not in scores(EvalQuery("0", ("1",), ("1",)))
    (line,) = notices({"aspects": found["aspects"]} | {"texts": None, "unreadable_texts": 0})
    assert line.startswith("mAP@10 by aspect: addition ") and "(n = 2), negation " in line


def test_texts_that_name_the_old_value_are_scored_by_themselves():
    found = scores(
        EvalQuery("0", ("1", "2"), ("1",), old_value_named=(1,)), EvalQuery("0", ("3",), ("3",), old_value_named=(0,))
    )
    assert found["R@1"] == 75.0
    named = found["old_value_named"]
    assert (named["queries"], named["R@1"]) == (2, 66.6667), "1½ queries: a wrong half and a right one"
    assert "old_value_named" not in scores(EvalQuery("0", ("1",), ("1",)))


def test_wrong_first_hits_on_the_background_alone_are_counted():
    def colour(text, target, background):
        return EvalQuery("0", (text,), (target,), background_only=background)

    found = scores(
        colour("1", "1", ("2",)),  # right
        colour("2", "1", ("2", "3", "0")),  # on the background
        colour("3", "1", ()),  # wrong otherwise
        EvalQuery("0", ("4",), ("5",)),  # no colour is requested
    )["background"]
    size = len(GALLERY) - 2  # without the reference and the answer
    assert found == {"wrong": 2, "percent": 50.0, "by_chance": round(100 * (2 / size) / 2, 4)}
    assert scores(colour("1", "1", ("2",)))["background"] == {"wrong": 0, "percent": None, "by_chance": None}
    assert "background" not in scores(EvalQuery("0", ("1",), ("2",)))


def test_missing_images_are_stamped_and_unanswerable_queries_left_out():
    gone = tuple(str(i) for i in range(8, 38))
    queries = [
        EvalQuery("0", ("1",), ("1",)),
        EvalQuery("8", ("1",), ("1",)),  # no reference
        EvalQuery("0", ("9",), ("9",)),  # no right answer
        EvalQuery("0", ("2",), ("9", "2")),  # one right answer left
    ]
    result = evaluate(NumberScorer(), protocol(*queries, missing=30, missing_ids=gone), number_images)
    assert (result.scores["queries"], result.scores["R@1"]) == (2, 100.0)
    stamp = result.to_json()["incomplete"]
    assert (stamp["gallery_expected"], stamp["gallery_found"], stamp["queries_dropped"]) == (38, 8, 2)
    assert stamp["missing"] == list(gone[:20])


def test_a_complete_score_says_so_and_names_its_protocol():
    result = evaluate(NumberScorer(), protocol(EvalQuery("0", ("1",), ("1",)), note="n"), number_images, rerank=7)
    stamped = result.to_json()
    assert stamped["incomplete"] is None
    assert stamped["rerank"] == 7
    assert stamped["protocol"] == {
        "name": "toy",
        "version": "1",
        "gallery_size": 8,
        "gallery_sha256": "e235d52ef14a620f09e74d6d3a040a46094ba0459dffa57c53c00d42f3c3087d",
        "remove_reference": True,
        "ties": "gallery order",
        "note": "n",
    }


def test_texts_that_cannot_be_read_are_ranked_by_the_image_and_counted():
    result = evaluate(
        NumberScorer(), protocol(EvalQuery("0", ("",), ("1",)), EvalQuery("0", ("5",), ("5",))), number_images
    )
    assert result.unreadable == 1
    assert result.scores["R@1"] == 100.0  # of the first, all but the reference tie: 1 leads


def test_images_are_encoded_once_and_at_most_two_batches_are_held(monkeypatch):
    read, wanted = [], []

    class Reader(ThreadPoolExecutor):
        """Reads at once what it is asked for: nothing that is asked for too early can come late."""

        def submit(self, function, *given):
            wanted.append(given)
            found = super().submit(function, *given)
            wait([found])
            return found

    class Held(NumberScorer):
        def encode_images(self, pixels):
            assert len(wanted) - len(self.batches) == min(2, 8 - len(self.batches))  # this one and the next
            return super().encode_images(pixels)

    def images(ids):
        read.append(len(ids))
        return number_images(ids)

    monkeypatch.setattr("nsfse.evaluation.features.ThreadPoolExecutor", Reader)
    scorer = Held()
    encoded = encode_in_batches(scorer, GALLERY, images, batch=1)
    assert scorer.batches == read == [1] * 8
    evaluate(scorer, protocol(*[EvalQuery("0", ("1",), ("1",))] * 5), images, encoded=encoded)
    assert scorer.batches == read == [1] * 8
    assert encode_in_batches(NumberScorer(), GALLERY, images, batch=3).vectors.shape == (8, 16)


def test_references_outside_the_gallery_are_encoded_too():
    found = evaluate(NumberScorer(), protocol(EvalQuery("12", ("3",), ("3",))), number_images)
    assert found.scores["R@1"] == 100.0
    assert len(found.rankings[0].rows) == 8


def test_an_image_that_cannot_be_read_stops_the_score():
    def images(ids):
        raise ImageError("3.jpg is damaged")

    with pytest.raises(ImageError, match="damaged"):
        evaluate(NumberScorer(), protocol(EvalQuery("0", ("1",), ("1",))), images)


def test_an_empty_gallery_is_refused():
    with pytest.raises(DataError, match="no images"):
        evaluate(NumberScorer(), EvaluationProtocol("toy", "1", (), ()), number_images)


def test_queries_that_none_can_answer_are_refused():
    with pytest.raises(DataError, match="no query can be answered"):
        evaluate(NumberScorer(), protocol(EvalQuery("0", ("9",), ("9",))), number_images)


def test_features_of_another_model_are_refused():
    encoded = encode_in_batches(NumberScorer(), GALLERY, number_images)
    other = NumberScorer()
    other.fingerprint = "other"
    with pytest.raises(UsageError, match="another model"):
        evaluate(other, protocol(EvalQuery("0", ("1",), ("1",))), number_images, encoded=encoded)


class NumberSource:
    name = "numbers"
    missing = ()

    def load(self, item, size):
        assert size == (2, 3)
        return number_images([item])[0]


def test_modes_and_protocols_share_one_encoding():
    scorer = NumberScorer()
    whole = protocol(EvalQuery("3", ("5",), ("5",)))
    part = EvaluationProtocol("part", "1", tuple("5310"), whole.queries, ks=(1,))
    seen = []
    found = evaluate_source(
        scorer, NumberSource(), [whole, part], modes=("composed", "image-only"), progress=lambda *at: seen.append(at)
    )
    assert sum(scorer.batches) == 8
    report = found.to_json()
    assert report["schema_version"] == 2
    assert {name: row["R@1"] for name, row in report["protocols"].items()} == {"toy": 100.0, "part": 100.0}
    assert report["modes"]["image-only"]["toy"]["R@1"] == 0.0
    assert ("encode", 8, 8) in seen and ("rank", 1, 1) in seen
    assert isinstance(found, Evaluation)
    json.dumps(report, allow_nan=False)


def test_protocols_without_an_image_are_named():
    bare = EvaluationProtocol("bare", "1", (), (EvalQuery("3", ("5",), ("5",)),), missing=1, missing_ids=("5",))
    found = evaluate_source(NumberScorer(), NumberSource(), [bare, protocol(EvalQuery("3", ("5",), ("5",)))])
    assert found.skipped == ("bare",)
    assert list(found.to_json()["protocols"]) == ["toy"]
    with pytest.raises(DataError, match="nsfse data check numbers"):
        evaluate_source(NumberScorer(), NumberSource(), [bare])


def write_query_set(folder, queries):
    (folder / "images").mkdir()
    rows = ["id,split"]
    for at in range(6):
        rows.append(f"{at},{'val' if at < 3 else 'test'}")
        if at != 5:
            Image.fromarray(number_images([at])[0]).save(folder / f"images/{at}.png")
    (folder / "items.csv").write_text("\n".join(rows))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps(query) for query in queries))


def test_query_sets_are_scored_by_split(tmp_path):
    val = {"protocol": "mine", "split": "val", "reference": "0", "texts": ["2 1"], "targets": ["1"]}
    test = {"protocol": "mine", "split": "test", "reference": "3", "texts": ["4", "3"], "targets": ["4"]}
    whole = {"protocol": "all", "reference": "0", "texts": ["1"], "targets": ["1"], "hard_negatives": ["2"]}
    lost = {"protocol": "all", "reference": "5", "texts": ["1"], "targets": ["1"]}
    write_query_set(tmp_path, [val, test, whole, lost])
    found = evaluate_query_set(NumberScorer(), tmp_path).to_json()["protocols"]
    assert {name: row["R@1"] for name, row in found.items()} == {"mine-val": 0.0, "mine-test": 100.0, "all": 100.0}
    assert found["all"]["hard_negative_rate"] == 0.0
    assert found["mine-test"]["phrasing_gap"] == 0.0
    assert found["all"]["incomplete"]["missing"] == ["5"]
    assert found["all"]["incomplete"]["queries_dropped"] == 1
    assert found["mine-val"]["incomplete"] is None
    assert list(evaluate_query_set(NumberScorer(), tmp_path, split="val").to_json()["protocols"]) == ["mine"]
    with pytest.raises(DataError, match="no queries on split 'train'; can be scored: "):
        evaluate_query_set(NumberScorer(), tmp_path, split="train")


def test_a_reference_missing_from_another_split_drops_its_query(tmp_path):
    across = {"protocol": "mine", "split": "val", "reference": "5", "texts": ["1"], "targets": ["1"]}
    kept = {"protocol": "mine", "split": "val", "reference": "0", "texts": ["1"], "targets": ["1"]}
    write_query_set(tmp_path, [across, kept])
    (row,) = evaluate_query_set(NumberScorer(), tmp_path).to_json()["protocols"].values()
    assert (row["queries"], row["incomplete"]["queries_dropped"]) == (1, 1)


def test_data_sets_by_name(tmp_path):
    with pytest.raises(DataError, match="nothing to score on split 'val'"):
        (tmp_path / "t.csv").write_text("reference,target,text\na,b,c\n")
        evaluate_dataset(NumberScorer(), "table", "val", tmp_path)
    with pytest.raises(DataError, match="nsfse data check table"):
        evaluate_dataset(NumberScorer(), "table", "train", tmp_path)
    with pytest.raises(UsageError, match="only cirr test1"):
        evaluate_dataset(NumberScorer(), "table", "train", tmp_path, submission=tmp_path)


def test_evaluation_needs_no_torch():
    modules = "nsfse.evaluation.evaluate, nsfse.evaluation.cirr_submission, nsfse.data.check"
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    path = [p for p in sys.path if p]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"], check=True)
