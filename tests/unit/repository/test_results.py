"""The results: their pages are what docs/write_results.py writes, and each figure has a command that exists."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"
SCRIPT = run_path(str(ROOT / "docs" / "write_results.py"))
ENTRIES = [
    pytest.param(entry, id=f"{topic}-{name}")
    for topic in SCRIPT["TOPICS"]
    for name, entry in SCRIPT["load"](topic)["entries"].items()
]
HISTORY = re.compile(
    r"\b(?:of before|code of|once more|(?:a|the) (?:day|week)|yesterday|not kept|(?:old|new|slow)er (?:machine|day)"
    r"|clean clone|snapshot)\b",
    re.IGNORECASE,
)

DIALECT = re.compile(r"\b(?:pictures?|told|asked|kept|room|road|box|shelf|door|floor|house|lies)\b", re.IGNORECASE)


def test_the_pages_are_what_the_script_writes():
    pages = SCRIPT["pages"]()
    assert set(pages) == set(RESULTS.glob("*.md"))
    assert {path.stem for path in RESULTS.glob("*.json")} == set(SCRIPT["TOPICS"])
    changed = [path.name for path, text in pages.items() if path.read_text("utf-8") != text]
    assert not changed, "python docs/write_results.py"


def test_results_tell_no_history():
    for path in RESULTS.glob("*.md"):
        assert not HISTORY.search(" ".join(path.read_text("utf-8").split())), path.name


@pytest.mark.parametrize("folder", ["results", "research-log"])
def test_pages_are_narrow_and_plain(folder):
    for path in (ROOT / "docs" / folder).glob("*.md"):
        text = path.read_text("utf-8")
        assert max(map(len, text.splitlines())) <= SCRIPT["WIDTH"], path.name
        assert not DIALECT.search(re.sub(r"(?:drawn|photo)-box|make box", "", text)), path.name


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_complete(entry):
    needed = ("title", "protocol", "seeds", "hardware", "date", "commit", "commands", "columns")
    assert all(entry[name] for name in needed) and ("rows" in entry) != ("file" in entry)
    rows = SCRIPT["rows_of"](entry)
    assert rows and {len(row) for row in rows} == {len(entry["columns"])}
    assert re.fullmatch(r"[0-9a-f]{7}", entry["commit"]) and re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    if "plot" in entry:
        assert (RESULTS / entry["plot"]["file"]).exists()


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_command_exists(entry):
    for command in entry["commands"]:
        words = shlex.split(command.partition(" > ")[0])
        words = [word for word in words if not re.fullmatch(r"[A-Z_0-9]+=\S*", word)]
        check(*(words[1:] if words[0] == "time" else words))


def check(program, *words):
    if program == "nsfse":
        pytest.importorskip("onnxruntime")
        from tests.documented import parse

        parse([word for word in words if word != "--help"] or ["doctor"])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words and set(words) <= set(targets)
    elif program == "python" and words[:2] == ("-m", "pytest"):
        assert all((ROOT / word).exists() for word in words[2:])
    elif program == "python":
        source = (ROOT / words[0]).read_text("utf-8")
        assert not [word for word in words if word.startswith("--") and f'"{word}"' not in source], words
    else:
        assert program in (".ci/run", "schemathesis"), f"{program}: unknown"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (6174, "6,174"), (0.93, "0.930"), ([1.26, 0.5], "1.260 ± 0.500"), ("drawn", "drawn")],
)
def test_cells(value, text):
    assert SCRIPT["cell"](value, 3) == text


def test_a_long_command_is_broken_before_its_options():
    lines = SCRIPT["code"]("nsfse bench accuracy -o table " + "--set train.epochs=3 " * 8)
    assert len(lines) > 1 and all(line.endswith(" \\") for line in lines[:-1]) and not lines[-1].endswith("\\")
    assert all(line.lstrip().startswith("--set") for line in lines[1:])


def test_rows_are_selected_from_the_output_of_a_command():
    output = {"auc": 0.91234, "all": {"hits": 3}, "kinds": {"colour": {"hits": 2, "time": {"p50": 1.5}}}}
    chosen = {"rows": ["all", "kinds.*"], "values": ["name", "hits", "time.p50", "/auc"], "names": {"all": "over all"}}
    assert SCRIPT["select"](output, chosen) == [["over all", 3, None, 0.9123], ["colour", 2, 1.5, 0.9123]]
    rows = [{"method": "a", "r1": 1.26, "r1_std": 0.5}, {"method": "b", "r1": 2.0, "r1_std": 0.5}]
    chosen = {"rows": ["rows"], "where": {"method": ["a"]}, "values": ["method", "r1±r1_std"]}
    assert SCRIPT["select"]({"rows": rows}, chosen) == [["a", [1.26, 0.5]]]
    assert SCRIPT["select"](rows, {"rows": [""], "values": ["r1"]}) == [[1.26], [2.0]]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_rows_are_taken_from_a_file(tmp_path):
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    shutil.copy(ROOT / "docs" / "write_results.py", tmp_path / "docs")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), (*author, "commit", "-q", "--allow-empty", "-m", "a")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "out.json").write_text(json.dumps({"reliability": [{"confidence": 0.5, "right": 0.25, "count": 4}]}))
    script = [sys.executable, "docs/write_results.py", "confidence", "reliability", "out.json"]
    subprocess.run(script, cwd=tmp_path, check=True)
    entry = json.loads((tmp_path / "docs/results/confidence.json").read_text("utf-8"))["entries"]["reliability"]
    assert entry["rows"] == [[0.5, 0.25, 4]] and re.fullmatch("[0-9a-f]{7}", entry["commit"])
    assert "| 0.500 | 0.250 | 4 |" in (tmp_path / "docs/results/confidence.md").read_text("utf-8")


def test_json_has_a_row_on_a_line():
    tree = {"rows": [["a", [1.26, 0.5], None], ['b " ]', -2, 0.1]], "notes": ["x" * 90, "y" * 90]}
    text = SCRIPT["dump"](tree)
    assert json.loads(text) == tree and '["a", [1.26, 0.5], null]' in text and '["b \\" ]", -2, 0.1]' in text


def test_what_evaluate_prints_has_what_is_selected(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from nsfse.cli import app
    from tests.documented import lay

    lay(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        app.main(["evaluate", "bundle", "QUERY_SET", "--json"])
    found = json.loads(capsys.readouterr().out)
    (row,) = SCRIPT["select"](found, SCRIPT["load"]("drawn")["entries"]["drawn"]["select"])
    assert row[:2] == ["colours", 1] and all(isinstance(value, float) for value in row[2:5])
