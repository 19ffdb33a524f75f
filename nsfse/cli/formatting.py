"""How results look on a terminal. Names from outside go through `printable`; JSON is ASCII for the same reason."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nsfse_runtime import SCHEMA_VERSION
from nsfse_runtime.escaping import printable

if TYPE_CHECKING:
    from nsfse_runtime.gallery.gallery import Gallery
    from nsfse_runtime.retrieval.retriever import Hit, Result

WELCOME = """\
nsfse finds images by an image and a few words: "this dress, but red".
  nsfse demo                                            a page over drawn images, to try it
  nsfse index my.gallery photos/ -b BUNDLE              take a folder of images into a gallery
  nsfse query dress.jpg "make it red" -g my.gallery     ask it
  nsfse --help                                          all commands
"""


_SHOWN = 10
"""Names of files of one reason that the report of an index shows."""

MARKS = {"matched": "+", "mismatched": "-", "silent": ""}
NO_MATCH = "nothing here matches"
EMPTY = {
    None: "no image in the gallery fits these conditions",
    True: "no image is of this confidence; lower --min-confidence",
    False: NO_MATCH,
}
"""What is said of no hits, by `Result.matches`."""

SCORES = (
    "queries",
    "R@1",
    "R@5",
    "R@10",
    "R@50",
    "R_subset@1",
    "R_subset@2",
    "R_subset@3",
    "soft_R@1",
    "soft_R_subset@1",
    "hard_negative_rate",
    "phrasing_gap",
    "phrasing_sensitivity_R@1",
    "phrasing_sensitivity_P@10",
)
"""The columns of a table of scores, of which those are shown that a protocol has; JSON has all there are."""


def to_json(value: Any) -> str:
    """Return `value` (structs, dataclasses, paths, dicts) as JSON with the version of its form; nan becomes null."""
    plain = _plain(value)
    versioned = {"schema_version": SCHEMA_VERSION, **plain} if isinstance(plain, dict) else plain
    return json.dumps(versioned, indent=2)


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def columns(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of text, numbers to the right, everything else to the left."""
    cells = [list(header), *([_cell(item) for item in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(_is_number(row[at]) for row in cells[1:]) for at in range(len(header))]
    lines = []
    for row in cells:
        parts = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _cell(item: Any) -> str:
    if item is None:
        return "-"
    return f"{item:.2f}" if isinstance(item, float) else printable(str(item))


def _is_number(cell: str) -> bool:
    return cell in ("-", "nan") or cell.replace(".", "", 1).replace("-", "", 1).isdigit()


def format_tree(value: Mapping[str, Any], indent: str = "") -> str:
    """Return nested facts as indented `name: value` lines."""
    lines = []
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{indent}{printable(name)}:", format_tree(item, indent + "  ")]
        elif isinstance(item, list | tuple) and item:
            inner = ", ".join(printable(str(part)) for part in item)
            lines.append(f"{indent}{printable(name)}: {inner}")
        elif item not in (None, "", {}, [], ()):
            lines.append(f"{indent}{printable(name)}: {printable(str(item))}")
    return "\n".join(lines)


def printable_lines(lines: Iterable[str]) -> str:
    """Return `lines`, each made safe to print."""
    return "\n".join(map(printable, lines))


def training_text(result: Mapping[str, Any]) -> str:
    """Return where the run lies, its last metrics, and what to do next."""
    run = printable(str(result["run"]))
    if result["interrupted"]:
        return f"stopped; the same command continues {run}"
    scores = {name: item for name, item in result["metrics"].items() if isinstance(item, int | float)}
    return f"{format_tree(scores)}\nnext: nsfse export {run} -o BUNDLE"


def index_text(report: Mapping[str, Any]) -> str:
    """Return the counts of a sync, and every file that was left out with its reason."""
    names = ("added", "updated", "renamed", "removed", "unchanged", "encoded")
    lines = [", ".join(f"{report[name]} {name}" for name in names)]
    if report["encoded"]:
        lines.append(f"{report['images_per_second']:.1f} images/s on {report['device']}")
    if ann := report["ann"]:
        enough = "" if ann["recall"] >= 0.99 else ", which is too few: it is searched exactly"
        lines.append(f"its index finds {100 * ann['recall']:.1f} % of the best 100{enough}")
    if report.get("left_out"):
        rules = ", ".join(f"{count} {printable(rule)}" for rule, count in report["left_out"].items())
        lost = f"; {report['excluded']} images are in the gallery no more" if report["excluded"] else ""
        lines.append(f"left out by their names: {rules}{lost}")
    lines += _failed_lines(report["failed"])
    if report["unmatched"]:
        shown, rest = report["unmatched"][:5], len(report["unmatched"]) - 5
        names_shown = ", ".join(map(printable, shown)) + (f" and {rest} more" if rest > 0 else "")
        lines.append(f"{_rows_name(len(report['unmatched']))} no image, or several: {names_shown}")
    if report.get("loose"):
        pairs = ", ".join(f"{printable(key)} = {printable(name)}" for key, name in report["loose"][:3])
        lines.append(f"{_rows_name(len(report['loose']))} an image by a part of its path or name: {pairs}")
    return "\n".join(lines)


def _rows_name(count: int) -> str:
    return "1 row of the table names" if count == 1 else f"{count} rows of the table name"


def empty(result: "Result") -> str:
    """Return what is said of no hits."""
    whole = all(text.whole for text in result.texts)
    return EMPTY[result.has_match] if whole else "no hit is left"


def _failed_lines(failed: Sequence[tuple[str, str]]) -> list[str]:
    """Return files that were not taken by their reason, those that are images first, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for path, reason in failed:
        groups.setdefault(reason, []).append(path)
    order = sorted(groups.items(), key=lambda group: (_is_no_image(group[0]), -len(group[1])))
    lines = [f"{len(failed)} {'file is' if len(failed) == 1 else 'files are'} not in the gallery:"] if failed else []
    for reason, paths in order:
        if len(paths) == 1:
            lines.append(f"  {printable(paths[0])}: {printable(reason)}")
            continue
        some = ", ".join(map(printable, paths[:_SHOWN])) + (", ..." if len(paths) > _SHOWN else "")
        lines.append(f"  {len(paths)} files: {printable(reason)} ({some})")
    return lines


def _is_no_image(reason: str) -> bool:
    return reason.endswith("not an image") or reason.startswith("not an image")


def query_text(result: Any) -> str:
    """Return the hits as a table: each word stands with + where matched, - where not, bare where it says little."""
    from nsfse_runtime.visualize.rows import verdict

    if not result.hits:
        return "\n".join([*map(printable, result.notes), empty(result)])
    rows = (
        (
            rank,
            hit.score,
            _match(hit),
            hit.id,
            " ".join(e.word + MARKS[verdict(e, len(hit.evidence))] for e in hit.evidence),
        )
        for rank, hit in enumerate(result.hits, 1)
    )
    lines = [columns(("rank", "score", "match", "id", "words"), rows)]
    lines += match_lines(result)
    lines += map(printable, result.notes)
    if (total := result.timings_ms.get("total")) is not None:
        lines.append(f"{total:.0f} ms")
    return "\n".join(lines)


def match_lines(result: "Result") -> list[str]:
    """Return that nothing matches, where it is so, and from which confidence on a hit would."""
    if result.threshold is None:
        return [NO_MATCH] if result.has_match is False else []
    if result.has_match is False:
        return [f"{NO_MATCH}: no confidence reaches {result.threshold:.2f}"]
    return [f"a match has a confidence of {result.threshold:.2f} or more"]


def _match(hit: "Hit") -> str:
    """Return whether a hit is a match, and how confident that is where the model tells it."""
    said = {True: "yes", False: "no", None: "-"}[hit.is_match]
    return said if hit.confidence is None else f"{said:<3} {hit.confidence:.2f}"


def scores_text(found: Mapping[str, Any]) -> str:
    """Return scores as one table of protocols and modes, and a line for each thing to know of a protocol."""
    from nsfse.evaluation.notices import by_line, category_line, notices

    entries = [(name, entry) for part in (found["protocols"], *found["modes"].values()) for name, entry in part.items()]
    shown = [key for key in SCORES if any(entry.get(key) is not None for _, entry in entries)]
    bare = [(name, {"mode": "-", "queries": each["queries"]}) for name, each in found["not_scored"].items()]
    rows = [(name, entry["mode"], *(entry.get(key) for key in shown)) for name, entry in (*entries, *bare)]
    lines = [columns(("protocol", "mode", *shown), rows)]
    lines += [f"{printable(group)}: {category_line(means)}" for group, means in found["summary"].items()]
    noted = [(name, line) for name, entry in found["protocols"].items() for line in notices(entry)]
    noted += [(name, f"not scored: {each['reason']}") for name, each in found["not_scored"].items()]
    lines += map(printable, by_line(noted))
    return "\n".join([*lines, *(f"written: {printable(file)}" for file in found["files"])])


def recipe_text(found: Mapping[str, Any]) -> str:
    """Return what a recipe needs, does and expects."""
    data, expected = found["data"], found["expected"]
    rows = [(p, metric, figure) for p, figures in expected["scores"].items() for metric, figure in figures.items()]
    return "\n".join(
        [
            found["title"],
            *("", "data:", f"  annotations  {data['annotations']}", f"  images     {data['image_source']}"),
            *("  layout, in any depth:", *(f"    {line}" for line in data["layout"])),
            *("  official counts:", *(f"    {name} {count}" for name, count in data["counts"].items())),
            *(f"  there: {name} {count}" for name, count in found.get("there", {}).items()),
            *("", f"weights: {found['weights']}", ""),
            *_protocol_lines(found["protocol"]),
            *("", "expected:", columns(("protocol", "metric", "expected"), rows)),
            *_origin_lines(expected["source"], expected["note"]),
        ]
    )


def reproduced_text(found: Mapping[str, Any]) -> str:
    """Return the protocol, then what was expected against what came."""
    from nsfse.evaluation.notices import category_line, gap_parts

    rows = [(row["protocol"], row["metric"], row["expected"], row["got"], _difference(row)) for row in found["rows"]]
    cut = [f"training was ended after {found['steps']} steps: no reproduction"] if found["steps"] else []
    return "\n".join(
        [
            *(found["title"], *_protocol_lines(found["protocol"]), ""),
            *(printable(f"{name}: {'; '.join(gap_parts(entry))}") for name, entry in found["incomplete"].items()),
            *(printable(f"{name}: not scored: {each['reason']}") for name, each in found["not_scored"].items()),
            *(f"{printable(group)}: {category_line(means)}" for group, means in found["summary"].items()),
            *(f"written for the test server: {printable(file)}" for file in found["files"]),
            *cut,
            columns(("protocol", "metric", "expected", "got", "difference"), rows),
            *_origin_lines(found["source"], found["note"]),
        ]
    )


def _protocol_lines(protocol: Iterable[str]) -> list[str]:
    return ["protocol:", *(f"  {line}" for line in protocol)]


def _origin_lines(source: str, note: str) -> list[str]:
    return [f"source: {source}", *([f"note: {note}"] if note else [])]


def _difference(row: Mapping[str, Any]) -> float | None:
    known = isinstance(row["expected"], float) and isinstance(row["got"], float)
    return row["got"] - row["expected"] if known else None


def write_sheets(
    gallery: "Gallery",
    image: str,
    text: str,
    result: "Result",
    png: Path | None,
    html: Path | None,
    more: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a query's hits as a contact sheet and as a page, where they are wanted.

    `more` are the query's further images, each with what it is there for. Raises OutputError.
    """
    if not (png or html):
        return
    from nsfse.open import image_file
    from nsfse_runtime.visualize.contact_sheet import contact_sheet
    from nsfse_runtime.visualize.html_page import html_page
    from nsfse_runtime.visualize.rows import sheet_row

    names = [Path(image).name, *(f"{said} {Path(name).name}" for said, name in more)]
    note = ", ".join([NO_MATCH, *names] if result.has_match is False else names)
    others = [(said, image_file(gallery, name)) for said, name in more]
    row = sheet_row(image_file(gallery, image), text, result.hits, note=note, more=others, notes=result.notes)
    if png:
        contact_sheet([row], png)
    if html:
        html_page([row], html, title=f"nsfse: {text}")


def doctor_text(found: Mapping[str, Any]) -> str:
    """Return the doctor's findings, the problems last, one a line."""
    facts = {name: item for name, item in found.items() if name not in ("schema_version", "problems")}
    problems = [f"problem: {printable(problem)}" for problem in found["problems"]]
    return "\n".join([format_tree(facts), *(problems or ["no problem found"])])


def comparison_text(found: Mapping[str, Any]) -> str:
    """Return the table of a comparison, what leads, where it lies, what is missing and how long it took."""
    from nsfse.benchmark.table import findings, format_mean_std

    names = ("protocol", "method", "seeds", "R@1", "R@10", "hard-negative@1", "phrasing gap", "minutes")
    rows = [
        (
            *(_in_block(row.block, row.protocol), row.method, row.seeds),
            *(format_mean_std(row.r1, row.r1_std), format_mean_std(row.r10, row.r10_std)),
            *(row.hard_negative_rate, row.phrasing_gap, row.minutes),
        )
        for row in found["rows"]
    ]
    lines = [columns(names, rows)] if rows else ["nothing is scored yet"]
    lines += [printable(f"{_in_block(one.block, one.protocol)}: {one.text}") for one in findings(found["rows"])]
    if found["missing"]:
        lines += ["missing; the same command continues:", *(f"  {printable(name)}" for name in found["missing"])]
    lines.append(f"{found['hours']:.2f} hours now, {found['total_hours']:.2f} in all trainings and evaluations")
    return "\n".join([*lines, *(f"written: {printable(str(file))}" for file in found["files"])])


def _in_block(block: str, protocol: str) -> str:
    return f"{block}: {protocol}" if block else protocol


def boxed_text(ready: Mapping[str, Any]) -> str:
    """Return where the page is, and what to do with it and after it."""
    gallery, bundle = (printable(str(ready[name])) for name in ("gallery", "bundle"))
    return "\n".join(
        [
            f"{ready['images']:,} drawn images are at {ready['url']}    (Ctrl-C ends it)",
            "next:",
            f'  nsfse query IMAGE "make it red" -g {gallery}',
            f"  nsfse index my.gallery FOLDER -b {bundle}    (it knows drawings only)",
            "  nsfse demo --train                          how such a model is made; needs nsfse[export,pretrained]",
        ]
    )


def demo_text(found: Mapping[str, Any]) -> str:
    """Return the demo's table, where its files lie, and what to try next."""
    names = ("queries", "R@1", "R@10", "R@50", "hard_negative_rate")
    rows = [
        (mode, engine, *(scores.get(name) for name in names))
        for engine, modes in (("torch", found["torch"]), ("onnx", found["runtime"]))
        for mode, scores in modes.items()
    ]
    files = {name: printable(path) for name, path in found["files"].items()}
    return "\n".join(
        [
            columns(("query", "engine", *names), rows),
            f"largest difference between the engines: {found['largest_difference']:.2f} points",
            f"the images: {files['sheet.png']} and {files['sheet.html']}",
            "next:",
            f"  nsfse query IMAGE TEXT -g {files['easy.gallery']}",
            f"  nsfse serve -g {files['easy.gallery']}    # a page at http://127.0.0.1:8000/",
            f"  nsfse info {files['bundle']}",
            f"  nsfse index my.gallery FOLDER -b {files['bundle']}     (it knows drawings only)",
        ]
    )
