"""Is the word called mismatched the attribute that is violated? The drawn catalogue knows, and wardrobe does.

    python benchmarks/evidence.py MODEL [standard|easy] [--wardrobe FOLDER [--split val]] [--json FILE]

MODEL is a run or a bundle. All test queries of one edit are run, in all phrasings. Of their first ten hits those count
that are wrong in exactly one attribute. A hit that lacks what the text names ought to correspond less with those words
than a hit that has it and differs elsewhere. AUC is the share of pairs of such hits that are in that order.
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
from nsfse.data.datasets.items import read_items
from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.datasets.wardrobe import labelled
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.evaluation.features import EncodedImages, encode_in_batches, source_images
from nsfse.evaluation.metrics import auc
from nsfse.open import open_scorer
from nsfse_runtime.search.two_stage import rank
from nsfse_runtime.types import Scorer

RERANK, TOP = 100, 10


def hits_of(
    scorer: Scorer, images: EncodedImages, ids: Sequence[str], query: EvalQuery, text: str
) -> list[tuple[str, float, float]]:
    """Return (id, the least fulfilment among the words that name the edit, that of the whole text) of ten hits."""
    row = images.rows[query.reference]
    composed = scorer.compose(images.targets(np.array([row])), [text])[0]
    mask = np.ones(len(ids), bool)
    mask[row] = False
    ranking = rank(scorer, composed, images.vectors, images.targets, TOP, RERANK, mask)
    pair = ranking.pair or scorer.score_pairs(composed, images.targets(ranking.rows))
    labelled = query.word_labels[0].words
    edit_words = [position for position, word in enumerate(composed.tokens) if word.lower() in labelled]
    whole = (pair.word_scores - pair.boundary) @ composed.word_weights
    fulfilled = (pair.word_scores - pair.boundary) * np.where(composed.word_weights < 0, -1, 1)
    named = fulfilled[:, edit_words].min(1) if edit_words else np.full(len(whole), np.nan)
    return [(ids[row], float(named[position]), float(whole[position])) for position, row in enumerate(ranking.rows)]


def measure(
    model: Path, level: str, gallery: int | None = None, wardrobe: Path | None = None, split: str = "test"
) -> dict[str, Any]:
    """Return AUC and the boundary's errors, over all and by kind of edit.

    Of the drawn catalogue among `gallery` images, or of the split of `wardrobe`, a folder of wardrobe-1.
    """
    scorer = open_scorer(model)
    if wardrobe:
        source, queries = QuerySetSource(wardrobe), wardrobe_queries(wardrobe, split)
        known = {item: dict(row) for item, row in read_items(wardrobe).rows.items()}
    else:
        source = DrawnSource(DrawnOptions(level, gallery=gallery))
        queries = source.protocols(split)[0].queries
        known = {item: source.attributes(item) for item in source.items(split)}
    ids = source.items(split)
    images = encode_in_batches(scorer, ids, source_images(source, scorer.image_size))
    blank = images.targets(np.array([0]))
    boundary = scorer.score_pairs(scorer.compose(blank, ["make it red"])[0], blank).boundary
    pairs_of_kind: dict[str, list[tuple[bool, float, float]]] = defaultdict(list)
    for query in (query for query in queries if len(query.word_labels) == 1):
        label, hard_negatives = query.word_labels[0], set(query.hard_negatives)
        for text in query.texts:
            for item, named, whole in hits_of(scorer, images, ids, query, text):
                if item in hard_negatives:
                    violated = known[item].get(label.attribute_key) not in label.values
                    pairs_of_kind[f"{label.attribute}, {query.kind}"].append((violated, named, whole))
    rows = {kind: _row(np.array(pairs)) for kind, pairs in sorted(pairs_of_kind.items())}
    all_pairs = np.array([pair for pairs in pairs_of_kind.values() for pair in pairs])
    name = "wardrobe" if wardrobe else level
    return {"level": name, "boundary": boundary, "all": _row(all_pairs), "kinds": rows}


def wardrobe_queries(folder: Path, split: str) -> list[EvalQuery]:
    """Return the queries that change one attribute, with the words that name its new value."""
    rows, protocols = read_items(folder).rows, QuerySetSource(folder).protocols(split)
    return [labelled(query, rows) for protocol in protocols for query in protocol.queries if query.kind]


def _row(pairs: NDArray[Any]) -> dict[str, float]:
    violated = pairs[:, 0] == 1
    row = {"hits": len(pairs), "violating": int(violated.sum())}
    for name, score in (("named", pairs[:, 1]), ("whole", pairs[:, 2])):
        low, high = (score[side & ~np.isnan(score)] for side in (violated, ~violated))
        row[f"auc_{name}"] = auc(low, high)
    row["violated_called_matched"] = 100 * float((pairs[violated, 2] >= 0).mean()) if violated.any() else 0.0
    row["kept_called_mismatched"] = 100 * float((pairs[~violated, 2] < 0).mean()) if (~violated).any() else 0.0
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("level", nargs="?", default="standard", choices=("standard", "easy"))
    parser.add_argument("--wardrobe", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scores = measure(options.model, options.level, wardrobe=options.wardrobe, split=options.split)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2) + "\n", "utf-8")
    print("| edit | hits | violating | AUC, words that ask | AUC, all words | violated, matched | kept, mismatched |")
    print("|---|---|---|---|---|---|---|")
    for kind, row in ({"all": scores["all"]} | scores["kinds"]).items():
        cells = (f"{row[name]:.3f}" for name in ("auc_named", "auc_whole"))
        shares = (f"{row[name]:.1f}" for name in ("violated_called_matched", "kept_called_mismatched"))
        print(f"| {kind} | {row['hits']} | {row['violating']} | {' | '.join(cells)} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
