"""The code in README, CONTRIBUTING and docs/ is run, or at least parsed by what would run it.

- ```python: the blocks of a page are one program, run in order in the folder of tests/documented.py.
- ```sh and ```console: `nsfse ...` is run there. Of pip, make, python, curl and docker what can be known is checked:
  extras, targets, files and their options, routes and their fields.
- ```toml, ```json, ```yaml: read; a TOML file that sets a run is read as nsfse reads it.
- A line `<!-- parsed only: WHY -->` before a block: commands are parsed by the program, Python's imports are made, no
  more. So are commands in blocks that are indented, which stand beside measurements.
"""

import ast
import json
import re
import shlex
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from nsfse.cli import app
from tests.documented import index, lay, parse

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:^<!-- parsed only: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
INDENTED = re.compile(r"(?<=\n\n)(?: {4}(?:nsfse|python|pip|torchrun) .*\n)(?: {4,}.*\n)*")
# A service in a block that is not marked would go on for ever.
pytestmark = pytest.mark.timeout(200)


class Block:
    """One block of a page: where it is, what kind, its code, and why it is not run."""

    def __init__(self, page, text, match):
        self.why, self.kind, self.code = match.groups() if match.re is FENCE else ("", "sh", match[0])
        self.runs = self.why is None
        self.place = f"{page.name}:{text[: match.start()].count(chr(10)) + 1}"


@cache
def blocks(page):
    text = page.read_text("utf-8")
    fenced = [(match.start(), Block(page, text, match)) for match in FENCE.finditer(text)]
    assert 2 * len(fenced) == len(re.findall("^```", text, re.MULTILINE)), f"{page.name}: a block is not seen"
    bare = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    assert "```" not in bare, f"{page.name}: a block is not closed, or it has more than a kind after its ```"
    indented = [(len(text), Block(page, bare, match)) for match in INDENTED.finditer(bare)]
    return [block for _, block in sorted((*fenced, *indented), key=lambda pair: pair[0])]


def of_kind(*kinds):
    found = [(page, [block for block in blocks(page) if block.kind in kinds]) for page in PAGES]
    return [pytest.param(each, id=page.name) for page, each in found if each]


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    lay(folder)
    index(folder)
    return folder


def test_every_block_has_a_kind_that_is_checked():
    kinds = {block.kind: block.place for page in PAGES for block in blocks(page)}
    assert set(kinds) <= {"python", "sh", "console", "toml", "json", "yaml", "text"}, kinds
    texts = {block.place.split(":")[0] for page in PAGES for block in blocks(page) if block.kind == "text"}
    assert texts <= {"cli.md", "api.md", "architecture.md", "method.md"}, "text is generated, or a diagram"


@pytest.mark.parametrize("program", of_kind("python"))
def test_python_runs(program, laid, monkeypatch, capsys):
    monkeypatch.chdir(laid)
    names = {}
    for block in program:
        code = compile(block.code, block.place, "exec")
        if block.runs:
            exec(code, names)
        else:
            imports = [node for node in ast.parse(block.code).body if isinstance(node, ast.ImportFrom)]
            assert imports and all(hasattr(import_module(i.module), n.name) for i in imports for n in i.names)


@pytest.mark.parametrize("found", of_kind("sh", "console"))
def test_commands_run_or_are_parsed(found, laid, monkeypatch, capsys):
    monkeypatch.chdir(laid)
    for block in found:
        lines = commands(block)
        assert lines, block.place
        for words in lines:
            try:
                check(words, block.runs, capsys)
            except Exception as error:
                pytest.fail(f"{block.place}: {shlex.join(words)}: {error}")


def commands(block):
    """Split a block into commands, each a list of words."""
    text = re.sub(r"\\\n\s*", " ", block.code)
    lines = [line.strip() for line in text.splitlines()]
    if block.kind == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = next((at for at, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
            command = words[: words.index(">")] if ">" in words[:end] else words[:end]
            found.append([word for word in command if not re.fullmatch(r"[A-Z_]+=\S*", word)])
            words = words[end + 1 :]
    return found


def check(words, runs, capsys):
    program, *rest = words
    if program == "torchrun" or (program == "python" and rest[0] == "-m"):
        program, rest = rest[rest.index("-m") + 1], rest[rest.index("-m") + 2 :]
    if program == "nsfse":
        parse(rest)
        if runs:
            run(rest, capsys)
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if not word.startswith("-"))
    elif program == "python":
        source = (ROOT / rest[0]).read_text("utf-8")
        unknown = [word for word in rest if word.startswith("-") and f'"{word}"' not in source]
        assert not unknown, f"{rest[0]} has no {unknown}"
    elif program == "pip":
        known = {
            "nsfse",
            *tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"],
        }
        assert rest[0] in ("install", "wheel")
        for name in rest[1:]:
            what, _, extras = name.removesuffix("]").partition("[")
            words = re.findall(r"[\w-]+", extras if what.endswith(".whl") else f"{what} {extras}")
            assert "nsfse" not in what or set(words) <= known, f"no extra of {name}"
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert rest and set(word for word in rest if "=" not in word) <= set(targets)
    elif program == "curl":
        check_request(rest)
    else:
        assert program in ("docker", "sudo", "systemctl", "openssl", "install"), f"{program}: who knows what it does?"
        missing = [word for word in rest if word.startswith("deploy/") and not (ROOT / word).exists()]
        assert not missing, f"there is no {missing}"


def run(words, capsys):
    with pytest.raises(SystemExit) as stop:
        app.main(words)
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and out, err


def check_request(words):
    """Check a curl: a route that is there, and fields that it takes."""
    from nsfse_runtime.server.routes import ROUTES

    (url,) = (word for word in words if word.startswith("http"))
    path = url.split("?")[0].split("/", 3)[3]
    route = next(each for each in ROUTES if each.path == f"/{path}")
    fields = [words[at + 1].split("=")[0] for at, word in enumerate(words) if word == "-F"]
    assert set(fields) <= set(route.body.__struct_encode_fields__ if route.body else ()), fields


def test_the_readme_shows_what_the_program_prints(laid, monkeypatch, capsys):
    monkeypatch.chdir(laid)
    (block,) = (block for block in blocks(ROOT / "README.md") if block.kind == "console")
    (words,) = commands(block)
    with pytest.raises(SystemExit):
        app.main(words[1:])
    printed, shown = capsys.readouterr().out, block.code.partition("\n")[2]
    # Times differ, and scores may in their last digit on another processor. Confidences, and so matches, depend on the
    # gallery, which is a part of the demo's here.
    numbers = re.compile(r"(?:(?:yes|no ) )?\d\.\d\d|\d+(?= ms)")
    assert numbers.sub("#", printed) == numbers.sub("#", shown)


@pytest.mark.parametrize("found", of_kind("toml"))
def test_toml_is_what_nsfse_reads(found):
    from nsfse.config import Config, parse_config

    for block in found:
        tree = tomllib.loads(block.code)
        if set(tree) <= set(Config.__struct_fields__):
            parse_config(tree, block.place)


@pytest.mark.parametrize("found", of_kind("json"))
def test_json_is_json(found):
    for block in found:
        for line in block.code.splitlines() if block.code.count("\n{") else [block.code]:
            json.loads(line)


def test_the_form_of_an_answer_is_that_of_the_document(laid, monkeypatch, capsys):
    monkeypatch.chdir(laid)
    with pytest.raises(SystemExit):
        app.main(["query", "dress.jpg", "make it red", "-g", "my.gallery", "--json"])
    real = json.loads(capsys.readouterr().out)
    told = json.loads(next(block.code for block in blocks(ROOT / "docs" / "json.md") if block.kind == "json"))
    assert list(told) == list(real)
    assert list(told["hits"][0]) == list(real["hits"][0])
    assert list(told["hits"][0]["evidence"][0]) == list(real["hits"][0]["evidence"][0])


def test_every_option_named_in_a_sentence_is_there():
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    known = {
        *OPTION.findall(sources + (ROOT / "docs" / "cli.md").read_text("utf-8")),
        "--nproc-per-node",
        "--test",
    }  # torchrun, node
    for page in PAGES:
        spans = re.findall(r"`[^`\n]+`", FENCE.sub("", page.read_text("utf-8")))
        unknown = {option for span in spans for option in OPTION.findall(span)} - known
        assert not unknown, f"{page.name}: {sorted(unknown)}"
