"""The results: their pages are what docs/write_results.py writes, and each figure has a command that exists."""

import json
import re
import shlex
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
        assert not DIALECT.search(re.sub(r"make box|drawn-box", "", text)), path.name


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_complete(entry):
    needed = ("title", "protocol", "seeds", "hardware", "date", "commit", "commands", "columns")
    assert all(entry[name] for name in needed) and ("rows" in entry) != ("output" in entry)
    rows = SCRIPT["rows_of"](entry)
    assert rows and {len(row) for row in rows} == {len(entry["columns"])}
    assert re.fullmatch(r"[0-9a-f]{7}", entry["commit"]) and re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    if "plot" in entry:
        assert (RESULTS / entry["plot"]["file"]).exists()


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_command_exists(entry):
    for command in entry["commands"]:
        words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_0-9]+=\S*", word)]
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
    ("value", "text"), [(None, "–"), (6174, "6,174"), (0.9, "0.9"), ("98.60", "98.60"), ("drawn", "drawn")]
)
def test_cells(value, text):
    assert SCRIPT["cell"](value) == text


def test_a_long_command_is_broken_before_its_options():
    lines = SCRIPT["code"]("nsfse bench accuracy -o table " + "--set train.epochs=3 " * 8)
    assert len(lines) > 1 and all(line.endswith(" \\") for line in lines[:-1]) and not lines[-1].endswith("\\")
    assert all(line.lstrip().startswith("--set") for line in lines[1:])


def test_output_of_a_command_is_selected(tmp_path):
    rows = [{"method": "a", "r1": 1.26, "r1_std": 0.5}, {"method": "b", "r1": 2.0, "r1_std": 0.5}]
    (tmp_path / "table.json").write_text(json.dumps({"rows": rows}))
    output = {"file": str(tmp_path / "table.json"), "list": "rows", "where": {"method": ["a"]}, "digits": 1}
    found = SCRIPT["rows_of"]({"output": output | {"keys": ["method", "r1±r1_std"]}})
    assert found == [["a", "1.3 ± 0.5"]]
