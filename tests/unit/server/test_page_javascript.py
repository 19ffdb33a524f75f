"""The page's JavaScript: its unit tests (tests/page), its syntax and a few rules, by Node.js without packages."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import nsfse_runtime

STATIC = Path(nsfse_runtime.__file__).parent / "server" / "static"
TESTS = Path(__file__).parents[2] / "page"
MODULES = {path.name: path.read_text("utf-8") for path in sorted(STATIC.glob("*.js"))}
HTML, CSS = ((STATIC / name).read_text("utf-8") for name in ("index.html", "page.css"))
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="no node on this machine: apt-get install nodejs")

_IMPORT = re.compile(r'^import\s+(.+?)\s+from\s+"\./([\w.]+)";$', re.MULTILINE | re.DOTALL)
_EXPORT = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)
FORBIDDEN = {
    "var": r"\bvar\s",
    "a loose comparison; == null is allowed": r"(?<![=!])[=!]=(?!=)(?! null\b)",
    "HTML from text": r"\b(?:inner|outer)HTML\b|insertAdjacentHTML|document\.write|\beval\(|new Function",
    "console": r"\bconsole\.",
    "debugger": r"\bdebugger\b",
}


def code_of(name):
    """Return a module without comments and strings; what a template inserts stays."""
    code = re.sub(r"(?m)(^|\s)//.*$", "", MODULES[name])
    return re.sub(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'', '""', code)


def names_of(clause):
    """Return the names that an import clause brings: `{ a, b }` or `* as panel`."""
    return re.findall(r"\w+", clause.removeprefix("* as "))


@needs_node
def test_javascript_units():
    environment = {**os.environ, "NSFSE_PAGE_MODULES": str(STATIC)}
    files = [str(path) for path in sorted(TESTS.glob("*.test.mjs"))]
    assert files
    run = subprocess.run([NODE, "--test", *files], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_node
@pytest.mark.parametrize("name", MODULES)
def test_javascript_syntax(name):
    run = subprocess.run([NODE, "--check", str(STATIC / name)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", MODULES)
def test_javascript_rules(name):
    code = code_of(name)
    assert {rule: found for rule, pattern in FORBIDDEN.items() if (found := re.findall(pattern, code))} == {}
    assert all(len(line) <= 130 for line in MODULES[name].splitlines())


@pytest.mark.parametrize("name", MODULES)
def test_imports_exist_and_are_used(name):
    body = _IMPORT.sub("", MODULES[name])
    for clause, module in _IMPORT.findall(MODULES[name]):
        exports = _EXPORT.findall(MODULES[module])
        names = names_of(clause)
        assert clause.startswith("* as ") or set(names) <= set(exports), module
        assert [imported for imported in names if not re.search(rf"\b{imported}\b", body)] == []
        if clause.startswith("* as "):
            assert set(re.findall(rf"\b{names[0]}\.(\w+)", body)) <= set(exports), module


@pytest.mark.parametrize("name", MODULES)
def test_exports_are_imported_somewhere(name):
    others = [text for other, text in MODULES.items() if other != name]
    others += [path.read_text("utf-8") for path in TESTS.glob("*.mjs")]
    unused = [export for export in _EXPORT.findall(MODULES[name]) if not re.search(rf"\b{export}\b", "\n".join(others))]
    assert unused == []


def test_ids_of_scripts_and_styles_are_in_the_page():
    ids = set(re.findall(r'\bid="([\w-]+)"', HTML))
    in_scripts = {found for text in MODULES.values() for found in re.findall(r'["` ]#([a-z][\w-]*)', text)}
    in_styles = set(re.findall(r"(?<![\w-])#([a-z][\w-]*)(?=[^{};]*\{)", CSS))
    labelled = set(re.findall(r'\b(?:for|aria-controls|aria-describedby)="([\w-]+)"', HTML))
    assert (in_scripts - {"fff", "copy-"}) | in_styles | labelled <= ids


def test_classes_of_styles_are_used():
    used = " ".join([HTML, *MODULES.values()])
    styled = set(re.findall(r"\.([a-z][\w-]+)(?=[^{};]*\{)", re.sub(r"/\*.*?\*/", "", CSS, flags=re.DOTALL)))
    assert [name for name in sorted(styled) if not re.search(rf"(?<![\w-]){name}(?![\w-])", used)] == []


def test_classes_that_scripts_look_for_exist():
    scripts = "\n".join(MODULES.values())
    selectors = re.findall(r'(?:find|closest|querySelector(?:All)?)\(\s*"([^"]*)"', scripts)
    wanted = {name for selector in selectors for name in re.findall(r"\.([a-z][\w-]*)", selector)}
    given = re.findall(r'class="([^"]*)"', HTML) + re.findall(r'className: [`"]([^`"]*)[`"]', scripts)
    given += re.findall(r'classList\.\w+\("([^"]*)"', scripts)
    assert len(wanted) > 5 and wanted - set(" ".join(given).split()) == set()
