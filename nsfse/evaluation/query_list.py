"""Protocols cut down to listed queries, such as CIRCUS' lists of those that need image and text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.data.datasets.file_index import counted
from nsfse.data.text_files import Name, read_json, read_lines
from nsfse_runtime.errors import DataError


def only_listed(protocols: Sequence[EvaluationProtocol], file: Path) -> list[EvaluationProtocol]:
    """Return the protocols with the queries whose ids are in `file`: a JSON list, or one id a line.

    An id is a pairid of CIRR, a qid of LaSCo, an id of CIRCO or PinPoint; elsewhere it is REFERENCE/TARGET. The
    protocols are called NAME-only-FILE, and those without a listed query are left out.

    Raises DataError where an id is of no query.
    """
    wanted = _ids(file)
    cut = [replace(p, queries=tuple(q for q in p.queries if _id(q) in wanted)) for p in protocols]
    unknown = sorted(wanted.difference(_id(query) for protocol in cut for query in protocol.queries))
    if unknown:
        raise DataError(f"{file} lists {counted(len(unknown), 'id')} of no query here, such as {unknown[0]!r}")
    note = f"only the {counted(len(wanted), 'query', 'queries')} of {file.name}"
    return [
        replace(p, name=f"{p.name}-only-{file.stem}", note=f"{p.note}; {note}".removeprefix("; "))
        for p in cut
        if p.queries
    ]


def _id(query: EvalQuery) -> str:
    return query.pairid or "/".join([query.reference, *query.targets[:1]])


def _ids(file: Path) -> frozenset[str]:
    lines = [line.strip() for _, line in read_lines(file)]
    if lines and lines[0].startswith("["):
        listed: list[int | str] = read_json(file, list[int | Name], "id")
        return frozenset(map(str, listed))
    return frozenset(lines)
