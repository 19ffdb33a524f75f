"""The README's five lines are the example's, and no link between the documents is dead."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("folder", ["nsfse", "export/nsfse_export", "runtime/nsfse_runtime"])
def test_the_architecture_page_names_each_package_and_module_beside_them(folder):
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    entries = [path for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries if not path.name.startswith("__")]
    missing = [name for name in names if f"`{name}`" not in page]
    assert len(names) > 5 and not missing, f"docs/architecture.md lacks {missing}"
