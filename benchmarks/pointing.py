"""Does the heatmap of a word cover the part that it names? The drawn catalogue knows where it draws each part.

    python benchmarks/pointing.py MODEL [standard|easy] [--json FILE]

MODEL is a bundle whose images have a grid. It runs all test queries of one edit that names what must be there, in their
first phrasing. In the right answer, take the cell where the word's heatmap is greatest. Does it touch the part, and
does the part fill a tenth of that cell? A random cell is the baseline. The part is what changes when the image is drawn
with another value of the attribute: collar, sleeve or background alone; else the whole product.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsfse.data import EvalQuery
from nsfse.data.synthetic.render import paint
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.evaluation.features import EncodedImages, encode_in_batches, source_images
from nsfse.open import open_scorer
from nsfse_runtime.errors import UsageError
from nsfse_runtime.retrieval.query import heatmaps

TENTH, SEEN = 0.1, 40
"""How much of a cell counts as more than touched, and by how many of 255 levels a pixel changes that belongs to it."""
_OWN = ("length", "detail", "background")


def part_of(source: DrawnSource, item: str, attribute: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels [H, W] of an image are what an attribute speaks of."""
    about, level = source.describe(item), source.level
    name = attribute if attribute in _OWN else "colour"
    split, number = item.split("-")
    seed = int(source.synthetic_items(split).image_seeds[int(number)])
    values = level.values[list(about).index(name)]
    drawn = paint(about, seed, size, level.nuisance).astype(int)
    others = (paint({**about, name: value}, seed, size, level.nuisance) for value in values[:4] if value != about[name])
    changed: NDArray[np.bool_] = np.max([np.abs(other - drawn).max(-1) for other in others], axis=0) > SEEN
    return changed


def pointed(
    scorer: Any, images: EncodedImages, query: EvalQuery, part: NDArray[np.bool_], grid: tuple[int, int]
) -> tuple[float, ...] | None:
    """Return the share of edit words whose best cell touches the part, or is a tenth of it; then of all cells."""
    (rows, columns), (height, width) = grid, part.shape
    covered = part.reshape(rows, height // rows, columns, width // columns).mean((1, 3)).ravel()
    reference, answer = (images.targets(images.rows_of([item])) for item in (query.reference, query.targets[0]))
    composed = scorer.compose(reference, query.texts[:1])[0]
    labelled = query.word_labels[0].words
    edit_words = [position for position, word in enumerate(composed.tokens) if word.lower() in labelled]
    if not edit_words or not covered.any():
        return None
    best = heatmaps(composed.words[edit_words], answer.regions[:, : rows * columns], columns)[0].argmax(1)
    touches, a_tenth = covered > 0, covered >= TENTH
    return tuple(float(cells.mean()) for cells in (touches[best], a_tenth[best], touches, a_tenth))


def measure(model: Path, level: str, gallery: int | None = None) -> dict[str, dict[str, float]]:
    """Return queries and shares in percent, over all and by attribute."""
    scorer, source = open_scorer(model), DrawnSource(DrawnOptions(level, gallery=gallery))
    grid = scorer.info.grid
    if grid is None:
        raise UsageError(f"the images of {model} have no grid; name a bundle of two stages")
    queries = [
        q for q in source.protocols("test")[0].queries if len(q.word_labels) == 1 and not q.word_labels[0].absent
    ]
    shown = list(dict.fromkeys(item for query in queries for item in (query.reference, query.targets[0])))
    images = encode_in_batches(scorer, shown, source_images(source, scorer.image_size))
    shares_of: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for query in queries:
        attribute = query.word_labels[0].attribute
        part = part_of(source, query.targets[0], attribute, scorer.image_size)
        if (shares := pointed(scorer, images, query, part, grid)) is not None:
            shares_of[attribute].append(shares)
    all_shares = [shares for rows in shares_of.values() for shares in rows]
    return {name: _row(rows) for name, rows in {"all": all_shares, **dict(sorted(shares_of.items()))}.items()}


def _row(measured: Sequence[tuple[float, ...]]) -> dict[str, float]:
    names = ("touches", "a_tenth", "touches_by_chance", "a_tenth_by_chance")
    return {"queries": len(measured), **dict(zip(names, (100 * np.mean(measured, axis=0)).tolist(), strict=True))}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("level", nargs="?", default="standard", choices=("standard", "easy"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scores = measure(options.model, options.level)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2) + "\n", "utf-8")
    print("| attribute | queries | touches the part, % | random | a tenth is the part, % | random |")
    print("|---|---|---|---|---|---|")
    for name, row in scores.items():
        shares = (row[key] for key in ("touches", "touches_by_chance", "a_tenth", "a_tenth_by_chance"))
        print(f"| {name} | {row['queries']} | {' | '.join(f'{share:.1f}' for share in shares)} |")


if __name__ == "__main__":
    main()
