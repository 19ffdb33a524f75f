"""A query set of a product table, each query worded in six ways: how much does the wording matter?

    python benchmarks/phrasings.py SET OUT [SEED]
    nsfse evaluate MODEL OUT

SET is a query set whose items.csv says what its queries change. OUT gets the same items and queries; the texts of a
query are four phrasings that training sees, then the two that it never sees. Two models compare on equal seeds.
"""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nsfse.data.text.template_file import load_templates
from nsfse.data.text.templates import Edit, TemplateSet

SEEN = 4
MORE = {"more_texts", "more_references", "negative_images", "negative_texts"}
"""What a query has that is not one image and one edit."""
OTHER_COLUMNS = {"id", "file", "split", "title", "sub", "caption", "group"}
"""Columns of an item that are no attribute that a query changes."""


def six_ways(edit: Edit, phrasings: TemplateSet, random: np.random.Generator) -> list[str]:
    """Return the texts of one edit."""
    phrases = phrasings.templates_for([edit])
    seen = [phrases.base[index] for index in random.choice(len(phrases.base), SEEN, replace=False)]
    return [phrasings.fill(template, [edit]) for template in (*seen, *phrases.held_out)]


def edit_of(query: dict[str, Any], items: dict[str, dict[str, str]], phrasings: TemplateSet) -> Edit | None:
    """Return the one edit that leads from a query's reference to all its targets; None where it is not one."""
    before, after = items[query["reference"]], items[query["targets"][0]]
    columns = [name for name in before if name not in OTHER_COLUMNS and before[name] != after[name]]
    if query.get("changed") in columns:
        columns = [query["changed"]]
    if MORE & set(query) or len(columns) != 1 or len({items[name][columns[0]] for name in query["targets"]}) != 1:
        return None
    return phrasings.edit_to(columns[0], after[columns[0]]) if columns[0] in phrasings.columns else None


def main() -> None:
    """Write the query set."""
    folder, out = map(Path, sys.argv[1:3])
    random = np.random.default_rng(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    phrasings = load_templates("en")
    with (folder / "items.csv").open(encoding="utf-8", newline="") as file:
        items = {row["id"]: row for row in csv.DictReader(file)}
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
    worded = [(query, edit_of(query, items, phrasings)) for query in queries]
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "items.csv", out / "items.csv")
    (out / "images").unlink(missing_ok=True)
    (out / "images").symlink_to((folder / "images").resolve())
    reworded = [query | {"texts": six_ways(edit, phrasings, random)} for query, edit in worded if edit]
    (out / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in reworded), "utf-8")
    print(f"{len(reworded)} of {len(queries)} queries, {SEEN + 2} texts each")


if __name__ == "__main__":
    main()
