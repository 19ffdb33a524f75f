"""Few modules hold the gallery's SQL, so that a change of the tables is a change of few files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
RUNTIME = "runtime/nsfse_runtime/"
WITH_SQL = [f"{RUNTIME}gallery/{name}.py" for name in ("gallery_file", "salvage", "schema", "sqlite_file", "store")]
WITH_SQL += [f"{RUNTIME}stores/postgres_tables.py"]
SQL = re.compile(r"SELECT |INSERT |UPDATE .* SET|DELETE FROM|CREATE TABLE")


def test_only_these_modules_of_the_gallery_hold_sql() -> None:
    modules = [path for top in ("nsfse", "export", "runtime", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    with_sql = [path.relative_to(ROOT).as_posix() for path in modules if SQL.search(path.read_text("utf-8"))]
    assert len(modules) > 100 and sorted(with_sql) == WITH_SQL
