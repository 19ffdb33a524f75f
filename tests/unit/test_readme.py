"""The README shows what there is: each module once in its tree, its five lines the example's, no dead link."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_tree_names_every_module_and_nothing_else():
    tree = README[README.index("## The files") :]
    named = re.findall(r"^ +(?:[\w/]*/)?(\w+\.py)\b", tree, re.MULTILINE)
    rooms = (ROOT / "nsfse", ROOT / "export", ROOT / "runtime", ROOT / "benchmarks", ROOT / "examples")
    there = [path.name for room in rooms for path in room.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted([*there, "cli.py"])


def test_the_five_lines_are_the_example():
    example = (ROOT / "examples" / "five_lines.py").read_text("utf-8")
    assert example[example.index("from nsfse_runtime") :].strip() in README


def test_no_link_between_the_documents_is_dead():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
