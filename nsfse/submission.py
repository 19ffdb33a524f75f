"""CIRR's test-server files: what to send for test1, and what to see to before sending.

The form is docs/benchmarks.md's: {"version": "rc2", "metric": "recall" | "recall_subset", "<pairid>": [names]} with 50
names, or 3 for the subset, the best first, never the reference, at most 5 MB a file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsfse.data import Protocol, Triplet
from nsfse.scoring import ProtocolResult
from nsfse_runtime.errors import DataError, NotFoundError, OutputError

__all__ = ["METRICS", "submission_faults", "submissions", "write_submission"]

METRICS = {"recall": 50, "recall_subset": 3}
"""Metric → how many names the server wants for each pair."""
MAX_BYTES = 5_000_000
HEADER = ("version", "metric")


def write_submission(result: ProtocolResult, folder: Path) -> tuple[Path, ...]:
    """Write `recall.json` and `recall_subset.json` into `folder`, made if need be, and return their paths.

    Raises DataError when the files would not be accepted (an incomplete gallery), OutputError when they cannot be
    written.
    """
    for metric in METRICS:
        _refuse_others(folder / f"{metric}.json")
    paths: list[Path] = []
    for metric, content in submissions(result).items():
        text = json.dumps(content, separators=(",", ":"))
        faults = list(_faults(content, len(text), result.protocol))
        if faults:
            raise DataError(f"the {metric} file would be refused: {faults[0]}; see `nsfse data check cirr`")
        path = folder / f"{metric}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path} ({error.strerror}); name another folder") from error
        paths.append(path)
    return tuple(paths)


def _refuse_others(path: Path) -> None:
    """Raise OutputError where `path` is there and is no submission."""
    try:
        known = not path.exists() or json.loads(path.read_bytes()).get("metric") in METRICS
    except (ValueError, AttributeError, OSError):
        known = False
    if not known:
        raise OutputError(f"{path} is there and is no submission; name another folder, or delete it first")


def submissions(result: ProtocolResult) -> dict[str, dict[str, Any]]:
    """Return metric → content of its file, from whole rankings of the test split."""
    gallery, version = result.protocol.gallery, result.protocol.version
    recall: dict[str, Any] = {"version": version, "metric": "recall"}
    subset: dict[str, Any] = {"version": version, "metric": "recall_subset"}
    for ranked in result.rankings:
        query = ranked.query
        names = [gallery[row] for row in ranked.rows.tolist()]
        recall[query.pairid] = names[: METRICS["recall"]]
        members = frozenset(query.subset)
        subset[query.pairid] = [name for name in names if name in members][: METRICS["recall_subset"]]
    return {"recall": recall, "recall_subset": subset}


def submission_faults(file: Path, protocol: Protocol) -> list[str]:
    """Return what the server would refuse in a file, a line each; empty when it is in order.

    Raises NotFoundError where there is no such file.
    """
    if not file.is_file():
        raise NotFoundError(f"no such file: {file}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        return [f"not JSON: {error}"]
    return list(_faults(content, file.stat().st_size, protocol))


def _faults(content: Any, size: int, protocol: Protocol) -> Iterator[str]:
    if not isinstance(content, dict):
        yield "not an object of pairid: names"
        return
    if size > MAX_BYTES:
        yield f"{size} bytes; the server takes at most {MAX_BYTES}"
    if content.get("version") != protocol.version:
        yield f"version is {content.get('version')!r}, not {protocol.version!r}"
    if content.get("metric") not in METRICS:
        yield f"metric is {content.get('metric')!r}, not one of {', '.join(METRICS)}"
        return
    gallery = frozenset(protocol.gallery)
    queries = {query.pairid: query for query in protocol.queries}
    lacking = queries.keys() - content.keys()
    if lacking:
        yield f"{len(lacking)} pairs are not answered, such as {min(lacking)}"
    for pairid, names in content.items():
        if pairid not in HEADER:
            yield from _pair_faults(pairid, names, queries.get(pairid), content["metric"], gallery)


def _pair_faults(pairid: str, names: Any, query: Triplet | None, metric: str, gallery: frozenset[str]) -> Iterator[str]:
    if query is None:
        yield f"pair {pairid} is not one of the split"
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield f"pair {pairid}: not a list of names"
        return
    if len(names) != METRICS[metric]:
        yield f"pair {pairid}: {len(names)} names, not {METRICS[metric]}"
    if len(set(names)) != len(names):
        yield f"pair {pairid}: a name occurs twice"
    if query.reference in names:
        yield f"pair {pairid}: the reference is among the names"
    allowed = gallery if metric == "recall" else frozenset(query.subset)
    strange = next((name for name in names if name not in allowed), None)
    if strange is not None:
        yield f"pair {pairid}: {strange} is not {'in the split' if metric == 'recall' else 'a member of its set'}"
