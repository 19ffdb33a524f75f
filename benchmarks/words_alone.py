"""Search by words alone, "striped red dress", in photos that are labelled whole.

    python benchmarks/words_alone.py MODEL WARDROBE [--split val] [--json FILE]

MODEL is a run or a bundle, WARDROBE a folder of wardrobe-1. 200 images of the split are chosen by a seed, and each is
searched for by its colour and category; right is every image that has both. A second protocol searches the captions,
each of which is right for one image. `with a reference` says the colour and category to an image of another colour and
another category.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.data.datasets.items import read_items
from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.datasets.wardrobe import WardrobeOptions
from nsfse.evaluation.evaluate import evaluate_source
from nsfse.open import open_scorer

COUNT, SEED = 200, 0
Row = dict[str, str]


def protocols(folder: Path, split: str) -> list[EvaluationProtocol]:
    """Return the protocols of one split of wardrobe-1."""
    table, unnamed = read_items(folder), WardrobeOptions().unnamed_values
    source = QuerySetSource(folder)
    rows = {item: dict(table.rows[item]) for item in source.items(split)}
    named = [item for item, row in rows.items() if row["colour"] not in unnamed and row["category"] not in unnamed]
    rng = random.Random(SEED)
    chosen = rng.sample(named, min(COUNT, len(named)))

    def alike(item: str, other: str) -> int:
        return sum(rows[item][column] == rows[other][column] for column in ("colour", "category"))

    def query(item: str, reference: str = "") -> EvalQuery:
        text = f"{rows[item]['colour']} {rows[item]['category']}".replace("-", " ")
        return EvalQuery(reference, (text,), tuple(other for other in rows if alike(item, other) == 2))

    def other_than(item: str) -> str:
        return rng.choice([other for other in named if not alike(item, other)])

    captions = (EvalQuery("", (row["caption"],), (item,)) for item, row in rows.items() if row["caption"])
    made: dict[str, Iterable[EvalQuery]] = {
        "words alone": map(query, chosen),
        "with a reference": (query(item, other_than(item)) for item in chosen),
        "captions alone": captions,
    }
    return [EvaluationProtocol(name, "1", tuple(rows), tuple(queries)) for name, queries in made.items()]


def measure(model: Path, folder: Path, split: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the scores of each protocol."""
    scorer = open_scorer(model)
    results = evaluate_source(scorer, QuerySetSource(folder), protocols(folder, split)).results
    for result in results:
        say(f"{result.protocol.name}: R@1 {result.scores['R@1']:.1f}, R@10 {result.scores['R@10']:.1f}")
    return {result.protocol.name: result.scores for result in results}


def main() -> None:
    """Print a line for each protocol."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scores = measure(args.model, args.folder, args.split, print)
    if args.json:
        args.json.write_text(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
