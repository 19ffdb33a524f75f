"""Does retrieval depend on who asks? Queries in the words of two voices that no training hears.

    python benchmarks/voices.py MODEL SET [--split val] [--json FILE]

MODEL is a run or a bundle, SET the folder of a query set whose items.csv says what its queries change, or drawn or
drawn-easy. Each query that changes one value is said in 14 sentences of the reserved voices (docs/catalogue.md); six of
them also name the old value. The spread is the greatest less the least R@1 of the sentences. Sensitivity is the range
of one query over the sentences, the mean over queries.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from nsfse.data import Source
from nsfse.data.datasets.items import read_items
from nsfse.data.registry import open_source
from nsfse.data.synthetic.source import DrawnSource
from nsfse.data.text.template_file import load_templates
from nsfse.evaluation.evaluate import evaluate_source
from nsfse.evaluation.voices import VoicedProtocol, drawn_change, table_change, voice_scores, voiced
from nsfse.open import open_scorer
from nsfse_runtime.errors import DataError

DRAWN = {"drawn": "standard", "drawn-easy": "easy"}


def protocols(named: str, split: str, **options: Any) -> tuple[Source, list[VoicedProtocol]]:
    """Return a set and its protocols in the words of the reserved voices; those of free texts are left out."""
    templates, found = load_templates("en"), []
    source = open_source("drawn", None, level=DRAWN[named], **options) if named in DRAWN else None
    source = source or open_source("queryset", Path(named))
    rows = {} if isinstance(source, DrawnSource) else read_items(Path(named)).rows
    for protocol in source.protocols(split):
        if isinstance(source, DrawnSource):
            changes = [drawn_change(source, query) for query in protocol.queries]
        else:
            changes = [table_change(rows, query, templates) for query in protocol.queries]
        if 3 * sum(change is not None for change in changes) > len(changes):
            found.append(voiced(protocol, changes, templates))
    if not found:
        raise DataError(f"{named}: no protocol of split {split} changes single values that have names; name another")
    return source, found[:1] if isinstance(source, DrawnSource) else found


def measure(model: Path, named: str, split: str, **options: Any) -> dict[str, Any]:
    """Return the scores of each protocol."""
    scorer = open_scorer(model)
    source, found = protocols(named, split, **options)
    results = evaluate_source(scorer, source, [one.protocol for one in found]).results
    return {one.protocol.name: voice_scores(r, one.positions) for one, r in zip(found, results, strict=True)}


def main() -> None:
    """Print a table for each protocol."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("set")
    parser.add_argument("--split", default="val")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.model, options.set, options.split)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    for name, scores in found.items():
        print(f"{name}: {scores['queries']} queries, R@1 {scores['R@1']:.1f}, R@10 {scores['R@10']:.1f}")
        print(f"spread {scores['spread']:.1f}, of voices {scores['voice_spread']:.1f}, ", end="")
        print(f"sensitivity {scores['sensitivity']:.1f}; old value named {scores['old_named']:.1f}, ", end="")
        print(f"not named {scores['old_not_named']:.1f}\n")
        print("| voice | old value | R@1 | R@10 | example |\n|---|---|---|---|---|")
        for row in scores["sentences"]:
            cells = (row["voice"], row["old"] or "-", f"{row['R@1']:.1f}", f"{row['R@10']:.1f}", row["example"])
            print(f"| {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
