"""A bundle and a gallery of the format before 0.1.0 open and give the recorded answers, without torch."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from nsfse.cli import app

HERE = Path(__file__).parent
IMAGES, V0 = HERE / "images", HERE / "v0"
ANSWERS = json.loads((V0 / "answers.json").read_text("utf-8"))
QUERIES = [name for name, recorded in ANSWERS.items() if recorded["command"][0] == "query"]
OPTIONS = {
    "--without": "--exclude-text",
    "--not-like": "--exclude-image",
    "--min-score": "--min-confidence",
    "--maps": "--heatmaps",
}
FIELDS = {"match": "is_match", "matches": "has_match", "minus": "negative", "pictures": "images"}
"""Former names of options and of fields in JSON, and what they are called now."""


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Work in a copy of the files: opening a gallery writes beside it."""
    shutil.copytree(V0, tmp_path / "v0")
    monkeypatch.chdir(tmp_path / "v0")
    return tmp_path / "v0"


def run(capsys, *arguments):
    """Run a command and return what it prints as JSON."""
    with pytest.raises(SystemExit) as stop:
        app.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return json.loads(out)


def index_again(capsys):
    return run(capsys, "index", "gallery", IMAGES, "-b", "bundle", "--metadata", "metadata.csv", "--json")


def renamed(answer):
    """Return a recorded answer with the fields' present names, and the images' folder of today."""
    if isinstance(answer, dict):
        return {FIELDS.get(key, key): renamed(value) for key, value in answer.items() if key != "schema_version"}
    if isinstance(answer, list):
        return [renamed(value) for value in answer]
    return answer.replace("{indexed}", str(IMAGES)) if isinstance(answer, str) else answer


def steady(answer):
    """Leave out what differs each time, and notes: they are prose."""
    return {key: value for key, value in answer.items() if key not in ("schema_version", "timings_ms", "notes")}


def assert_same(answer, recorded, where="answer"):
    """Hold an answer against the recorded one; numbers within 1e-5, since kernels round in their own ways."""
    if isinstance(recorded, dict):
        assert answer.keys() >= recorded.keys(), where  # keys may be added (docs/policy.md)
        for key, value in recorded.items():
            assert_same(answer[key], value, f"{where}.{key}")
    elif isinstance(recorded, list):
        assert len(answer) == len(recorded), where
        for position, value in enumerate(recorded):
            assert_same(answer[position], value, f"{where}[{position}]")
    elif isinstance(recorded, float):
        assert answer == pytest.approx(recorded, rel=1e-5, abs=1e-5), where
    else:
        assert answer == recorded, where


def test_the_recorded_files_are_small():
    assert sum(path.stat().st_size for path in V0.rglob("*") if path.is_file()) <= 600_000


def test_info_is_as_recorded_before_and_after_indexing_again(copy, capsys):
    recorded = renamed(ANSWERS["info-gallery"]["answer"])
    answer = steady(run(capsys, "info", "gallery", "--json"))
    moved = ("folder", "bundle")
    assert {key: value for key, value in answer.items() if key not in moved} == {
        key: value for key, value in recorded.items() if key not in moved
    }
    index_again(capsys)
    answer = steady(run(capsys, "info", "gallery", "--json"))
    assert answer["format_version"] == 3
    changed = ("bundle", "generation", "bytes", "format_version")
    assert {key: value for key, value in answer.items() if key not in changed} == {
        key: value for key, value in recorded.items() if key not in changed
    }


def test_indexing_the_same_images_again_encodes_nothing(copy, capsys):
    for _ in range(2):
        report = index_again(capsys)
        assert (report["unchanged"], report["encoded"], report["added"], report["removed"]) == (6, 0, 0, 0)
        assert report["failed"] == []


@pytest.mark.parametrize("name", QUERIES)
def test_queries_give_the_recorded_answers(copy, capsys, name):
    index_again(capsys)
    # Files from outside the gallery's folder, as they were then: such an image is encoded, not looked up.
    files = str(shutil.copytree(IMAGES, copy / "files"))
    command = [OPTIONS.get(part, part).replace("{pictures}", files) for part in ANSWERS[name]["command"]]
    assert_same(steady(run(capsys, *command)), steady(renamed(ANSWERS[name]["answer"])))


def test_queries_by_id_need_no_folder(copy, capsys):
    answer = run(capsys, *ANSWERS["by-id"]["command"])
    recorded = renamed(ANSWERS["by-id"]["answer"])
    for hit in (*answer["hits"], *recorded["hits"]):
        hit["path"] = Path(hit["path"]).name
    assert_same(steady(answer), steady(recorded))
