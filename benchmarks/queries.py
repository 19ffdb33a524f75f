"""Several images, several edits, exclusions (docs/queries.md) against the naive ways, on drawn images.

    python benchmarks/queries.py MODEL [standard|easy] [--queries N] [--json FILE]

MODEL is a run or a bundle. N queries of each kind are run, in a phrasing that training sees and one that it does
not. The naive ways with several images or texts: the references' features averaged, the texts joined by "and", or the
first alone. With exclusions: ignored, subtracted as vectors from stage 1's alone, or worded as one more edit ("no
stripes"). Only a model trained with such texts understands the last.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.evaluation import metrics
from nsfse.evaluation.features import encode_in_batches, source_images
from nsfse.evaluation.ranker import ProtocolRanker
from nsfse.open import open_scorer
from nsfse_runtime.errors import NsfseError
from nsfse_runtime.retrieval.compose import QueryInputs, compose_batch, unit
from nsfse_runtime.retrieval.query import ComposedQuery, Query
from nsfse_runtime.types import TargetFeatures

RERANK, POSITIONS = 100, (0, 2)
NEGATED_EDIT = 'an edit more, "no ..."'
Worded = tuple[EvalQuery, int]
Way = Callable[[Any, ProtocolRanker, Sequence[Worded]], list[ComposedQuery | NsfseError]]


def ours(_: Any, search: ProtocolRanker, queries: Sequence[Worded]) -> list[ComposedQuery | NsfseError]:
    """Compose as a Retriever does."""
    return search.compose_queries(queries)


def only(**changes: Any) -> Way:
    """Leave something out: the query with some of its fields left out."""
    return lambda _, search, queries: search.compose_queries(
        [(replace(query, **changes), position) for query, position in queries]
    )


def joined(_: Any, search: ProtocolRanker, queries: Sequence[Worded]) -> list[ComposedQuery | NsfseError]:
    """Join all edits in one text."""
    edits = [
        replace(query, texts=(" and ".join(query.texts_at(position)),), more_texts=()) for query, position in queries
    ]
    return search.compose_queries([(query, 0) for query in edits])


def averaged(scorer: Any, search: ProtocolRanker, queries: Sequence[Worded]) -> list[ComposedQuery | NsfseError]:
    """Take the mean of the references' features for a reference."""

    def mean(rows: Any) -> Any:
        middle = rows.mean(0, keepdims=True)
        return middle / np.linalg.norm(middle, axis=-1, keepdims=True)

    inputs = []
    for query, position in queries:
        images = search.targets((query.reference, *query.more_references))
        features = TargetFeatures(mean(images.vectors), mean(images.regions))
        inputs.append(QueryInputs(Query(references=(query.reference,), texts=(query.texts[position],)), features))
    return compose_batch(scorer, inputs)


def negated_edit(_: Any, search: ProtocolRanker, queries: Sequence[Worded]) -> list[ComposedQuery | NsfseError]:
    """Word what must not be there as one more edit, "no stripes"."""
    edits = [
        replace(q, more_texts=tuple((f"no {word}",) * len(q.texts) for word in q.negative_texts)) for q, _ in queries
    ]
    return search.compose_queries(
        [(replace(query, negative_texts=()), position) for query, (_, position) in zip(edits, queries, strict=True)]
    )


def subtracted(share: float) -> Way:
    """Subtract `share` of what is excluded, texts and images alike, from stage 1's vector."""

    def penalise(
        scorer: Any, search: ProtocolRanker, query: EvalQuery, composed: ComposedQuery | NsfseError
    ) -> ComposedQuery | NsfseError:
        if isinstance(composed, NsfseError):
            return composed
        unwanted = [*(scorer.sentence(list(query.negative_texts)) if query.negative_texts else ())]
        unwanted += [*search.targets(query.negative_images).vectors] if query.negative_images else []
        vector = unit(composed.vector - np.float32(share) * np.sum(unwanted, axis=0, dtype=np.float32))
        return replace(composed, vector=vector, parts=tuple(replace(part, vector=vector) for part in composed.parts))

    def way(scorer: Any, search: ProtocolRanker, queries: Sequence[Worded]) -> list[ComposedQuery | NsfseError]:
        composed = only(negative_texts=(), negative_images=())(scorer, search, queries)
        return [penalise(scorer, search, query, outcome) for (query, _), outcome in zip(queries, composed, strict=True)]

    return way


WAYS: dict[str, dict[str, Way]] = {
    "drawn-two-references": {
        "ours": ours,
        "features averaged": averaged,
        "the first image alone": only(more_references=()),
    },
    "drawn-several-edits": {
        "ours": ours,
        'joined by "and"': joined,
        "the first text alone": only(more_texts=()),
    },
    "drawn-minus": {
        "ours": ours,
        "ignored": only(negative_texts=(), negative_images=()),
        "half of their vectors subtracted": subtracted(0.5),
        "twice their vectors subtracted": subtracted(2.0),
        NEGATED_EDIT: negated_edit,
    },
}


def measure(model: Path, level: str, most: int, gallery: int | None = None) -> list[dict[str, Any]]:
    """Return a row for each kind of query and way to compose it, among `gallery` images."""
    scorer, source = open_scorer(model), DrawnSource(DrawnOptions(level, gallery=gallery))
    images = encode_in_batches(scorer, source.items("test"), source_images(source, scorer.image_size))
    rows = []
    for protocol in source.compound_protocols():
        search = ProtocolRanker(scorer, protocol, images, RERANK)
        for kind in dict.fromkeys(query.kind for query in protocol.queries):
            queries = [query for query in protocol.queries if query.kind == kind][:most]
            for name, way in WAYS[protocol.name].items():
                if name == NEGATED_EDIT and not queries[0].negative_texts:
                    continue
                scores = _scores(scorer, protocol, search, queries, way)
                rows.append({"protocol": protocol.name, "kind": kind, "way": name, "queries": len(queries), **scores})
    return rows


def _scores(
    scorer: Any, protocol: EvaluationProtocol, search: ProtocolRanker, queries: list[EvalQuery], way: Way
) -> dict[str, float]:
    worded = [(query, position) for query in queries for position in POSITIONS]
    orders = [
        search.order(composed, search.mask(query.reference_ids))
        for start in range(0, len(worded), 64)
        for (query, _), composed in zip(
            worded[start : start + 64], way(scorer, search, worded[start : start + 64]), strict=True
        )
        if isinstance(composed, ComposedQuery)
    ]
    row_of = {item: row for row, item in enumerate(protocol.gallery)}
    right, wrong = (
        [frozenset(row_of[item] for item in items(query)) for query, _ in worded]
        for items in (lambda query: query.targets, lambda query: query.hard_negatives)
    )
    weights = np.full(len(worded), 1 / len(POSITIONS))
    ranks = metrics.ranks_of_targets(orders, right)
    return {
        "R@1": metrics.recall_at_k(ranks, 1, weights),
        "R@10": metrics.recall_at_k(ranks, 10, weights),
        "mAP@10": metrics.mean_average_precision_at_k(orders, right, 10, weights),
        "hard_negative_rate": metrics.hard_negative_rate(orders, wrong, weights),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("level", nargs="?", default="standard", choices=("standard", "easy"))
    parser.add_argument("--queries", type=int, default=1000, help="of each kind at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(options.model, options.level, options.queries)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    print("| question | way | queries | R@1 | R@10 | mAP@10 | hard-negative@1 |\n|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = (f"{row[name]:.1f}" for name in ("R@1", "R@10", "mAP@10", "hard_negative_rate"))
        question = f"{row['protocol'].removeprefix('drawn-')}, {row['kind']}"
        print(f"| {question} | {row['way']} | {row['queries']} | {' | '.join(numbers)} |")


if __name__ == "__main__":
    main()
