"""The model card of a bundle, README.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nsfse.benchmark.markdown import markdown_table
from nsfse_export.graphs import Graph, Shape
from nsfse_runtime.errors import IntegrityError
from nsfse_runtime.inference.confidence import FEATURES, Decision
from nsfse_runtime.inference.manifest import Manifest
from nsfse_runtime.regular_files import read_regular
from nsfse_runtime.types import RankingMode

_BOUNDARIES = {"c": "words (t_c)", "v": "probes (t_v)"}
_STATISTICS = {"mu_p": "μ₊", "sd_p": "σ₊", "mu_n": "μ₋", "sd_n": "σ₋", "t": "t", "risk": "risk"}


def training_scores(run: Path, which: str) -> dict[str, Any]:
    """Return the validation scores of a run's weights.

    Args:
        run: Folder of the run, with metrics.jsonl.
        which: The `last` or the `best` weights.

    Returns:
        The entry of metrics.jsonl that belongs to them; {} where none does. Its boundaries are left out: the manifest
        has those of the weights themselves.

    Raises:
        IntegrityError: A line is not JSON.
    """
    path = run / "metrics.jsonl"
    lines = read_regular(path).splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.DecodeError:
            raise IntegrityError(f"{path} line {number} is damaged; remove that line and export again") from None
    epochs = [entry for entry in entries if "epoch" in entry]
    if not epochs:
        return {}
    chosen = max(epochs, key=lambda entry: float(entry.get("mean_R@1", 0))) if which == "best" else epochs[-1]
    return {name: value for name, value in chosen.items() if name not in ("t_c", "t_v")}


def format_card(manifest: Manifest, graphs: Mapping[str, Graph]) -> str:
    """Return the card as Markdown."""
    parts = [
        f"# {manifest.name}",
        "A bundle of nsfse: composed image retrieval without torch. "
        "An image and a few words in, the images that were meant out"
        + (", each with its evidence." if manifest.mode is RankingMode.TWO_STAGE else "."),
        f"```\nnsfse index my.gallery photos/ -b {manifest.name}\n"
        'nsfse query photos/one.jpg "make it red" -g my.gallery\n```',
        "## Trained on",
        _trained_on(manifest.trained_on),
        "## Scores",
        _scores(manifest.scores),
        "## Limits",
        _limits(manifest),
        *(_boundaries(manifest.boundary) if manifest.mode is RankingMode.TWO_STAGE else ()),
        *_decision(Decision.of(manifest)),
        "## Graphs",
        "Inputs and outputs are float32 but for `pixels` (uint8), `ids` (int64) and `mask` (bool). Normalisation is "
        "inside.",
        _graphs(graphs, manifest.graphs),
        "## Agreement with torch",
        _agreement(manifest.verified),
        *(_precision(manifest) if manifest.precision != "fp32" else ()),
    ]
    return "\n\n".join(parts) + "\n"


def _trained_on(trained_on: str | Mapping[str, Any]) -> str:
    if isinstance(trained_on, str):
        return trained_on or "Not recorded."
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in trained_on.items()) or "Not recorded."


def _scores(scores: Mapping[str, Any]) -> str:
    protocols = {name: metrics for name, metrics in scores.items() if isinstance(metrics, Mapping)}
    if not protocols:
        return "No validation was run while training."
    columns = list(
        dict.fromkeys(
            key for metrics in protocols.values() for key, value in metrics.items() if isinstance(value, int | float)
        )
    )
    rows = [[name, *(_number(metrics.get(key)) for key in columns)] for name, metrics in protocols.items()]
    note = f"On validation queries while training, after epoch {scores['epoch']}; percent where it is a share."
    return f"{note}\n\n{markdown_table(['protocol', *columns], rows)}"


def _limits(manifest: Manifest) -> str:
    height, width = manifest.image_size
    training = manifest.trained_on if isinstance(manifest.trained_on, Mapping) else {}
    unseen = "read in pieces" if str(training.get("backbone", "")).startswith("clip,") else "one unknown word"
    return "\n".join(
        (
            f"- Images are fitted into {width} × {height} pixels (width × height): finer detail is not seen.",
            f"- Words after the first {manifest.max_words} of a text are not read; words it was not taught are "
            f"{unseen}.",
            "- It knows the kind of images and the phrasings named above; scores elsewhere are to be measured "
            "(`nsfse evaluate`), not assumed.",
            "- The evidence per word is what the score was made of, not an explanation of the image."
            if manifest.mode is RankingMode.TWO_STAGE
            else f"- A model of the method {manifest.method}: one vector for a query, so hits come without evidence.",
        )
    )


def _boundaries(boundary: Mapping[str, float]) -> tuple[str, ...]:
    rows = [
        [title, *(_number(boundary.get(f"{key}_{suffix}"), 4) for key in _STATISTICS)]
        for suffix, title in _BOUNDARIES.items()
    ]
    return (
        "## Boundaries",
        "Between matched (₊) and mismatched (₋) correspondences, as estimated in training; a word of a query counts as "
        "matched when its best correspondence is at or over t.",
        markdown_table(["of", *_STATISTICS.values()], rows),
    )


def _decision(decision: Decision | None) -> tuple[str, ...]:
    if decision is None:
        return ()
    return (
        "## Match or no match",
        f"The confidence of a hit is a logistic regression on {len(decision.mean)} numbers that the search knows of "
        f"it ({', '.join(FEATURES)}, and one for each view of the image) and their products, fitted at the end of "
        f"training to galleries with and without right answers. From {decision.threshold:.4f} on a hit counts as a "
        "match; nine in ten galleries with a right answer had such a hit, or more. Other kinds of images may need "
        "another threshold.",
    )


def _graphs(graphs: Mapping[str, Graph], kinds: Mapping[str, str]) -> str:
    return markdown_table(
        ["graph", "computes in", "inputs", "outputs"],
        [
            [f"{name}.onnx", kinds[name], _shapes(graph.inputs), _shapes(graph.outputs)]
            for name, graph in graphs.items()
        ],
    )


def _precision(manifest: Manifest) -> tuple[str, ...]:
    precision, retrieval = manifest.precision, manifest.retrieval
    title = f"## {precision} against float32"
    if not retrieval["verified"]:
        return title, "Not verified on retrieval: the figures above are those of the float32 graphs it was made from."
    rows = [
        [name, *(str(scores[key]) for key in ("version", "gallery", "queries")), *map(_number, scores["R@10"].values())]
        for name, scores in retrieval["protocols"].items()
    ]
    return (
        title,
        "The figures above are those of the float32 graphs it was made from. Verified on retrieval: R@10 may differ by "
        f"{retrieval['most_points']} points.",
        markdown_table(["protocol", "version", "images", "queries", "R@10 fp32", f"R@10 {precision}"], rows),
    )


def _shapes(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())


def _agreement(verified: Mapping[str, Any]) -> str:
    cosines, differences, same = (verified[key] for key in ("least_cosine", "greatest_difference", "same_top_10"))
    by_numpy = f" and {differences['numpy']:.1e} (numpy)" if "numpy" in differences else ""
    return (
        f"Checked when exported, with {verified['queries']} queries in batches of "
        f"{', '.join(map(str, verified['batches']))} over {verified['gallery']} images: the least cosine of any row "
        f"is {min(cosines.values()):.7f}, scores differ by at most {differences['onnx']:.1e} (ONNX Runtime){by_numpy}, "
        f"and the same ten images come first for {same['onnx']} queries."
    )


def _number(value: Any, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
