"""Which queries count: reasons for those left out, odd ones, unknown words, means over categories; and what is said."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from nsfse.cli.formatting import to_json
from nsfse.cli.reports import reproduced_text, scores_text
from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.data.datasets.file_index import counted
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.evaluation.datasets import evaluate_dataset
from nsfse.evaluation.evaluate import evaluate, evaluate_source
from nsfse.evaluation.query_counts import left_out, odd_queries, scorable_queries, text_counts, unlisted
from nsfse_runtime.errors import DataError, UsageError
from nsfse_runtime.inference.tokenizer import Tokenizer
from tests.unit.evaluation.number_scorer import NumberScorer, number_images

GALLERY = tuple("01234567")


def protocol(*queries, **options):
    return EvaluationProtocol("toy", "1", GALLERY, queries, ks=(1, 2, 5), **options)


def reasons(noted):
    return {each.reason: (each.queries, each.examples) for each in noted}


def said(found):
    """Return the lines under the table."""
    return [line for line in scores_text(json.loads(to_json(found.to_json()))).splitlines() if ": " in line]


class Source:
    """A source whose images are numbers; `images` has the ids of its lists, `gone` those without an image."""

    name = "numbers"

    def __init__(self, *listed, gone=()):
        self.images, self.missing = dict.fromkeys(listed), gone

    def load(self, item, size):
        return number_images([item])[0]


def test_each_reason_is_told_with_the_query_and_the_image():
    toy = protocol(
        EvalQuery("0", ("1",), ("1",), pairid="10"),
        EvalQuery("0", ("1",), ("12",), pairid="11"),
        EvalQuery("0", ("1",), ("9", "12"), pairid="12"),
        EvalQuery("9", ("1",), ("1",), pairid="13"),
        EvalQuery("13", ("1",), ("1",), pairid="14"),
        EvalQuery("0", ("1",), (), pairid="15"),
        missing=1,
        missing_ids=("9",),
    )
    assert [query.pairid for query in scorable_queries(toy, (), ("13",))] == ["10"]
    assert reasons(left_out(toy, (), ("13",))) == {
        "reference_unlisted": (1, ("pairid 14: 13",)),
        "reference_missing": (1, ("pairid 13: 9",)),
        "no_target": (1, ("pairid 15",)),
        "target_missing": (1, ("pairid 12: 9",)),
        "target_not_in_split": (1, ("pairid 11: 12",)),
    }
    assert list(reasons(left_out(toy, (), ("13",)))) == [
        *("reference_unlisted", "reference_missing", "no_target", "target_missing", "target_not_in_split")
    ]


def test_where_a_server_keeps_the_answers_no_query_lacks_a_target():
    hidden = protocol(EvalQuery("0", ("1",), ()), EvalQuery("1", ("1",), ()))
    assert len(scorable_queries(hidden)) == 2 and left_out(hidden) == ()


def test_a_whole_gallery_is_not_called_incomplete():
    toy = protocol(EvalQuery("0", ("1",), ("1",), pairid="3"), EvalQuery("0", ("1",), ("12",), pairid="4"))
    found = evaluate_source(NumberScorer(), Source(*GALLERY), [toy])
    assert said(found) == ["toy: 1 query left out: its target is not in the split (pairid 4: 12)"]
    (row,) = found.to_json()["protocols"].values()
    assert (row["queries"], row["incomplete"]["queries_dropped"]) == (1, 1)
    two = protocol(*toy.queries, EvalQuery("2", ("1",), ("12",)))
    assert said(evaluate_source(NumberScorer(), Source(*GALLERY), [two])) == [
        "toy: 2 queries left out: their targets are not in the split (pairid 4: 12; query 3, reference 2: 12)"
    ]


def test_an_incomplete_gallery_is_told_apart_from_what_it_costs():
    toy = protocol(EvalQuery("0", ("1",), ("1",)), EvalQuery("0", ("1",), ("9",)), missing=1, missing_ids=("9",))
    assert said(evaluate_source(NumberScorer(), Source(*GALLERY), [toy])) == [
        "toy: incomplete gallery, 8 of 9 images; 1 query left out: the image of its target is missing "
        "(query 2, reference 0: 9)"
    ]


def test_a_reference_that_no_list_has_costs_its_query_alone():
    toy = protocol(EvalQuery("0", ("1",), ("1",), pairid="0"), EvalQuery("nope", ("1",), ("1",), pairid="1"))
    found = evaluate_source(NumberScorer(), Source(*GALLERY), [toy])
    assert said(found) == ["toy: 1 query left out: its reference is in no split list (pairid 1: nope)"]
    elsewhere = protocol(EvalQuery("12", ("1",), ("1",)))
    assert said(evaluate_source(NumberScorer(), Source(*GALLERY, "12"), [elsewhere])) == []
    only = protocol(toy.queries[1])
    with pytest.raises(DataError, match="toy: 1 query left out: its reference is in no split list"):
        evaluate_source(NumberScorer(), Source(*GALLERY), [only])


def test_a_source_that_draws_its_images_has_all_that_it_names():
    source = DrawnSource(DrawnOptions("easy", items=400, gallery=64))
    assert unlisted(source, source.protocols("test")) == frozenset()


def test_more_than_three_are_counted_and_not_named():
    toy = protocol(EvalQuery("0", ("1",), ("1",)), *[EvalQuery("1", ("1",), ("12",))] * 5)
    (noted,) = left_out(toy)
    assert (noted.queries, len(noted.examples)) == (5, 3)
    assert said(evaluate_source(NumberScorer(), Source(*GALLERY), [toy]))[0].endswith("reference 1: 12 and 2 more)")


def test_odd_queries_are_scored_and_counted():
    five = tuple("12345")
    toy = protocol(
        EvalQuery("0", ("1",), ("1",), subset=five, pairid="1"),
        EvalQuery("0", ("1",), ("0",), subset=five, pairid="2"),
        EvalQuery("0", ("1",), ("6",), subset=five, pairid="3"),
        EvalQuery("0", ("1",), ("1",), subset=five[:4], pairid="4"),
        EvalQuery("0", ("1",), ("1",), subset=(*five, "0"), pairid="5"),
        EvalQuery("0", ("1",), ("1",), subset=("1", "1", "2", "3", "4"), pairid="6"),
        EvalQuery("0", ("1",), ("1", "2", "1"), subset=five, pairid="7"),
        EvalQuery("0", ("1",), ("1",), subset=("1", "2", "3", "4", "9"), pairid="8"),
    )
    assert reasons(odd_queries(toy, toy.queries)) == {
        "target_is_reference": (1, ("pairid 2",)),
        "target_not_in_set": (2, ("pairid 2", "pairid 3")),
        "set_not_of_five": (2, ("pairid 4", "pairid 5")),
        "member_missing": (1, ("pairid 8",)),
        "member_twice": (1, ("pairid 6",)),
        "target_twice": (1, ("pairid 7",)),
    }
    found = evaluate_source(NumberScorer(), Source(*GALLERY), [toy])
    assert found.results[0].scores["queries"] == 8
    assert "toy: 1 query: its target is its reference (pairid 2)" in said(found)
    assert "toy: 2 queries: their targets are not in their image sets (pairid 2; pairid 3)" in said(found)


def test_a_target_that_is_one_of_several_and_the_reference_is_not_odd():
    toy = protocol(EvalQuery("0", ("1",), ("0", "1")))
    assert odd_queries(toy, toy.queries) == ()


def test_an_answer_or_an_image_that_is_listed_twice_counts_once():
    once = evaluate(NumberScorer(), protocol(EvalQuery("0", ("1 4 2",), ("1", "2"))), number_images).scores
    twice = evaluate(NumberScorer(), protocol(EvalQuery("0", ("1 4 2",), ("1", "2", "1"))), number_images).scores
    assert once == twice and once["mAP@10"] == pytest.approx(100 * (1 + 2 / 3) / 2, abs=1e-4)
    double = EvaluationProtocol(
        "toy", "1", (*GALLERY, "1", "4"), protocol(EvalQuery("0", ("4 1",), ("1",))).queries, ks=(1, 2)
    )
    result = evaluate(NumberScorer(), double, number_images)
    assert (result.scores["R@1"], result.scores["R@2"], len(result.protocol.gallery)) == (0.0, 100.0, 8)


def test_unknown_words_and_long_texts_are_counted():
    tokenizer = Tokenizer(build_vocabulary(["make it red", "in blue"]), max_words=4)
    texts = ["make it red", "make it xyzzy", "xyzzy qwerty", "make it red in blue", "xyzzy it red in blue", ""]
    scorer = SimpleNamespace(tokenizer=tokenizer)
    assert text_counts(scorer, texts) == {
        "count": 6,
        "with_unknown_word": 3,
        "longer_than_read": 2,
        "words_read": 4,
    }
    assert text_counts(NumberScorer(), texts) is None


def test_texts_are_told_in_the_table():
    class Reader(NumberScorer):
        tokenizer = Tokenizer(build_vocabulary(["1 2"]), max_words=2)

    queries = [EvalQuery("0", (text,), ("1",)) for text in ("1", "1 blue", "1 2 1", "blue")]
    found = evaluate_source(Reader(), Source(*GALLERY), [protocol(*queries)], modes=("composed", "image-only"))
    assert said(found) == [
        "toy: 1 text has no word that the model knows: ranked by the image alone",
        "toy: 2 of 4 texts (50.0 %) have words that the model does not know",
        "toy: 1 of 4 texts (25.0 %) is longer than the 2 words that the model reads",
    ]
    report = found.to_json()
    assert report["protocols"]["toy"]["texts"]["count"] == 4
    assert report["modes"]["image-only"]["toy"]["texts"] is None


def test_phrasings_of_one_query_are_compared_with_each_other():
    # By position R@1 is 50, 50; by query it is 100, 0 and 0, 100. Of eight images ten are the first: P@10 is the same.
    flip = protocol(EvalQuery("0", ("1 2", "2 1"), ("1",)), EvalQuery("0", ("4 3", "3 4"), ("3",)))
    scores = evaluate(NumberScorer(), flip, number_images).scores
    assert (scores["phrasing_gap"], scores["phrasing_sensitivity_R@1"]) == (0.0, 100.0)
    assert scores["phrasing_sensitivity_P@10"] == 0.0
    # Twelve images beside the reference, all but the named ones equal: P@10 is 2/10 for "11 12" and 0 for "1".
    many = EvaluationProtocol(
        "many", "1", tuple(map(str, range(13))), (EvalQuery("0", ("11 12", "1"), ("11", "12")),), ks=(1,)
    )
    scores = evaluate(NumberScorer(), many, number_images).scores
    assert (scores["phrasing_sensitivity_R@1"], scores["phrasing_sensitivity_P@10"]) == (100.0, 20.0)
    once = evaluate(NumberScorer(), protocol(EvalQuery("0", ("1",), ("1",))), number_images).scores
    assert once["phrasing_sensitivity_R@1"] is once["phrasing_sensitivity_P@10"] is once["phrasing_gap"] is None


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def fashioniq(tmp_path):
    for category, first in (("dress", 0), ("shirt", 4), ("toptee", 8)):
        ids = [str(first + at) for at in range(4)]
        for split in ("train", "val", "test"):
            write(tmp_path / f"image_splits/split.{category}.{split}.json", ids)
            pairs = [{"candidate": ids[0], "target": ids[1], "captions": [ids[1], ids[2]]}]
            write(tmp_path / f"captions/cap.{category}.{split}.json", pairs)
        for item in ids:
            (tmp_path / "images").mkdir(exist_ok=True)
            Image.fromarray(number_images([item])[0]).save(tmp_path / f"images/{item}.png")
    return tmp_path


def score(folder, split="val", name="fashioniq"):
    return evaluate_dataset(NumberScorer(), name, split, folder)


def test_the_mean_is_that_of_three_categories(fashioniq):
    found = score(fashioniq)
    assert found.summary["fashioniq-VAL"] == {
        "R@10": 100.0,
        "R@50": 100.0,
        "categories": 3,
        "expected": 3,
        "missing": [],
    }
    assert "fashioniq-VAL: mean R@10 100.00, R@50 100.00" in said(found)
    # One mean of three categories on another split, too, not three of one each.
    assert set(score(fashioniq, "train").summary) == {f"{group}-train" for group in found.summary}


@pytest.mark.parametrize("way", ["no files", "no captions", "no pairs", "other ids", "no images", "no targets here"])
def test_two_categories_have_no_mean_and_the_third_a_line(fashioniq, way):
    captions, listed = fashioniq / "captions/cap.dress.val.json", fashioniq / "image_splits/split.dress.val.json"
    if way in ("no files", "no captions"):
        captions.unlink()
    if way == "no files":
        listed.unlink()
    if way == "no pairs":
        write(captions, [])
    if way == "other ids":
        write(listed, ["x0", "x1"])
    if way == "no images":
        for item in range(4):
            (fashioniq / f"images/{item}.png").unlink()
    if way == "no targets here":
        write(captions, [{"candidate": "0", "target": "5", "captions": ["5", "6"]}])
    found = score(fashioniq)
    report = json.loads(to_json(found.to_json()))
    for means in report["summary"].values():
        assert means == {"R@10": None, "R@50": None, "categories": 2, "expected": 3, "missing": ["dress"]}
    names = {f"fashioniq-{gallery}{keep}-dress" for gallery in ("original", "VAL") for keep in ("", "-keepref")}
    assert set(report["not_scored"]) == set(report["skipped"]) == names
    assert all(each["queries"] == 0 and each["reason"] for each in report["not_scored"].values())
    text = scores_text(report)
    assert "fashioniq-VAL: no mean: 2 of 3 categories (no dress)" in text and "mean R@10" not in text
    assert [line.split()[1:3] for line in text.splitlines() if line.startswith("fashioniq-VAL-dress ")] == [["-", "0"]]
    assert sum("fashioniq-VAL-dress" in line and "not scored: " in line for line in text.splitlines()) == 1


def test_a_recipe_without_a_category_has_no_mean(fashioniq):
    (fashioniq / "captions/cap.dress.val.json").unlink()
    about = score(fashioniq).to_json()
    rows = [{"protocol": "fashioniq-VAL", "metric": "R@10", "expected": 30.0, "got": None}]
    empty = {"title": "", "protocol": [], "steps": None, "source": "", "note": "", "files": [], "incomplete": {}}
    text = reproduced_text({**empty, "rows": rows, "not_scored": about["not_scored"], "summary": about["summary"]})
    assert "fashioniq-VAL: no mean: 2 of 3 categories (no dress)" in text
    assert "fashioniq-VAL-dress: not scored: the annotations of dress are absent" in text


def test_a_split_that_is_not_there_names_those_that_are(fashioniq):
    with pytest.raises(DataError, match=r"no such split; can be scored: train, val$"):
        score(fashioniq, "dev")
    with pytest.raises(DataError, match=r"images and no queries with known targets; can be scored: train, val$"):
        score(fashioniq, "test")


def test_splits_of_a_table_are_those_that_it_names(tmp_path):
    (tmp_path / "t.csv").write_text("reference,target,text,split\na,b,c,mine\na,b,c,val\n")
    with pytest.raises(DataError, match=r"can be scored: mine, val$"):
        score(tmp_path, "dev", "table")


def test_a_split_without_queries_is_not_called_secret(tmp_path):
    names = ["a.jpg", "b.jpg"]
    (tmp_path / "eval_im_names.txt").write_text("\n".join(names))
    pair = {"ImageName": "c.jpg", "ReferenceImageName": "d.jpg", "RelativeCaption": "red"}
    write(tmp_path / "relative_captions_shoes.json", [pair])
    with pytest.raises(DataError, match="shoes-test: the annotations have no query whose images are of this split"):
        score(tmp_path, "test", "shoes")


def test_a_mean_in_training_says_over_how_many_protocols_it_is():
    log = pytest.importorskip("nsfse.training.run_logger", exc_type=ImportError)
    whole = protocol(EvalQuery("0", ("1",), ("12",)), EvalQuery("0", ("2 1",), ("1",)), EvalQuery("0", ("1",), ("1",)))
    bare = EvaluationProtocol("bare", "1", GALLERY, (EvalQuery("0", ("1",), ("12",)),))
    secret = EvaluationProtocol("secret", "1", GALLERY, (EvalQuery("0", ("1",), ()),))
    source = Source(*GALLERY)
    source.protocols = lambda split: [whole, bare, secret]
    notes = []
    data = SimpleNamespace(validation="val", validation_queries=2)
    run = SimpleNamespace(data=data, source=source, images=number_images, progress=notes.append)
    scores = log.RunLogger._validate(run, NumberScorer())
    assert (scores["toy"]["queries"], scores["toy"]["R@1"], scores["mean_R@1"]) == (2, 50.0, 50.0)
    assert scores["not_scored"] == ["bare", "secret"] and "1 of 3 protocols" in notes[0]["note"]


def test_only_a_test_server_keeps_answers(tmp_path):
    (tmp_path / "t.csv").write_text("reference,target,text,split\na,b,c,val\n")
    with pytest.raises(UsageError, match="only cirr test1"):
        evaluate_dataset(NumberScorer(), "table", "val", tmp_path, submission=tmp_path)


def test_numbers_and_nouns_agree():
    assert [counted(n, "query", "queries") for n in (0, 1, 2)] == ["0 queries", "1 query", "2 queries"]
