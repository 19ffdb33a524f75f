"""What tests of the promises on galleries share, and the table that `make promises` ends with."""

import re
from collections import Counter, defaultdict
from pathlib import Path

from tests.gallery_fixtures import gallery, photos, scorer  # noqa: F401 (fixtures)
from tests.promises.counts import FULL

_ELSEWHERE = {"test_loop.py": "P9", "test_export.py": "P10"}


def pytest_terminal_summary(terminalreporter):
    """Print how many tests of each promise passed, and how many did not."""
    if not FULL:
        return
    results = defaultdict(Counter)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            file = Path(report.nodeid.split("::")[0]).name
            numbers = [f"P{int(number)}" for number in re.findall(r"_p(\d\d)", file)]
            results[" ".join(numbers) or _ELSEWHERE.get(file, file)][outcome] += 1
    terminalreporter.section("promises")
    for promise, counts in sorted(results.items(), key=lambda item: int(re.sub(r"\D.*", "", item[0][1:]) or 99)):
        shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        verdict = (
            "holds" if set(counts) == {"passed"} else "fails" if counts.keys() & {"failed", "error"} else "untried"
        )
        terminalreporter.line(f"{promise:<8} {verdict:<7} {shown}")
