"""One module alone holds the gallery's SQL, so that a change of the tables is a change of one file."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
SQL = re.compile(r"SELECT |INSERT |UPDATE .* SET|DELETE FROM|CREATE TABLE")


def test_only_the_gallery_store_holds_sql() -> None:
    modules = [path for top in ("nsfse", "export", "runtime", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    with_sql = [path.relative_to(ROOT).as_posix() for path in modules if SQL.search(path.read_text("utf-8"))]
    assert len(modules) > 100 and with_sql == ["runtime/nsfse_runtime/gallery/store.py"]
