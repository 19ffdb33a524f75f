"""What the commands on galleries print as text: what an index, a check and a repair did."""

from collections.abc import Mapping, Sequence
from typing import Any

from nsfse_runtime.escaping import printable

_SHOWN = 10
"""Names of files of one reason that the report of an index shows."""


def index_text(report: Mapping[str, Any]) -> str:
    """Return the counts of a sync, and every file that was left out with its reason."""
    names = ("added", "updated", "renamed", "removed", "unchanged", "encoded")
    lines = [", ".join(f"{report[name]} {name}" for name in names)]
    if report.get("shards") or report.get("shards_before"):
        lines.append(f"{report['shards']} shards indexed, {report['shards_before']} before")
    if report["encoded"]:
        lines.append(f"{report['images_per_second']:.1f} images/s on {report['device']}")
    if ann := report["ann"]:
        verdict = "" if ann["recall"] >= 0.99 else ", which is too few: it is searched exactly"
        lines.append(f"its index finds {100 * ann['recall']:.1f} % of the best 100{verdict}")
    lines += _metadata_lines(report)
    if report.get("left_out"):
        rules = ", ".join(f"{count} {printable(rule)}" for rule, count in report["left_out"].items())
        removed = f"; {report['excluded']} images are in the gallery no more" if report["excluded"] else ""
        lines.append(f"left out by their names: {rules}{removed}")
    lines += _failed_lines(report["failed"])
    if report["unmatched"]:
        shown, rest = report["unmatched"][:5], len(report["unmatched"]) - 5
        names_shown = ", ".join(map(printable, shown)) + (f" and {rest} more" if rest > 0 else "")
        lines.append(f"{_rows_name(len(report['unmatched']))} no image, or several: {names_shown}")
    if report.get("loose"):
        pairs = ", ".join(f"{printable(key)} = {printable(name)}" for key, name in report["loose"][:3])
        lines.append(f"{_rows_name(len(report['loose']))} an image by a part of its path or name: {pairs}")
    return "\n".join(lines)


def copy_text(report: Mapping[str, Any]) -> str:
    """Return what a copy of a gallery did."""
    return f"{report['images']} images are there, the features of {report['sent']} were sent"


def verification_text(found: Mapping[str, Any]) -> str:
    """Return what is wrong with a gallery, a line each."""
    if not found["faults"]:
        return f"{found['images']} images, and all of it is as it was written"
    return "\n".join(map(printable, _some(found["faults"], 50)))


def repair_text(report: Mapping[str, Any]) -> str:
    """Return what a repair kept, encoded again, and what is gone."""
    if not report["faults"]:
        return f"nothing is damaged: {report['kept']} images"
    lines = [f"{len(report['faults'])} faults, {report['kept']} images kept, {report['encoded']} encoded again"]
    if gone := report["gone"]:
        lines += [f"{len(gone)} images are gone:", *(f"  {printable(name)}" for name in _some(gone, 20))]
    if bare := report["without_metadata"]:
        lines += [f"the metadata, if any, of {len(bare)} images are gone; index with --metadata:"]
        lines += [f"  {printable(name)}" for name in _some(bare, 20)]
    if report["problem"]:
        lines.append(printable(report["problem"]))
    return "\n".join([*lines, f"the damaged file is {printable(report['set_aside'])}"])


def _metadata_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what a table of metadata changed, and what it left."""
    lines = []
    if changed := report.get("metadata_changed"):
        by_column = ", ".join(f"{printable(name)} {count}" for name, count in report["columns_changed"].items())
        lines.append(f"metadata changed: {changed} {'image' if changed == 1 else 'images'} ({by_column})")
    if kept := report.get("metadata_kept"):
        lines.append(f"metadata kept: {kept} {'image' if kept == 1 else 'images'} that no row of the table names")
    return lines


def _some(lines: Sequence[str], count: int) -> list[str]:
    rest = len(lines) - count
    return [*lines[:count], *([f"... and {rest} more"] if rest > 0 else [])]


def _rows_name(count: int) -> str:
    return "1 row of the table names" if count == 1 else f"{count} rows of the table name"


def _failed_lines(failed: Sequence[tuple[str, str]]) -> list[str]:
    """Return the files that were not indexed by reason, images first, then the most frequent reason."""
    groups: dict[str, list[str]] = {}
    for path, reason in failed:
        groups.setdefault(reason, []).append(path)
    order = sorted(groups.items(), key=lambda group: (_is_no_image(group[0]), -len(group[1])))
    lines = [f"{len(failed)} {'file is' if len(failed) == 1 else 'files are'} not in the gallery:"] if failed else []
    for reason, paths in order:
        if len(paths) == 1:
            lines.append(f"  {printable(paths[0])}: {printable(reason)}")
            continue
        names = ", ".join(map(printable, paths[:_SHOWN])) + (", ..." if len(paths) > _SHOWN else "")
        lines.append(f"  {len(paths)} files: {printable(reason)} ({names})")
    return lines


def _is_no_image(reason: str) -> bool:
    return reason.endswith("not an image") or reason.startswith("not an image")
