"""Runs, demos, query sets and submissions are not written among somebody else's files."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from nsfse.benchmark.result_files import ResultFiles
from nsfse.data.synthetic.draw import draw_query_set
from nsfse.demo.pipeline import run_demo
from nsfse.evaluation.cirr_submission import _refuse_others as refuse_submission
from nsfse.training.loop import _refuse_others as refuse_run
from nsfse_runtime.errors import OutputError


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["holiday.jpg", "config.json", "notes/a.txt"])
def test_a_run_goes_into_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    refuse_run(tmp_path)
    refuse_run(tmp_path / "new")
    (tmp_path / "tokenizer.json").write_text("{}")  # killed before its header was written
    refuse_run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"model_type": "clip"}')
    (tmp_path / "model.safetensors").write_bytes(b"somebody's weights")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="choose"):
        refuse_run(tmp_path)
    assert listing(tmp_path) == before


def test_a_query_set_is_drawn_over_one_of_its_kind_alone(tmp_path: Path) -> None:
    place = tmp_path / "set"
    draw_query_set(place, items=16, size=16)
    draw_query_set(place, items=16, size=16)
    for name, text in (("queries.jsonl", '{"protocol": "mine"}\n'), ("photo.jpg", "x")):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_text(text)
        (other / "items.csv").write_text("id\nmine\n")
        before = listing(other)
        with pytest.raises(OutputError):
            draw_query_set(other, items=16, size=16)
        assert listing(other) == before


def test_a_demo_and_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(OutputError, match=r"photo\.jpg"):
        run_demo(tmp_path)
    with pytest.raises(OutputError, match=r"photo\.jpg"):
        ResultFiles(tmp_path)
    assert listing(tmp_path) == {"photo.jpg": b""}


def test_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "recall.json"
    refuse_submission(path)
    path.write_text('{"version": "rc2", "metric": "recall"}')
    refuse_submission(path)
    for text in ("[1]", "no JSON", '{"metric": "mAP"}'):
        path.write_text(text)
        with pytest.raises(OutputError, match="is no submission"):
            refuse_submission(path)
