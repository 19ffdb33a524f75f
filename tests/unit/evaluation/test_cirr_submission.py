import json
import os
from dataclasses import replace

import pytest

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.evaluation.cirr_submission import check_split, submission_faults, write_submission
from nsfse.evaluation.evaluate import evaluate
from nsfse_runtime.errors import DataError, NotFoundError, OutputError
from tests.unit.evaluation.number_scorer import NumberScorer, number_images

GALLERY = tuple(str(i) for i in range(60))
QUERIES = tuple(
    EvalQuery(str(r), (f"{r + 7} {r + 5}",), (), subset=tuple(str(r + i) for i in range(1, 6)), pairid=str(1000 + r))
    for r in range(3)
)
TEST1 = EvaluationProtocol("cirr-test1", "rc2", GALLERY, QUERIES, ks=(1, 5, 10, 50))


@pytest.fixture
def result():
    return evaluate(NumberScorer(60), TEST1, number_images)


def test_files_have_the_official_form(result, tmp_path):
    recall_file, subset_file = write_submission(result, tmp_path / "out")
    recall, subset = json.loads(recall_file.read_text()), json.loads(subset_file.read_text())
    assert (recall.pop("version"), recall.pop("metric")) == ("rc2", "recall")
    assert (subset.pop("version"), subset.pop("metric")) == ("rc2", "recall_subset")
    assert recall.keys() == subset.keys() == {"1000", "1001", "1002"}
    assert all(len(set(names)) == 50 for names in recall.values())
    assert recall["1001"][:3] == ["8", "6", "0"]  # the two it asks for, then ties, the reference left out
    assert "1" not in recall["1001"]
    assert subset["1001"] == ["6", "2", "3"]
    assert submission_faults(recall_file, TEST1) == submission_faults(subset_file, TEST1) == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda c: c.update(version="rc1"), "version is 'rc1'"),
        (lambda c: c.update(metric="r@1"), "metric is 'r@1'"),
        (lambda c: c.pop("1001"), "1 pair is not answered, such as 1001"),
        (lambda c: c.update({"7": []}), "pair 7 is not one of the split"),
        (lambda c: c["1000"].pop(), "pair 1000: 49 names, not 50"),
        (lambda c: c["1000"].__setitem__(3, c["1000"][4]), "a name occurs twice"),
        (lambda c: c["1000"].__setitem__(3, "0"), "the reference is among the names"),
        (lambda c: c["1000"].__setitem__(3, "x.png"), "x.png is not in the split"),
        (lambda c: c.update({"1000": "5"}), "not a list of names"),
        (lambda c: c.update({"1000": ["5" * 6_000_000]}), "the server takes at most 5000000"),
    ],
)
def test_the_validator_finds_each_fault(result, tmp_path, spoil, fault):
    file, _ = write_submission(result, tmp_path)
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))
    assert any(fault in found for found in submission_faults(file, TEST1))


def test_subset_names_must_be_members(result, tmp_path):
    _, file = write_submission(result, tmp_path)
    content = json.loads(file.read_text())
    content["1000"][0] = "40"
    file.write_text(json.dumps(content))
    assert submission_faults(file, TEST1) == ["pair 1000: 40 is not a member of its set"]


def test_not_json_and_no_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    assert submission_faults(tmp_path / "a.json", TEST1)[0].startswith("not JSON")
    with pytest.raises(NotFoundError):
        submission_faults(tmp_path / "b.json", TEST1)


def test_an_incomplete_gallery_writes_nothing(tmp_path):
    small = replace(TEST1, gallery=GALLERY[:30], missing=30, missing_ids=GALLERY[30:])
    with pytest.raises(DataError, match="would be refused"):
        write_submission(evaluate(NumberScorer(60), small, number_images), tmp_path)
    assert list(tmp_path.iterdir()) == []


def nothing_written(protocol, folder, match):
    """Refused before it is ranked, and when it is written; no file is left, and no folder made."""
    with pytest.raises(DataError, match=match):
        check_split(protocol)
    with pytest.raises(DataError, match=match):
        write_submission(evaluate(NumberScorer(60), protocol, number_images), folder)
    assert not folder.exists()


def test_two_pairs_of_one_pairid_are_both_named(tmp_path):
    twice = replace(TEST1, queries=(*QUERIES[:2], replace(QUERIES[2], pairid="1000")))
    nothing_written(
        twice, tmp_path / "out", r"pairid 1000 is that of pair 1 \(reference 0\) and of pair 3 \(reference 2\)"
    )


@pytest.mark.parametrize("pairid", ["metric", "version", "", "1.0", "-1", "True", "a1", "\u0661", " 7"])
def test_a_pairid_is_an_integer(tmp_path, pairid):
    spoilt = replace(TEST1, queries=(replace(QUERIES[0], pairid=pairid), *QUERIES[1:]))
    nothing_written(spoilt, tmp_path / "out", "pair 1 has the pairid .* which is not an integer")


@pytest.mark.parametrize("members", [(), ("1", "2"), ("0", "1", "2"), ("1", "2", "2"), ("1", "2", "x.png")])
def test_a_set_of_too_few_refuses_both_files(tmp_path, members):
    small = replace(TEST1, queries=(replace(QUERIES[0], subset=members), *QUERIES[1:]))
    nothing_written(small, tmp_path / "out", "pairid 1000: [02] of its image set can be ranked, and 3 are sent")


def test_a_gallery_of_fifty_is_too_small(tmp_path):
    nothing_written(replace(TEST1, gallery=GALLERY[:50]), tmp_path / "out", "50 images, and 50 besides the reference")


def test_a_reference_of_no_list_is_found_before_ranking():
    with pytest.raises(DataError, match="pairid 1001: its reference 1 is in no split list"):
        check_split(TEST1, ("1",))


def test_both_files_are_written_or_none(result, tmp_path):
    (tmp_path / "recall_subset.json").mkdir()
    with pytest.raises(OutputError, match="name another folder"):
        write_submission(result, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recall_subset.json"]


@pytest.mark.parametrize("before", [None, b'{"metric": "recall"}'])
def test_what_was_there_comes_back_where_the_second_fails(result, tmp_path, monkeypatch, before):
    if before:
        (tmp_path / "recall.json").write_bytes(before)
    real = os.replace

    def broken(source, target):
        if target.name == "recall_subset.json":
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OutputError, match="Permission denied"):
        write_submission(result, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"recall.json": before} if before else {})


def test_a_pairid_that_a_file_has_twice_is_a_fault(result, tmp_path):
    file, _ = write_submission(result, tmp_path)
    text = file.read_text()
    file.write_text(text[:-1] + ',"1000":' + json.dumps(json.loads(text)["1000"]) + "}")
    assert submission_faults(file, TEST1) == ["'1000' is there twice"]
    file.write_text('{"version": "rc2", "metric": ["recall"]}')
    assert any("metric is ['recall']" in fault for fault in submission_faults(file, TEST1))
    file.write_text("[" * 100_000)
    assert submission_faults(file, TEST1)[0].startswith("not JSON")


def test_a_place_that_cannot_be_written_is_one_line(result, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="name another folder"):
        write_submission(result, tmp_path / "file")
