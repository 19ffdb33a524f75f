"""Index and query through the command line where torch cannot be imported, on the small bundle of tests/golden."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

BUNDLE = Path(__file__).parents[1] / "golden" / "bundle"
ABSENT = ("torch", "transformers", "onnx", "onnxscript")

pytestmark = pytest.mark.skipif(not BUNDLE.exists(), reason="no golden bundle")


def nsfse(*arguments, absent=ABSENT, cwd=None, stdout=subprocess.PIPE):
    """Run the command line in a process of its own, in which `absent` modules cannot be imported."""
    code = (
        f"import sys; sys.path[:0] = {[str(Path(entry).resolve()) for entry in sys.path if entry]}; "
        f"sys.modules.update(dict.fromkeys({absent})); from nsfse.cli.app import main; main()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    out = {"stdout": stdout, "stderr": subprocess.PIPE}
    return subprocess.run(command, text=True, encoding="utf-8", timeout=200, cwd=cwd, **out)


def draw(path, colour, size=(36, 60)):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((4, 4, size[0] - 4, size[1] - 4), fill=colour)
    image.save(path)


@pytest.fixture(scope="module")
def word():
    vocabulary = json.loads((BUNDLE / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    return next(word for word in sorted(vocabulary) if word.isalpha() and len(word) > 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, colour in enumerate(("red", "blue", "green", "yellow", "black", "purple", "orange", "brown")):
        draw(folder / f"{colour}.png", colour, (30 + 4 * number, 60))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    return folder


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("gallery") / "my.gallery"
    (path.parent / "table.csv").write_text("id,kind\nred,warm\norange,warm\nblue,cold\n", "utf-8")
    done = nsfse("index", path, images, "-b", BUNDLE, "--metadata", path.parent / "table.csv", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["schema_version"], report["added"], report["encoded"]) == (2, 8, 8)
    assert [name for name, _ in report["failed"]] == ["broken.jpg"]
    return path


def test_indexing_again_encodes_nothing(gallery, images):
    done = nsfse("index", gallery, images, "--json")
    assert json.loads(done.stdout)["encoded"] == 0


def test_a_query_by_file_answers_with_evidence(gallery, images, word):
    done = nsfse("query", images / "red.png", f"{word} {word}", "-g", gallery, "-k", 3, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["schema_version"] == 2
    assert len(result["hits"]) == 3
    scores = [hit["score"] for hit in result["hits"]]
    assert scores == sorted(scores, reverse=True)
    for hit in result["hits"]:
        assert set(hit) == {"id", "path", "score", "is_match", "evidence", "confidence", "metadata", "duplicates"}
        told = {"word", "score", "matched", "weight", "regions"}
        assert [set(evidence) for evidence in hit["evidence"]] == [told] * 2
    assert {"total", "stage1", "stage2"} <= set(result["timings_ms"])


def test_a_query_by_id_leaves_the_reference_out(gallery, word):
    done = nsfse("query", "red", word, "-g", gallery, "--json")
    assert len(hits := json.loads(done.stdout)["hits"]) == 7
    assert "red.png" not in [hit["id"] for hit in hits]


def test_conditions_are_a_mask_before_the_ranking(gallery, word):
    done = nsfse("query", "blue", word, "-g", gallery, "--where", "kind=warm", "--json")
    assert sorted(hit["id"] for hit in json.loads(done.stdout)["hits"]) == ["orange.png", "red.png"]


def test_text_and_images_for_people(gallery, word, tmp_path):
    done = nsfse("query", "red", word, "-g", gallery, "--png", tmp_path / "s.png", "--html", tmp_path / "s.html")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split() == ["rank", "score", "match", "id", "words"]
    assert Image.open(tmp_path / "s.png").format == "PNG"
    assert "<script" not in (tmp_path / "s.html").read_text("utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_gets_a_table_in_colours_and_a_pipe_plain_text(gallery, word, monkeypatch):
    pytest.importorskip("rich")
    leader, follower = os.openpty()
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    arguments = ("query", "red", word, "-g", gallery, "-k", 2, "--no-preview")  # more would fill the terminal's buffer
    done = nsfse(*arguments, stdout=follower)
    os.close(follower)
    shown = b""
    while b" ms" not in shown:
        shown += os.read(leader, 65536)
    os.close(leader)
    assert (done.returncode, done.stderr) == (0, "")
    assert b"name" in shown and b"\x1b[" in shown
    assert "\x1b" not in nsfse(*arguments).stdout


def test_info_and_doctor_know_bundle_and_gallery(gallery):
    assert json.loads(nsfse("info", BUNDLE, "--json").stdout)["kind"] == "bundle"
    assert json.loads(nsfse("info", gallery, "--json").stdout)["images"] == 8
    checks = json.loads(nsfse("doctor", "-b", BUNDLE, "--json").stdout)["checks"]
    assert checks["query the bundle"].startswith("ok")


@pytest.fixture
def other(tmp_path):
    """A whole bundle with another fingerprint."""
    from nsfse_runtime.inference.manifest import read_manifest, write_manifest

    shutil.copytree(BUNDLE, tmp_path / "other")
    with (tmp_path / "other" / "tokenizer.json").open("ab") as file:
        file.write(b"\n")
    write_manifest(tmp_path / "other", read_manifest(BUNDLE))
    return tmp_path / "other"


@pytest.fixture
def damaged(tmp_path):
    shutil.copytree(BUNDLE, tmp_path / "damaged")
    graph = tmp_path / "damaged" / "pair.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    return tmp_path / "damaged"


@pytest.fixture
def newer(tmp_path):
    shutil.copytree(BUNDLE, tmp_path / "newer")
    manifest = tmp_path / "newer" / "manifest.json"
    tree = json.loads(manifest.read_text("utf-8"))
    manifest.write_text(json.dumps(tree | {"format_version": 99}), "utf-8")
    return tmp_path / "newer"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"image": "nowhere.png"}, 3, "nowhere.png"),
        ({"image": "{images}/broken.jpg"}, 3, "broken.jpg"),
        ({"image": "{images}"}, 3, ""),
        ({"text": ""}, 3, "no words"),
        ({"text": "   "}, 3, "no words"),
        ({"text": "x" * 100_000}, 3, "100000 characters"),
        ({"text": "qqqzx zzxqv"}, 3, "knows none of the words"),
        ({"bundle": "{other}"}, 4, "another bundle"),
        ({"bundle": "{damaged}"}, 5, "is damaged"),
        ({"bundle": "{newer}"}, 4, "format 99"),
        ({"bundle": "nowhere"}, 3, "nowhere"),
        ({"gallery": "nowhere.gallery"}, 3, "no gallery at nowhere.gallery"),
        ({"gallery": "{images}/red.png"}, 5, "red.png"),
        ({"more": ["--where", "warm"]}, 2, "COLUMN=VALUE"),
        ({"more": ["--min-confidence", "2"]}, 2, "--min-confidence"),
        ({"more": ["--min-confidence", "0.5"]}, 2, "export it again"),
        ({"more": ["--where", "colour=red"]}, 2, "kind"),
        ({"more": ["--png", "nowhere/sheet.png"]}, 3, "nowhere"),
        ({"more": ["--html", "nowhere/page.html"]}, 3, "nowhere"),
        ({"absent": (*ABSENT, "onnxruntime")}, 2, 'pip install "nsfse[cpu]"'),
    ],
)
def test_bad_input_is_one_line_and_its_exit_code(
    gallery, images, word, other, damaged, newer, tmp_path, change, code, words
):
    places = {"images": images, "other": other, "damaged": damaged, "newer": newer}

    def chosen(name, usual):
        return str(change.get(name, usual)).format(**places)

    (tmp_path / "here").mkdir()
    done = nsfse(
        *("query", chosen("image", images / "red.png"), chosen("text", word), "-g", chosen("gallery", gallery)),
        *("-b", chosen("bundle", BUNDLE), *change.get("more", ())),
        absent=change.get("absent", ABSENT),
        cwd=tmp_path / "here",
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("nsfse: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_training_without_torch_names_its_extra(tmp_path):
    done = nsfse("train", "-o", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert 'pip install "nsfse[train]"' in done.stderr


def test_the_five_lines_of_the_readme(images, word, tmp_path):
    example = Path(__file__).parents[2] / "examples" / "five_lines.py"
    if not example.exists():
        pytest.skip("the examples are not beside the tests")
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    shutil.copytree(images, tmp_path / "photos")
    draw(tmp_path / "dress.jpg", "red")
    code = f"import sys; sys.path[:0] = {[str(Path(entry).resolve()) for entry in sys.path if entry]}\n"
    code += example.read_text("utf-8").replace("make it red", word)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 8
