"""Scores of a public data set or a query set, named by its folder."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nsfse import data
from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.registry import known_name, open_source
from nsfse.evaluation.circo_submission import check_circo_split, write_circo_submission
from nsfse.evaluation.cirr_submission import check_split, write_submission
from nsfse.evaluation.evaluate import evaluate_source
from nsfse.evaluation.features import Progress
from nsfse.evaluation.query_counts import unlisted
from nsfse.evaluation.query_list import only_listed
from nsfse.evaluation.ranker import Mode
from nsfse.evaluation.results import Evaluation
from nsfse.progress import print_status
from nsfse_runtime.errors import DataError, UsageError
from nsfse_runtime.types import Scorer

__all__ = ["evaluate_dataset", "evaluate_query_set"]

SPLITS = ("test1", "test", "val", "train")
"""Names of splits that a data set may have; where two of them are the same one, the first is its own."""


SERVERS = ("cirr", "circo")
"""Data sets with a test server."""


def evaluate_dataset(
    scorer: Scorer,
    name: str,
    split: str,
    folder: str | os.PathLike[str],
    *,
    modes: Sequence[Mode] = ("composed",),
    rerank: int = 100,
    submission: str | os.PathLike[str] | None = None,
    only: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    diagnostics: bool = False,
    **options: Any,
) -> Evaluation:
    """Score a public data set by name.

    Args:
        scorer: The model, a run's or a bundle's.
        name: A name of `nsfse.data.registry.SOURCES`, such as fashioniq, cirr or circo.
        split: The split, such as val.
        folder: Folder of the data set.
        modes: What queries are made of.
        rerank: How many candidates stage 2 scores.
        submission: Folder for the files of a test server, CIRR's or CIRCO's, which has the answers of the test split.
        only: File of the ids of the queries to score, such as a list of CIRCUS; all by default.
        progress: Called with stage, done and total.
        diagnostics: Whether to also find the worst and best queries of the first mode.
        **options: Options of the data set's reader, such as `images`.

    Returns:
        One result for each protocol of the split and each mode.

    Raises:
        DataError: The split has no protocol or no images.
        UsageError: `submission` or `diagnostics` do not go with this split.
    """
    name = known_name(name)
    source = open_source(name, folder, **options)
    for note in data.notes_of(source):
        print_status(note)
    protocols = source.protocols(split)
    if not protocols:
        raise DataError(_nothing_to_score(source, split, folder))
    if only is not None:
        protocols = only_listed(protocols, Path(only))
    _check_submission(source, split, protocols, submission, diagnostics)
    evaluation = evaluate_source(
        scorer,
        source,
        protocols,
        modes=modes,
        rerank=rerank,
        progress=progress,
        diagnostics=diagnostics,
        abstention=True,
    )
    if submission is None:
        return evaluation
    write = write_circo_submission if name == "circo" else write_submission
    return replace(evaluation, files=write(evaluation.results[0], Path(submission)))


def _nothing_to_score(source: data.Source, split: str, folder: str | os.PathLike[str]) -> str:
    """Return which splits of a data set can be scored instead of `split`."""
    split_of: dict[tuple[str, ...], str] = {}
    for other in dict.fromkeys((*getattr(source, "splits", ()), *SPLITS)):
        if protocols := source.protocols(other):
            split_of.setdefault(tuple(protocol.name for protocol in protocols), other)
    why = "it has images and no queries with known targets" if source.items(split) else "there is no such split"
    splits = ", ".join(sorted(split_of.values()))
    others = f"can be scored: {splits}" if splits else "nor has it another split to score"
    return f"{source.name} has nothing to score on split {split!r} in {folder}: {why}; {others}"


def _check_submission(
    source: data.Source,
    split: str,
    protocols: Sequence[data.EvaluationProtocol],
    submission: str | os.PathLike[str] | None,
    diagnostics: bool,
) -> None:
    """Raise where a test server has the answers and none was prepared for, or the reverse, before ranking."""
    hidden = source.name in SERVERS and not any(query.targets for protocol in protocols for query in protocol.queries)
    name = f"{source.name} {split}"
    if hidden and submission is None:
        raise UsageError(f"{name} keeps its answers on a server; name a folder for the files to send (submission)")
    if submission is not None and not hidden:
        raise UsageError(f"{name} is scored here; only cirr test1 and circo test write files for a test server")
    if hidden and diagnostics:
        raise UsageError(f"{name} keeps its answers on a server, so that there is nothing to show; leave out html")
    if hidden and source.name == "circo":
        check_circo_split(protocols[0])
        return
    if hidden:
        check_split(protocols[0], unlisted(source, protocols))
        return
    for protocol in protocols:
        if protocol.queries and not any(query.targets for query in protocol.queries):
            raise DataError(f"{protocol.name}: no query names a target; check its annotations, or name another split")


def evaluate_query_set(
    scorer: Scorer,
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    modes: Sequence[Mode] = ("composed",),
    rerank: int = 100,
    progress: Progress | None = None,
    diagnostics: bool = False,
) -> Evaluation:
    """Score every protocol of a query set.

    Args:
        scorer: The model, a run's or a bundle's.
        folder: Folder of the query set.
        split: Only protocols of this split. By default all are scored, and a protocol that has queries on several
            splits is scored on each, as PROTOCOL-SPLIT.
        modes: What queries are made of.
        rerank: How many candidates stage 2 scores.
        progress: Called with stage, done and total.
        diagnostics: Whether to also find the worst and best queries of the first mode.

    Returns:
        One result for each protocol and mode.

    Raises:
        DataError: There is no query to score.
    """
    source = QuerySetSource(Path(folder))
    by_split = [(name, p) for name in ([split] if split else source.splits) for p in source.protocols(name)]
    times = Counter(protocol.name for _, protocol in by_split)
    protocols = [replace(p, name=f"{p.name}-{name}") if times[p.name] > 1 else p for name, p in by_split]
    if not protocols:
        hint = f"; can be scored: {', '.join(source.splits)}" if source.splits else "; look at its queries.jsonl"
        raise DataError(f"{folder} has no queries{f' on split {split!r}' if split else ''}{hint}")
    return evaluate_source(
        scorer,
        source,
        protocols,
        modes=modes,
        rerank=rerank,
        progress=progress,
        diagnostics=diagnostics,
        abstention=True,
    )
