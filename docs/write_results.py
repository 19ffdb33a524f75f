"""Write the pages of docs/results from the JSON files beside them.

python docs/write_results.py

A topic is one JSON file; its entries become the sections of one page. An entry has the rows of a table, or names the
output of a command and which of its values to show.
"""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TOPICS = (
    "demo", "drawn", "products", "methods", "queries", "evidence", "confidence", "export",
    "speed", "indexing", "first-stage", "serving", "robustness",
)  # fmt: skip
WIDTH = 100
NUMBER = re.compile(r"[*+−-]*\d|–$")

INTRO = """\
# Results

Every figure here comes from a command that stands beside it.
History, failed attempts and figures that no command repeats are in the
[research log](../research-log/2026-11.md).
"""

READING = """\
## How to read the tables

- R@K: percent of queries with a right image among the first K results.
- hard-negative@1: percent of queries whose first result is wrong in one attribute only. Lower is
  better.
- Paraphrase gap: R@1 of the best phrasing less R@1 of the worst, in points. Lower is better.
- One seed unless a table says otherwise. Differences below 1.5 points on 1,500 queries are noise.
- Scores of different protocols or galleries are not comparable.
- *Recorded* names the date and the commit that added the figures to this repository. Entries of
  different dates come from different trainings of one preset.
- Python 3.11, torch 2.13.0 (CPU), onnxruntime 1.32.0 and numpy 2.4.6 unless stated otherwise.

## How to renew a result

1. Run the command of the entry; most take `--json FILE`.
2. Put the figures into the entry's JSON file, with date, commit and hardware.
3. Run `python docs/write_results.py`. A test compares the pages with the JSON.
"""


def load(topic: str) -> dict[str, Any]:
    """Return one topic's JSON."""
    found: dict[str, Any] = json.loads((RESULTS / f"{topic}.json").read_text("utf-8"))
    return found


def table(columns: list[str], rows: list[list[Any]]) -> list[str]:
    """Return the lines of a Markdown table; columns of numbers are aligned to the right."""
    texts = [[cell(value) for value in row] for row in rows]
    rules = ["---:" if all(NUMBER.match(text) for text in column) else "---" for column in zip(*texts, strict=True)]
    return [f"| {' | '.join(row)} |" for row in [columns, rules, *texts]]


def cell(value: Any) -> str:
    """Return a value as the text of a cell: no value is a dash, and thousands are set apart."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def rows_of(entry: dict[str, Any]) -> list[list[Any]]:
    """Return the rows of an entry, or those it selects from a command's output."""
    if "rows" in entry:
        rows: list[list[Any]] = entry["rows"]
        return rows
    output = entry["output"]
    found = json.loads((RESULTS / output["file"]).read_text("utf-8"))[output["list"]]
    chosen = [row for row in found if all(row[key] in values for key, values in output.get("where", {}).items())]
    return [[_value(row, key, output["digits"]) for key in output["keys"]] for row in chosen]


def _value(row: dict[str, Any], key: str, digits: int) -> Any:
    """Return one value of a command's output; `a±b` joins a mean and its standard deviation."""
    values = [row[name] for name in key.split("±")]
    if not isinstance(values[0], float):
        return values[0]
    return " ± ".join(f"{value:.{digits}f}" for value in values)


def section(entry: dict[str, Any]) -> list[str]:
    """Return the lines of one entry."""
    lines = [f"## {entry['title']}", "", *wrap(entry["protocol"]), ""]
    lines += [*table(entry["columns"], rows_of(entry)), ""]
    for note in entry.get("notes", []):
        lines += wrap(note, "- ")
    if "notes" in entry:
        lines.append("")
    if "plot" in entry:
        lines += [f"![{entry['plot']['alt']}]({entry['plot']['file']})", ""]
    lines += ["Command:", "", *(line for command in entry["commands"] for line in code(command)), ""]
    lines += wrap(f"Seeds: {entry['seeds']}. Hardware: {entry['hardware']}.")
    lines += [f"Recorded: {entry['date']}, commit `{entry['commit']}`.", ""]
    return lines


def code(command: str) -> list[str]:
    """Return a command as an indented block, broken before an option where it is long."""
    lines = [""]
    for part in command.replace(" --", "\n--").splitlines():
        if len(lines[-1]) + len(part) > WIDTH - 10:
            lines.append("    " + part)
        else:
            lines[-1] = f"{lines[-1]} {part}" if lines[-1] else part
    return [f"    {line} \\" for line in lines[:-1]] + ["    " + lines[-1]]


def wrap(text: str, bullet: str = "") -> list[str]:
    """Return a paragraph in lines of at most WIDTH characters."""
    return textwrap.wrap(
        bullet + text, WIDTH, subsequent_indent=" " * len(bullet), break_long_words=False, break_on_hyphens=False
    )


def page(topic: str) -> str:
    """Return the page of one topic."""
    found = load(topic)
    lines = [f"# {found['title']}", "", *wrap(found["summary"]), ""]
    for entry in found["entries"].values():
        lines += section(entry)
    return "\n".join(lines)


def index() -> str:
    """Return the first page: what each topic is about, and how to read its tables."""
    found = {topic: load(topic) for topic in TOPICS}
    rows = [[f"[{each['title']}]({topic}.md)", each["headline"]] for topic, each in found.items()]
    return "\n".join([INTRO, *table(["Topic", "In short"], rows), "", READING])


def pages() -> dict[Path, str]:
    """Return the text of every page by its path."""
    return {RESULTS / "index.md": index()} | {RESULTS / f"{topic}.md": page(topic) for topic in TOPICS}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, "utf-8")
