"""The README's five lines are the example's, and no link between the documents is dead."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_five_lines_are_the_example():
    example = (ROOT / "examples" / "five_lines.py").read_text("utf-8")
    assert example[example.index("from nsfse_runtime") :].strip() in README


def test_no_link_between_the_documents_is_dead():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"


def test_the_citation_is_of_this_version():
    import nsfse

    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == nsfse.__version__
