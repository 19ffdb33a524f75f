"""`nsfse data check`: what a data set should hold, what it holds, and every file that is missing or broken."""

from pathlib import Path
from typing import Any

from nsfse.data import CheckReport
from nsfse.data.datasets.file_index import EMPTY, counted
from nsfse_runtime.json_schema import SCHEMA_VERSION

__all__ = ["check_dataset", "report_json", "report_lines"]


def check_dataset(name: str, folder: Path, **options: Any) -> CheckReport:
    """Open a data set, count it against the official numbers and decode every image; annotations alone will do.

    Args:
        name: A name of nsfse.data.registry.SOURCES.
        folder: The folder that holds the data set.
        options: The reader's options, such as `images`.

    Raises:
        UsageError: The name or an option is unknown.
        NotFoundError: The folder, or a file that the data set needs, is not there.
        DataError: A file is not in its form.
    """
    from nsfse.data.registry import open_source

    return open_source(name, folder, **options).check()


def report_json(report: CheckReport) -> dict[str, Any]:
    """Return the report as JSON-able values, with the whole list of missing ids and of broken files."""
    zero = [file for file, reason in report.broken if reason == EMPTY]
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": report.name,
        "ok": report.ok,
        "counts": {key: {"found": n, "expected": report.expected.get(key)} for key, n in _all_counts(report).items()},
        "missing": list(report.missing),
        "zero_byte": zero,
        "broken": [{"file": file, "reason": reason} for file, reason in report.broken if reason != EMPTY],
        "faults": [{"what": fault.plural, "entries": list(fault.entries)} for fault in report.faults],
        "skipped": [{"path": path, "reason": reason} for path, reason in report.skipped],
        "notes": list(report.notes),
    }


def report_lines(report: CheckReport, names: int = 5) -> list[str]:
    """Return the report as lines to read: counts with a verdict each, then the first `names` of each list of faults."""
    counts = _all_counts(report)
    width = max((len(key) for key in counts), default=0)
    lines = [_count_line(report, key, width, n) for key, n in counts.items()]
    lines += _listed("missing image", list(report.missing), names)
    lines += _listed("broken file", [f"{file}: {reason}" for file, reason in report.broken], names)
    lines += _listed("unread place", [f"{path}: {reason}" for path, reason in report.skipped], names)
    lines += map(str, report.faults)
    verdict = "complete" if report.ok else "not complete" if _incomplete(report) else "complete, with faulty entries"
    return [*lines, *report.notes, f"{report.name}: {verdict}"]


def _incomplete(report: CheckReport) -> bool:
    return bool(report.missing or report.broken or report.differing)


def _all_counts(report: CheckReport) -> dict[str, int]:
    return {**report.counts, **{key: 0 for key in report.expected if key not in report.counts}}


def _count_line(report: CheckReport, key: str, width: int, count: int) -> str:
    expected = report.expected.get(key)
    if expected is None:
        return f"{key:<{width}}  {count:>7}"
    verdict = "ok" if count == expected else "differs" if key in report.counts else "absent"
    return f"{key:<{width}}  {count:>7} of {expected:>7}  {verdict}"


def _listed(noun: str, names: list[str], limit: int) -> list[str]:
    if not names:
        return []
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return [f"{counted(len(names), noun)}: {', '.join(names[:limit])}{rest}"]
