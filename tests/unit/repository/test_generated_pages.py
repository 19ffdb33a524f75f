"""The generated pages are what their scripts write today."""

from pathlib import Path
from runpy import run_path

import pytest

pytest.importorskip("torch")

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", ["api", "cli"])
def test_a_page_is_what_its_script_writes(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    script = run_path(str(DOCS / f"write_{name}.py"))
    assert (DOCS / f"{name}.md").read_text("utf-8") == script["page"](), f"run: python docs/write_{name}.py"


def test_google_sections_become_lists(tmp_path):
    script = run_path(str(DOCS / "write_api.py"))
    code = '''
def search(vector: "Floats", k: int = 10, *, exact: bool = False) -> list[int]:
    """Find the best rows.

    Args:
        vector: The query [d], of unit
            length.
        k: How many rows.

    Returns:
        The rows, best first.

    Raises:
        UsageError: `k` is 0.
    """
'''
    node = script["ast"].parse(code).body[0]
    text = "\n\n".join(script["describe"](node))
    assert "search(vector: Floats, k: int = 10, *, exact: bool = False) -> list[int]" in text
    assert "**Arguments**\n\n- `vector`: The query [d], of unit length.\n- `k`: How many rows." in text
    assert "**Returns**\n\nThe rows, best first." in text and "**Raises**\n\n- `UsageError`: `k` is 0." in text
