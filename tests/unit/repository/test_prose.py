"""How README and docs are written: lines fit, the README is short, and words are the field's own."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
GENERATED = {DOCS / "cli.md", DOCS / "api.md"}
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"\"[^\"]*\"|`[^`]*`|“[^”]*”")


def lines_outside_code(page):
    """Return the lines of a page with an empty line for each line of code."""
    return FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text("utf-8")).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_fit(page):
    limit = 120 if page in GENERATED else 100
    long = [number for number, line in enumerate(lines_outside_code(page), 1) if len(line) > limit]
    assert not long, f"lines over {limit} characters: {long}"
    longest = max(map(len, page.read_text("utf-8").splitlines()))
    assert longest <= 120, f"a line of {longest} characters"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_words_are_the_fields_own(page):
    text = QUOTED.sub("", "\n".join(lines_outside_code(page)))
    found = re.findall(r"\b(?:pictures?|told|asked)\b", text, re.IGNORECASE)
    assert not found, f"say image, given, requested instead of {sorted(set(found))}"


def test_a_decision_fits_a_page():
    for page in DOCS.glob("adr/0*.md"):
        text = page.read_text("utf-8")
        assert len(text.splitlines()) <= 20, page.name
        assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Consequences")), page.name
