"""The site: every page is in its navigation, and docs/check_site.py finds what it is there to find."""

import re
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[3]
faults = run_path(str(ROOT / "docs" / "check_site.py"))["faults"]


def test_the_navigation_names_every_page_once():
    docs = ROOT / "docs"
    named = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    decisions = {path for path in docs.glob("adr/*.md") if path.name != "index.md"}
    assert sorted(named) == sorted(str(path.relative_to(docs)) for path in {*docs.rglob("*.md")} - decisions)
    index = (docs / "adr" / "index.md").read_text("utf-8")
    assert all(f"({path.name})" in index for path in decisions), "the index of decisions lacks one"


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ('<a href="https://example.org/">a link may lead away</a><img src="a.png"><a href="#top">up</a>', None),
        ('<link rel="stylesheet" href="https://fonts.example.org/a.css">', "fetches https://fonts.example.org/a.css"),
        ('<script src="//cdn.example.org/a.js"></script>', "fetches //cdn.example.org/a.js"),
        ('<img src="b.png">', "needs b.png, which is not there"),
        ('<a href="other.html#top">', "needs other.html#top, which is not there"),
        (f"<p>{ROOT}/docs</p>", "names a path of this machine"),
        ("<p>/home/somebody/x</p>", "names a path of this machine"),
    ],
)
def test_the_site_needs_nothing_from_elsewhere(tmp_path, monkeypatch, page, fault):
    monkeypatch.setenv("HOME", "/home/somebody")  # A checkout beneath the home folder names both.
    monkeypatch.chdir(ROOT)
    (tmp_path / "a.png").touch()
    (tmp_path / "index.html").write_text(f"<!doctype html>{page}")
    found = faults(tmp_path)
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]


def test_no_site_is_a_fault(tmp_path):
    assert faults(tmp_path)
