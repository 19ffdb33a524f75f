"""Checks of the source that no linter makes: modules stay short, and prose keeps to the field's words.

Run by `make lint`. Prints each fault on a line and exits with 1 where there is one.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("nsfse", "export", "runtime", "benchmarks", "examples")
MOST_LINES = 350
# Private words for image, announced and wanted. A quotation of a text, such as 'asked for red', may hold one.
WORDS = re.compile(r"(?<!['\"])\b(pictures?|told|asked)\b(?!['\"])", re.IGNORECASE)


def faults(path: Path) -> Iterator[str]:
    """Yield what is wrong with a module, a line each."""
    lines = path.read_text("utf-8").splitlines()
    name = path.relative_to(ROOT)
    if len(lines) > MOST_LINES:
        yield f"{name}: {len(lines)} lines; split it into modules of at most {MOST_LINES}"
    for number, line in enumerate(lines, 1):
        for word in WORDS.findall(line):
            yield f"{name}:{number}: {word!r} is no term of the field; see CONTRIBUTING.md"


def main() -> None:
    """Check all packages."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    found = [fault for path in paths for fault in faults(path)]
    print("\n".join(found) or f"{len(paths)} modules are short and speak plainly")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
