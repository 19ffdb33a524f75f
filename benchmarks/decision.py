"""Does the model know when nothing matches? A set that knows all right answers can take them away.

    python benchmarks/decision.py MODEL [standard|easy] [--wardrobe FOLDER [--split val]] [--json FILE] [--svg FILE]

MODEL is a run or a bundle with a confidence model. Every test query, in all phrasings, is run over the whole gallery,
then over the gallery without its right answers. A result has no match where none of the first ten hits reaches the
threshold. AUC is the share of pairs of a whole gallery and one without in which the former's best confidence is higher.
The table sorts the first five hits of all lists by their confidence, which ought to be the share that is right.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.evaluation.abstention import FALSE_ALARMS, compose_samples
from nsfse.evaluation.features import encode_in_batches, source_images
from nsfse.evaluation.metrics import auc
from nsfse.open import open_scorer
from nsfse.training.calibration import samples
from nsfse_runtime.errors import NotFoundError

BINS = 10
SIZE, LEFT, TOP = 400, 60, 20  # of the plot's square, and where it begins, in pixels


def measure(
    model: Path, level: str, gallery: int | None = None, wardrobe: Path | None = None, split: str = "test"
) -> dict[str, Any]:
    """Return how often no match is reported, rightly and falsely, and how reliable the confidence is.

    Of the drawn catalogue among `gallery` images, or of the first protocol of `wardrobe`, a folder of wardrobe-1.
    """
    scorer = open_scorer(model)
    source = QuerySetSource(wardrobe) if wardrobe else DrawnSource(DrawnOptions(level, gallery=gallery))
    confidence_model = scorer.info.confidence
    if confidence_model is None:
        raise NotFoundError(f"{model} has no confidence model; train it to its end, or export it again")
    protocol = source.protocols(split)[0]
    images = encode_in_batches(scorer, protocol.gallery, source_images(source, scorer.image_size))
    worded = [(query, position) for query in protocol.queries for position in range(len(query.texts))]
    samples_of_queries = list(compose_samples(scorer, protocol, worded, images))
    complete = np.array([confidence_model.confidence(sample.complete).max() for sample in samples_of_queries])
    without = np.array([confidence_model.confidence(sample.without).max(initial=0.0) for sample in samples_of_queries])
    features, right = samples(samples_of_queries)
    return {
        "level": "wardrobe" if wardrobe else level,
        "rankings": len(samples_of_queries),
        "auc": auc(without, complete),
        "as_fitted": _no_match_rates(confidence_model.threshold, complete, without),
        "at_ten_percent": _no_match_rates(float(np.quantile(complete, FALSE_ALARMS)), complete, without),
        "reliability": reliability(confidence_model.confidence(features), right),
    }


def _no_match_rates(threshold: float, complete: NDArray[Any], without: NDArray[Any]) -> dict[str, float]:
    """Return in percent how often no match is reported in galleries `without` an answer, and in complete ones."""
    shares = {"without_answers": without, "false_alarms": complete}
    return {"threshold": threshold} | {name: 100 * float((best < threshold).mean()) for name, best in shares.items()}


def reliability(confidence: NDArray[Any], right: NDArray[Any]) -> list[dict[str, float]]:
    """Return, for each bin of `confidence` [N] that is not empty, its mean, the share that is right and the count."""
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members = [bin_of == index for index in range(BINS)]
    return [
        {"confidence": float(confidence[hits].mean()), "right": float(right[hits].mean()), "count": int(hits.sum())}
        for hits in members
        if hits.any()
    ]


def plot(rows: Sequence[Mapping[str, float]]) -> str:
    """Return an SVG: a dot for each bin, the larger the more hits it has; on the diagonal confidence is right."""
    width, height = LEFT + SIZE + 20, TOP + SIZE + 50

    def x(value: float) -> float:
        return round(LEFT + SIZE * value, 1)

    def y(value: float) -> float:
        return round(TOP + SIZE * (1 - value), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{y(0)}" y2="{y(1)}" stroke="#d9dde3"/>')
        parts.append(f'<line x1="{x(0)}" x2="{x(1)}" y1="{y(tick)}" y2="{y(tick)}" stroke="#d9dde3"/>')
        parts.append(f'<text x="{x(tick)}" y="{y(0) + 16}" fill="#6b7280" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{x(0) - 8}" y="{y(tick) + 4}" fill="#6b7280" text-anchor="end">{tick:g}</text>')
    parts.append(f'<line x1="{x(0)}" x2="{x(1)}" y1="{y(0)}" y2="{y(1)}" stroke="#6b7280" stroke-dasharray="4 4"/>')
    most = max((row["count"] for row in rows), default=1)
    for row in rows:
        label = f"confidence {row['confidence']:.2f}, right {row['right']:.2f}, {row['count']} hits"
        radius = round(3 + 9 * (row["count"] / most) ** 0.5, 1)
        parts.append(
            f'<circle cx="{x(row["confidence"])}" cy="{y(row["right"])}" r="{radius}" fill="#1f5fa8" '
            f'fill-opacity="0.8"><title>{label}</title></circle>'
        )
    parts.append(f'<text x="{x(0.5)}" y="{y(0) + 38}" text-anchor="middle">confidence</text>')
    middle = f"{LEFT - 42} {y(0.5)}"
    parts.append(f'<text transform="translate({middle}) rotate(-90)" text-anchor="middle">share that is right</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("level", nargs="?", default="standard", choices=("standard", "easy"))
    parser.add_argument("--wardrobe", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    scores = measure(options.model, options.level, wardrobe=options.wardrobe, split=options.split)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2) + "\n", "utf-8")
    if options.svg:
        options.svg.write_text(plot(scores["reliability"]), "utf-8")
    print(f"{scores['rankings']} queries and phrasings, AUC {scores['auc']:.3f}\n")
    print("| threshold | said where nothing matches | said falsely |\n|---|---|---|")
    for name in ("as_fitted", "at_ten_percent"):
        row = scores[name]
        print(f"| {row['threshold']:.4f} | {row['without_answers']:.1f} | {row['false_alarms']:.1f} |")
    print("\n| confidence | right | hits |\n|---|---|---|")
    for row in scores["reliability"]:
        print(f"| {row['confidence']:.3f} | {row['right']:.3f} | {row['count']} |")


if __name__ == "__main__":
    main()
