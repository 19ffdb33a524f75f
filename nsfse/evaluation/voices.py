"""Queries of one edit in the words of voices that no training hears: does retrieval depend on who asks?

Every query whose reference and right answers differ in one value that has a name is said by the reserved voices
(nsfse.data.text.voices), each sentence a position of its own. All queries have the same positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.data.synthetic.edits import plain_edit
from nsfse.data.synthetic.source import DrawnSource
from nsfse.data.text.templates import Edit, TemplateSet
from nsfse.data.text.voices import Spoken, reserved_voices
from nsfse.evaluation import metrics
from nsfse.evaluation.results import ProtocolResult
from nsfse_runtime.errors import DataError

Change = tuple[Edit, Edit]
"""The edit to the new value, and the one back to the old value."""


@dataclass(frozen=True)
class VoicedProtocol:
    """A protocol in other words: `positions` says of each text whose it is, and whether it names the old value."""

    protocol: EvaluationProtocol
    positions: tuple[Spoken, ...]


def voiced(protocol: EvaluationProtocol, changes: Sequence[Change | None], templates: TemplateSet) -> VoicedProtocol:
    """Return the queries that have a change in the words of the reserved voices.

    Args:
        protocol: What to reword.
        changes: What each of its queries changes; None for a query to leave out.
        templates: The language of the changes.

    Raises:
        DataError: No query can be said with its old value.
    """
    voices = reserved_voices()
    count = sum(len(v.says) + len(v.refers_to_old) + len(v.refuses_old) for v in voices.voices.values())
    said = [voices.every(*change, templates) if change and voices.speaks(change[:1]) else [] for change in changes]
    queries = [
        replace(query, texts=tuple(spoken.text for spoken in texts), old_value_named=_naming_old(texts))
        for query, texts in zip(protocol.queries, said, strict=True)
        if len(texts) == count and query.is_simple
    ]
    if not queries:
        raise DataError(f"{protocol.name}: no query changes one value that has a name; name another protocol")
    positions = next(tuple(texts) for texts in said if len(texts) == count)
    return VoicedProtocol(replace(protocol, name=f"{protocol.name}-voices", queries=tuple(queries)), positions)


def _naming_old(texts: Sequence[Spoken]) -> tuple[int, ...]:
    return tuple(at for at, spoken in enumerate(texts) if spoken.old == "refused")


def drawn_change(source: DrawnSource, query: EvalQuery) -> Change | None:
    """Return the change of a query of the drawn catalogue that requests one value."""
    if len(query.word_labels) != 1 or query.kind not in ("single", "category") or query.word_labels[0].absent:
        return None
    name = query.word_labels[0].attribute
    before, after = (source.codes(item) for item in (query.reference, query.targets[0]))
    return plain_edit(source.level, name, before, after), plain_edit(source.level, name, after, before)


def table_change(rows: Mapping[str, Mapping[str, str]], query: EvalQuery, templates: TemplateSet) -> Change | None:
    """Return the change of a query whose images are `rows` of a table, by the columns that the templates know.

    Where the kind of the query is a column, that is what changes.
    """
    before, after = rows[query.reference], rows[query.targets[0]]
    known = [name for name in before if name.lower() in templates.columns]
    columns = [query.kind] if query.kind in known else [name for name in known if before[name] != after[name]]
    if len(columns) != 1 or len({rows[item][columns[0]] for item in query.targets}) != 1:
        return None
    values = after[columns[0]], before[columns[0]]
    if values[0] == values[1] or not all(any(map(str.isalpha, value)) for value in values):
        return None
    return templates.edit_to(columns[0], values[0]), templates.edit_to(columns[0], values[1])


def voice_scores(result: ProtocolResult, positions: Sequence[Spoken]) -> dict[str, Any]:
    """Return how R@1 depends on who asks, in percent.

    Args:
        result: The result of a `VoicedProtocol`.
        positions: The protocol's.

    Returns:
        `sentences` (R@1 and R@10 of each), `voices` (means of their sentences), `old_named` and `old_not_named` (means
        of sentences), `old_gap` (the second less the first), `spread` (greatest less least of all sentences),
        `voice_spread` (of the voices' means), `sensitivity` (a query's range, the mean over queries).
    """
    row_of = {item: row for row, item in enumerate(result.protocol.gallery)}
    right = [frozenset(row_of[item] for item in r.query.targets if item in row_of) for r in result.rankings]
    ranks = metrics.ranks_of_targets([r.rows for r in result.rankings], right).reshape(-1, len(positions))
    recalls = 100 * (ranks < 1).mean(0)
    sentences = [
        {"voice": p.voice, "old": p.old, "example": p.text, "R@1": float(one), "R@10": float(ten)}
        for p, one, ten in zip(positions, recalls, 100 * (ranks < 10).mean(0), strict=True)
    ]
    names_old = np.array([bool(p.old) for p in positions])
    whose = np.array([p.voice for p in positions])
    of_voice = {name: float(recalls[whose == name].mean()) for name in dict.fromkeys(whose.tolist())}
    named, rest = float(recalls[names_old].mean()), float(recalls[~names_old].mean())
    return {
        "queries": len(ranks),
        "R@1": float(recalls.mean()),
        "R@10": float(100 * (ranks < 10).mean()),
        "voices": of_voice,
        "old_named": named,
        "old_not_named": rest,
        "old_gap": rest - named,
        "spread": metrics.phrasing_gap(recalls.tolist()),
        "voice_spread": max(of_voice.values()) - min(of_voice.values()),
        "sensitivity": float(100 * np.ptp((ranks < 1).astype(np.int64), axis=1).mean()),
        "sentences": sentences,
    }
