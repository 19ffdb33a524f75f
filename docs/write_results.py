"""Write the pages of docs/results from the JSON files beside them.

python docs/write_results.py                        write the pages
python docs/write_results.py TOPIC ENTRY OUTPUT     take an entry's rows from a command's JSON first

A topic is one JSON file; its entries become the sections of one page. An entry has the rows of a table, or names the
file that has them. Where a command writes JSON, `select` says which of its values are the rows.
"""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TOPICS = (
    "demo", "drawn", "wardrobe", "products", "methods", "queries", "evidence", "confidence", "export",
    "speed", "indexing", "first-stage", "serving", "stores", "robustness",
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

1. Run the commands of the entry. If the last one writes JSON, run
   `python docs/write_results.py TOPIC ENTRY OUTPUT.json`: it takes rows, date and commit.
2. Otherwise edit the entry's JSON file, and run `python docs/write_results.py`.
3. Correct hardware and notes. A test compares the pages with the JSON.
"""


def load(topic: str) -> dict[str, Any]:
    """Return one topic's JSON."""
    found: dict[str, Any] = json.loads((RESULTS / f"{topic}.json").read_text("utf-8"))
    return found


def table(columns: list[str], rows: list[list[Any]], digits: int | list[int] = 1) -> list[str]:
    """Return the lines of a Markdown table; columns of numbers after the first are aligned to the right."""
    places = digits if isinstance(digits, list) else [digits] * len(columns)
    texts = [[cell(value, place) for value, place in zip(row, places, strict=True)] for row in rows]
    rules = ["---:" if all(NUMBER.match(text) for text in column) else "---" for column in zip(*texts, strict=True)]
    rules[0] = "---"
    return [f"| {' | '.join(row)} |" for row in [columns, rules, *texts]]


def cell(value: Any, digits: int) -> str:
    """Return a value as the text of a cell: none is a dash, and a pair a mean with its standard deviation."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " ± ".join(cell(part, digits) for part in value)
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def rows_of(entry: dict[str, Any]) -> list[list[Any]]:
    """Return the rows of an entry, or those it selects from its file."""
    if "rows" in entry:
        rows: list[list[Any]] = entry["rows"]
        return rows
    return select(json.loads((RESULTS / entry["file"]).read_text("utf-8")), entry["select"])


def select(output: Any, chosen: dict[str, Any]) -> list[list[Any]]:
    """Return the rows that `chosen` selects from a command's output.

    Its `rows` are paths such as `kinds.*`, `where` keeps rows by a value, `values` are the cells (`a±b` a pair, `/a` a
    value of the whole output, `name` the last part of the path), and `names` replaces texts.
    """
    names, where = chosen.get("names", {}), chosen.get("where", {})
    found = [row for path in chosen["rows"] for row in _rows_at(output, path)]
    found = [row for row in found if all(row[key] in values for key, values in where.items())]
    cells = [[_value(row, output, key) for key in chosen["values"]] for row in found]
    return [[names.get(value, value) if isinstance(value, str) else value for value in row] for row in cells]


def _rows_at(output: Any, path: str) -> Iterator[dict[str, Any]]:
    found: list[tuple[str, Any]] = [("", output)]
    for part in filter(None, path.split(".")):
        found = [pair for _, tree in found for pair in (tree.items() if part == "*" else [(part, tree[part])])]
    for name, tree in found:
        for row in tree if isinstance(tree, list) else [tree]:
            yield {"name": name, **row}


def _value(row: dict[str, Any], output: Any, key: str) -> Any:
    if "±" in key:
        return [_value(row, output, part) for part in key.split("±")]
    found: Any = output if key.startswith("/") else row
    for part in key.removeprefix("/").split("."):
        found = found.get(part)
        if found is None:
            return None
    return round(found, 4) if isinstance(found, float) else found


def take(topic: str, name: str, output: Path) -> None:
    """Put the rows of a command's output into an entry, with the date and the commit."""
    found = load(topic)
    entry = found["entries"][name]
    entry["rows"] = select(json.loads(output.read_text("utf-8")), entry["select"])
    head = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=RESULTS, capture_output=True, check=True)
    entry |= {"date": date.today().isoformat(), "commit": head.stdout.decode().strip()}
    (RESULTS / f"{topic}.json").write_text(dump(found), "utf-8")
    print(f"{topic}.json, {name}: {len(entry['rows'])} rows; hardware stays: {entry['hardware']}")


def dump(tree: dict[str, Any]) -> str:
    """Return JSON with each innermost list on one line."""
    text = json.dumps(tree, indent=2, ensure_ascii=False)
    value = r'(?:"(?:[^"\\]|\\.)*"|-?[\d.]+(?:e-?\d+)?|null|\[[^][\n]*\])'
    for _ in range(2):  # pairs first, then the rows that hold them
        text = re.sub(rf"\[\s*({value}(?:,\s*{value})*)\s*\]", _one_line, text)
    return text + "\n"


def _one_line(match: re.Match[str]) -> str:
    line = "[" + re.sub(r"\n\s*", " ", match[1]) + "]"
    return line if len(line) <= WIDTH else match[0]


def section(entry: dict[str, Any]) -> list[str]:
    """Return the lines of one entry."""
    lines = [f"## {entry['title']}", "", *wrap(entry["protocol"]), ""]
    lines += [*table(entry["columns"], rows_of(entry), entry.get("digits", 1)), ""]
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
    if sys.argv[1:]:
        take(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    for path, text in pages().items():
        path.write_text(text, "utf-8")
