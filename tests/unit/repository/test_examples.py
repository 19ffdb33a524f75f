"""The examples do what they say: run as a user runs them, on the golden bundle."""

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from PIL import Image

from nsfse_runtime.retrieval.retriever import Hit, WordEvidence
from tests.documented import lay

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def laid(tmp_path, monkeypatch):
    lay(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, capsys, name, *arguments):
    """Run an example as a program; return its lines."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_there_is_a_test_for_each_example():
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_file()) == [
        *("evaluation.py", "five_lines.py", "folder_search.py", "shop_catalogue.py", "tour.ipynb"),
    ]


def test_five_lines_print_the_hits(laid, monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "five_lines.py")
    # dress.jpg has the bytes of one of the six, which is therefore no answer.
    assert len(lines) == 5 and lines[0].split()[0].endswith(".png")


def test_a_folder_is_searched_and_what_cannot_be_read_is_told(laid, monkeypatch, capsys):
    (laid / "photos" / "broken.png").write_bytes(b"no image")
    head, left_out, *hits = run(
        monkeypatch, capsys, "folder_search.py", "bundle", "photos/", "photos/2-brown-dress.png", "make it white"
    )
    assert head == "6 images, 6 of them new" and left_out.startswith("left out: broken.png: ")
    assert len(hits) == 5, "the image asked with is one of the gallery, and not among its hits"
    assert "photos/2-brown-dress.png" not in {line.split()[2] for line in hits}
    again = run(
        monkeypatch, capsys, "folder_search.py", "bundle", "photos", "photos/2-brown-dress.png", "make it white"
    )
    assert again[0] == "6 images, 0 of them new" and again[2:] == hits


def test_a_shop_filters_and_answers_all_that_can_be_answered(laid, monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "shop_catalogue.py", "bundle", "photos", "items.csv")
    assert lines[0] == "6 images, 6 new, 0 rows without an image"
    assert lines[1] == "1-green-bag.png, in red, without stripes:", "there is one bag, so no other bag is found"
    assert [line.split(",")[0] for line in lines[2:]] == ["1-green-bag.png", "2-brown-dress.png", "sold out"]
    assert "is neither a file nor an image" in lines[-1]


def test_an_evaluation_scores_each_way(laid, monkeypatch, capsys):
    head, line = run(monkeypatch, capsys, "evaluation.py", "bundle", "QUERY_SET")
    assert head.split() == ["protocol", "queries", "composed", "image-only", "text-only"]
    name, queries, *scores = line.replace("/", " ").split()
    assert (name, queries) == ("colours", "1") and len(scores) == 6
    assert scores[1::2] == ["100.0"] * 3, "the best ten of five hold the right one"
    assert set(scores[0::2]) <= {"0.0", "100.0"}


@pytest.mark.parametrize("name", ["folder_search.py", "shop_catalogue.py", "evaluation.py"])
def test_an_error_is_one_line_and_no_arguments_are_help(monkeypatch, capsys, name):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, capsys, name)
    assert f"python examples/{name} BUNDLE" in str(stop.value)
    with pytest.raises(SystemExit) as stop:
        run(
            monkeypatch,
            capsys,
            name,
            "nowhere",
            *["photos"] * {"folder_search.py": 3, "shop_catalogue.py": 2}.get(name, 1),
        )
    assert "nowhere" in str(stop.value) and "\n" not in str(stop.value)


def test_the_notebook_runs_from_top_to_bottom(laid, capsys):
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), "clear the outputs"
    names, shown = {}, []
    for cell in cells:
        source = "".join(cell["source"]).replace("items=60", "items=24").replace("size=128", "size=48")
        shown.append(run_cell(source, names))
    images = [each for each in shown if isinstance(each, Image.Image)]
    assert [image.size for image in images[:3]] == [(128, 128), (7 * 128, 128), (6 * 128, 128)]
    assert len(images) == 4 and len(capsys.readouterr().out.splitlines()) == 6
    word = WordEvidence("red", 0.5, True, 1.0, regions=(0.3, -0.2))
    path = str(laid / "tour/images/test-000001.png")
    map_of_a_word = names["highlight"](Hit("a", path, 1.0, True, (word,)), (1, 2), height=64)
    left, right = (np.asarray(map_of_a_word)[:, columns].mean() for columns in (slice(0, 16), slice(48, 64)))
    assert left > right + 50, "light where the word is"


def test_the_notebook_of_the_docs_needs_the_package_alone(tmp_path):
    notebook = json.loads((EXAMPLES.parent / "docs" / "notebooks" / "search.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), "clear the outputs"
    absent = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnx', 'safetensors')))"
    offline = "from tests.offline import block_network; block_network()"
    path = f"import sys; sys.path[:0] = {[str(EXAMPLES.parent), *filter(None, sys.path)]}"
    program = "\n".join([path, absent, offline, *("".join(cell["source"]) for cell in cells)])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *hits = done.stdout.splitlines()
    assert head == "131 images, 131 encoded" and len(hits) == 18
    assert all(line.split()[-1][-1] in "+-" for line in hits[6:]), "composed hits have evidence"


def run_cell(source, names):
    """Run a cell; return what its last line is worth, which Jupyter shows."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(last, "cell", "eval"), names) if last else None
