"""Score a bundle on a query set: by both, by the image alone, by the words alone.

    python examples/evaluation.py BUNDLE QUERY_SET

A query set is a folder that anyone can make (docs/data.md); `nsfse data draw DIR --items 200` draws one.
"""

import sys

import nsfse
from nsfse_runtime import NsfseError

MODES = ("composed", "image-only", "text-only")


def table(bundle: str, query_set: str) -> list[str]:
    """Return a line for each protocol: how many queries, and R@1 / R@10 of each mode in percent."""
    evaluation = nsfse.evaluate_query_set(nsfse.open_scorer(bundle), query_set, modes=MODES).to_json()
    composed, others = evaluation["protocols"], evaluation["modes"]
    lines = [f"{'protocol':24}{'queries':>8}" + "".join(f"{mode:>16}" for mode in MODES)]
    for name, score in composed.items():
        scores = [score, *(others[mode][name] for mode in MODES[1:])]
        lines.append(f"{name:24}{score['queries']:8}" + "".join(f"{s['R@1']:9.1f} /{s['R@10']:5.1f}" for s in scores))
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(*table(*sys.argv[1:]), sep="\n")
    except NsfseError as error:
        sys.exit(str(error))
