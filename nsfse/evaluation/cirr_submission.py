"""CIRR's test-server files: writing them for test1, and checking them before they are sent.

A file is {"version": "rc2", "metric": "recall" | "recall_subset", "<pairid>": [names]}. It has 50
names for each pair, or 3 for the subset, the best first and never the reference. A file has at most
5 MB (docs/benchmarks.md).
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nsfse.data import EvalQuery, EvaluationProtocol
from nsfse.data.datasets.file_index import counted
from nsfse.evaluation.results import ProtocolResult
from nsfse_runtime.atomic_write import replacing
from nsfse_runtime.errors import DataError, NotFoundError, OutputError
from nsfse_runtime.regular_files import read_regular

__all__ = ["METRICS", "check_split", "submission_faults", "submissions", "write_submission"]

METRICS = {"recall": 50, "recall_subset": 3}
"""Metric → how many names the server wants for each pair."""
MAX_BYTES = 5_000_000
HEADER = ("version", "metric")


def check_split(protocol: EvaluationProtocol, unlisted: Collection[str] = ()) -> None:
    """Check that valid files can be made of a test split, before it is ranked.

    The server wants every pair once, with whole rankings.

    Args:
        protocol: The test split.
        unlisted: Ids that no split list has.

    Raises:
        DataError: The server would refuse the files.
    """
    fault = next(_split_faults(protocol, frozenset(unlisted)), None)
    if fault:
        raise DataError(f"{protocol.name}: {fault}; the files would be refused by the test server, so none is written")


def write_submission(result: ProtocolResult, folder: Path) -> tuple[Path, ...]:
    """Write `recall.json` and `recall_subset.json`: both or neither.

    Args:
        result: The rankings of the test split.
        folder: Where to write them; made if need be.

    Returns:
        The paths of the two files.

    Raises:
        DataError: The server would refuse one of them.
        OutputError: They cannot be written.
    """
    check_split(result.protocol)
    for metric in METRICS:
        _refuse_others(folder / f"{metric}.json")
    texts: dict[Path, bytes] = {}
    for metric, content in submissions(result).items():
        text = json.dumps(content, separators=(",", ":")).encode()
        faults = list(_faults(content, len(text), result.protocol))
        if faults:
            raise DataError(f"the {metric} file would be refused: {faults[0]}; see `nsfse data check cirr`")
        texts[folder / f"{metric}.json"] = text
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_all(texts)
    except OSError as error:
        raise OutputError(f"cannot write into {folder} ({error.strerror}); name another folder") from error
    return tuple(texts)


def _write_all(texts: Mapping[Path, bytes]) -> None:
    """Write all files or none: each beside its place first, then all are renamed; what was there comes back if not."""
    before = {path: path.read_bytes() if path.exists() else None for path in texts}
    try:
        with ExitStack() as stack:
            for path, text in texts.items():
                stack.enter_context(replacing(path)).write_bytes(text)
    except OSError:
        for path, former in before.items():
            if path.exists() and path.read_bytes() != former:
                path.unlink() if former is None else path.write_bytes(former)
        raise


def _refuse_others(path: Path) -> None:
    """Raise OutputError where `path` is there and is no submission."""
    try:
        known = not path.exists() or json.loads(read_regular(path)).get("metric") in METRICS
    except (ValueError, AttributeError, OSError):
        known = False
    if not known:
        raise OutputError(f"{path} is there and is no submission; name another folder, or delete it first")


def submissions(result: ProtocolResult) -> dict[str, dict[str, Any]]:
    """Return the content of both files, by metric.

    The members of an image set stand in the order of their own scores.

    Args:
        result: The rankings of the test split.

    Returns:
        Metric → content of its file.

    Raises:
        DataError: Two pairs share a pairid, or it is a field of the file.
    """
    gallery, version = result.protocol.gallery, result.protocol.version
    recall: dict[str, Any] = {"version": version, "metric": "recall"}
    subset: dict[str, Any] = {"version": version, "metric": "recall_subset"}
    for ranked in result.rankings:
        pairid = ranked.query.pairid
        if pairid in recall:
            raise DataError(f"pairid {pairid!r} cannot be used twice, nor for a field of the file; give it another one")
        recall[pairid] = [gallery[row] for row in ranked.rows[: METRICS["recall"]].tolist()]
        subset[pairid] = [gallery[row] for row in ranked.subset[: METRICS["recall_subset"]].tolist()]
    return {"recall": recall, "recall_subset": subset}


def _split_faults(protocol: EvaluationProtocol, unlisted: frozenset[str]) -> Iterator[str]:
    """Yield what is wrong with the annotations of a test split, as far as the files depend on it."""
    yield from _pairid_faults(protocol)
    lacking = max(protocol.missing, len(protocol.missing_ids))
    if lacking:
        yield f"{counted(lacking, 'image')} of its gallery {'is' if lacking == 1 else 'are'} missing"
    gallery = frozenset(protocol.gallery)
    if len(gallery) <= METRICS["recall"]:
        yield f"its gallery has {counted(len(gallery), 'image')}, and 50 besides the reference are sent"
    for query in protocol.queries:
        if query.reference in unlisted:
            yield f"pairid {query.pairid}: its reference {query.reference} is in no split list"
        members = gallery.intersection(query.subset) - {query.reference}
        if len(members) < METRICS["recall_subset"]:
            yield f"pairid {query.pairid}: {len(members)} of its image set can be ranked, and 3 are sent"


def _pairid_faults(protocol: EvaluationProtocol) -> Iterator[str]:
    """Yield the pairids that cannot be keys of a file: they are no integers, or two pairs have the same."""
    seen: dict[str, int] = {}
    for position, query in enumerate(protocol.queries, 1):
        if not (query.pairid.isascii() and query.pairid.isdigit()):
            yield f"pair {position} has the pairid {query.pairid!r}, which is not an integer"
        if first := seen.get(query.pairid):
            yield (
                f"pairid {query.pairid} is that of pair {first} (reference {protocol.queries[first - 1].reference}) "
                f"and of pair {position} (reference {query.reference})"
            )
        seen.setdefault(query.pairid, position)


def submission_faults(file: Path, protocol: EvaluationProtocol) -> list[str]:
    """Check a file for the test server.

    Args:
        file: The file.
        protocol: The test split that it answers.

    Returns:
        What the server would refuse, a line each; empty when the file is in order.

    Raises:
        NotFoundError: There is no such file.
    """
    if not file.is_file():
        raise NotFoundError(f"no such file: {file}")
    repeated: list[str] = []
    try:
        content = json.loads(read_regular(file), object_pairs_hook=lambda pairs: _unique(pairs, repeated))
    except (ValueError, RecursionError) as error:
        return [f"not JSON: {error}"]
    faults = [f"{key!r} is there twice" for key in repeated]
    return faults + list(_faults(content, file.stat().st_size, protocol))


def _unique(pairs: Iterable[tuple[str, Any]], repeated: list[str]) -> dict[str, Any]:
    """Return the fields of a JSON object; those that are there `twice` are noted."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            repeated.append(key)
        fields[key] = value
    return fields


def _faults(content: Any, size: int, protocol: EvaluationProtocol) -> Iterator[str]:
    if not isinstance(content, dict):
        yield "not an object of pairid: names"
        return
    if size > MAX_BYTES:
        yield f"{size} bytes; the server takes at most {MAX_BYTES}"
    if content.get("version") != protocol.version:
        yield f"version is {content.get('version')!r}, not {protocol.version!r}"
    if content.get("metric") not in tuple(METRICS):
        yield f"metric is {content.get('metric')!r}, not one of {', '.join(METRICS)}"
        return
    gallery = frozenset(protocol.gallery)
    queries = {query.pairid: query for query in protocol.queries}
    lacking = queries.keys() - content.keys()
    if lacking:
        are = "is" if len(lacking) == 1 else "are"
        yield f"{counted(len(lacking), 'pair')} {are} not answered, such as {min(lacking)}"
    for pairid, names in content.items():
        if pairid not in HEADER:
            yield from _pair_faults(pairid, names, queries.get(pairid), content["metric"], gallery)


def _pair_faults(
    pairid: str, names: Any, query: EvalQuery | None, metric: str, gallery: frozenset[str]
) -> Iterator[str]:
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
    foreign = next((name for name in names if name not in allowed), None)
    if foreign is not None:
        yield f"pair {pairid}: {foreign} is not {'in the split' if metric == 'recall' else 'a member of its set'}"
