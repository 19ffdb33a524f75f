import json
from dataclasses import replace

import pytest

from nsfse.data import Protocol, Triplet
from nsfse.evaluate import evaluate
from nsfse.submission import submission_faults, write_submission
from nsfse_runtime.errors import DataError, NotFoundError, OutputError
from tests.unit.number_scorer import NumberScorer, number_images

GALLERY = tuple(str(i) for i in range(60))
QUERIES = tuple(
    Triplet(str(r), (f"{r + 7} {r + 5}",), (), subset=tuple(str(r + i) for i in range(1, 6)), pairid=str(1000 + r))
    for r in range(3)
)
TEST1 = Protocol("cirr-test1", "rc2", GALLERY, QUERIES, ks=(1, 5, 10, 50))


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


def test_a_place_that_cannot_be_written_is_one_line(result, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="name another folder"):
        write_submission(result, tmp_path / "file")
