"""What each command prints as text: for people, and free to change."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nsfse.cli.formatting import columns, format_tree
from nsfse_runtime.escaping import printable
from nsfse_runtime.image_names import loose

if TYPE_CHECKING:
    from nsfse_runtime.retrieval.results import Hit, Result

_NAMED = 3
"""Names of photos of one reason that the report of a prepared set shows."""

MARKS = {"matched": "+", "mismatched": "-", "silent": ""}
NO_MATCH = "nothing here matches"
EMPTY = {
    None: "no image in the gallery fits these conditions",
    True: "no image is of this confidence; lower --min-confidence",
    False: NO_MATCH,
}
"""What is printed without hits, by `Result.has_match`."""

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


def training_text(result: Mapping[str, Any]) -> str:
    """Return the last metrics of a run, and what to do next."""
    run = printable(str(result["run"]))
    if result["interrupted"]:
        return f"stopped; the same command continues {run}"
    scores = {name: item for name, item in result["metrics"].items() if isinstance(item, int | float)}
    return f"{format_tree(scores)}\nnext: nsfse export {run} -o BUNDLE"


def prepared_text(made: Mapping[str, Any]) -> str:
    """Return how many images a prepared set has, which photos it goes without, and what to do next."""
    folder = printable(str(made["folder"]))
    lines = [f"{made['images']} images are in {folder}"]
    broken = [f"{item} ({reason})" for item, reason in made["broken"]]
    skipped = [
        f"{len(names)} {what}: {', '.join(map(printable, names[:_NAMED]))}{', ...' if len(names) > _NAMED else ''}"
        for names, what in ((list(made["missing"]), "missing"), (broken, "broken"))
        if names
    ]
    lines += [f"photos left out: {'; '.join(skipped)}"] if skipped else []
    lines += [f"not looked at: {printable(path)}: {reason}" for path, reason in made["unread"]]
    return "\n".join([*lines, f"next: nsfse train --preset {made['dataset']} --data {folder} -o RUN"])


def empty(result: "Result") -> str:
    """Return what is printed without hits."""
    whole = all(text.whole for text in result.texts)
    return EMPTY[result.has_match] if whole else "no hit is left"


def query_text(result: "Result", offset: int = 0, fields: Sequence[str] = ()) -> str:
    """Return the hits as a table; a word has + where matched, - where not, nothing where silent.

    Args:
        result: The answer.
        offset: How many better hits there are.
        fields: The columns of metadata to show.
    """
    from nsfse_runtime.visualize.rows import verdict

    if not result.hits:
        return "\n".join([*map(printable, result.notes), empty(result)])
    rows = (
        (
            rank,
            hit.score,
            _match(hit),
            shown_id(hit),
            *field_values(hit, fields),
            " ".join(e.word + MARKS[verdict(e, len(hit.evidence))] for e in hit.evidence),
        )
        for rank, hit in enumerate(result.hits, offset + 1)
    )
    lines = [columns(("rank", "score", "match", "id", *map(printable, fields), "words"), rows)]
    lines += match_lines(result)
    lines += map(printable, result.notes)
    if offset:
        lines.append(f"{offset + 1} to {offset + len(result.hits)} of {result.total}")
    if (total := result.timings_ms.get("total")) is not None:
        lines.append(f"{total:.0f} ms")
    return "\n".join(lines)


def shown_id(hit: "Hit") -> str:
    """Return a hit's id, with the number of images that were folded into it."""
    return f"{hit.id} (+{len(hit.duplicates)})" if hit.duplicates else hit.id


def field_values(hit: "Hit", fields: Sequence[str]) -> list[str]:
    """Return a hit's values in `fields`, which may be written in another case than the gallery's columns."""
    values = {loose(name): value for name, value in hit.metadata.items()}
    return [values.get(loose(name), "") for name in fields]


def match_lines(result: "Result") -> list[str]:
    """Return whether anything matches, and the threshold on confidence."""
    if result.threshold is None:
        return [NO_MATCH] if result.has_match is False else []
    if result.has_match is False:
        return [f"{NO_MATCH}: no confidence reaches {result.threshold:.2f}"]
    return [f"a match has a confidence of {result.threshold:.2f} or more"]


def _match(hit: "Hit") -> str:
    """Return whether a hit is a match, and its confidence where it has one."""
    verdict = {True: "yes", False: "no", None: "-"}[hit.is_match]
    return verdict if hit.confidence is None else f"{verdict:<3} {hit.confidence:.2f}"


def scores_text(evaluation: Mapping[str, Any]) -> str:
    """Return scores as one table of protocols and modes, and a line for each thing to know of a protocol."""
    from nsfse.evaluation.notices import by_line, category_line, notices

    entries = [
        (name, entry)
        for part in (evaluation["protocols"], *evaluation["modes"].values())
        for name, entry in part.items()
    ]
    shown = [key for key in SCORES if any(entry.get(key) is not None for _, entry in entries)]
    unscored = [(name, {"mode": "-", "queries": entry["queries"]}) for name, entry in evaluation["not_scored"].items()]
    rows = [(name, entry["mode"], *(entry.get(key) for key in shown)) for name, entry in (*entries, *unscored)]
    lines = [columns(("protocol", "mode", *shown), rows)]
    lines += [f"{printable(group)}: {category_line(means)}" for group, means in evaluation["summary"].items()]
    notes = [(name, line) for name, entry in evaluation["protocols"].items() for line in notices(entry)]
    notes += [(name, f"not scored: {entry['reason']}") for name, entry in evaluation["not_scored"].items()]
    lines += map(printable, by_line(notes))
    return "\n".join([*lines, *(f"written: {printable(file)}" for file in evaluation["files"])])


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return what a recipe needs, does and expects."""
    data, expected = recipe["data"], recipe["expected"]
    rows = [(p, metric, figure) for p, figures in expected["scores"].items() for metric, figure in figures.items()]
    return "\n".join(
        [
            recipe["title"],
            *("", "data:", f"  annotations  {data['annotations']}", f"  images     {data['image_source']}"),
            *("  layout, in any depth:", *(f"    {line}" for line in data["layout"])),
            *("  official counts:", *(f"    {name} {count}" for name, count in data["counts"].items())),
            *(f"  there: {name} {count}" for name, count in recipe.get("there", {}).items()),
            *("", f"weights: {recipe['weights']}", ""),
            *_protocol_lines(recipe["protocol"]),
            *("", "expected:", columns(("protocol", "metric", "expected"), rows)),
            *_origin_lines(expected["source"], expected["note"]),
        ]
    )


def reproduced_text(report: Mapping[str, Any]) -> str:
    """Return the protocol, then what was expected against what came."""
    from nsfse.evaluation.notices import category_line, gap_parts

    rows = [(row["protocol"], row["metric"], row["expected"], row["got"], _difference(row)) for row in report["rows"]]
    early_end = [f"training was ended after {report['steps']} steps: no reproduction"] if report["steps"] else []
    return "\n".join(
        [
            *(report["title"], *_protocol_lines(report["protocol"]), ""),
            *(printable(f"{name}: {'; '.join(gap_parts(entry))}") for name, entry in report["incomplete"].items()),
            *(printable(f"{name}: not scored: {entry['reason']}") for name, entry in report["not_scored"].items()),
            *(f"{printable(group)}: {category_line(means)}" for group, means in report["summary"].items()),
            *(f"written for the test server: {printable(file)}" for file in report["files"]),
            *early_end,
            columns(("protocol", "metric", "expected", "got", "difference"), rows),
            *_origin_lines(report["source"], report["note"]),
        ]
    )


def _protocol_lines(protocol: Iterable[str]) -> list[str]:
    return ["protocol:", *(f"  {line}" for line in protocol)]


def _origin_lines(source: str, note: str) -> list[str]:
    return [f"source: {source}", *([f"note: {note}"] if note else [])]


def _difference(row: Mapping[str, Any]) -> float | None:
    known = isinstance(row["expected"], float) and isinstance(row["got"], float)
    return row["got"] - row["expected"] if known else None


def doctor_text(report: Mapping[str, Any]) -> str:
    """Return the findings, the problems last, one a line."""
    facts = {name: item for name, item in report.items() if name not in ("schema_version", "problems")}
    problems = [f"problem: {printable(problem)}" for problem in report["problems"]]
    return "\n".join([format_tree(facts), *(problems or ["no problem report"])])


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """Return the table of a comparison, its findings, what is missing, the hours and the files."""
    from nsfse.benchmark.table import findings, format_mean_std

    names = ("protocol", "method", "seeds", "R@1", "R@10", "hard-negative@1", "phrasing gap", "minutes")
    rows = [
        (
            *(_in_block(row.block, row.protocol), row.method, row.seeds),
            *(format_mean_std(row.r1, row.r1_std), format_mean_std(row.r10, row.r10_std)),
            *(row.hard_negative_rate, row.phrasing_gap, row.minutes),
        )
        for row in comparison["rows"]
    ]
    lines = [columns(names, rows)] if rows else ["nothing is scored yet"]
    lines += [
        printable(f"{_in_block(finding.block, finding.protocol)}: {finding.text}")
        for finding in findings(comparison["rows"])
    ]
    if comparison["missing"]:
        lines += ["missing; the same command continues:", *(f"  {printable(name)}" for name in comparison["missing"])]
    lines.append(
        f"{comparison['hours']:.2f} hours now, {comparison['total_hours']:.2f} in all trainings and evaluations"
    )
    return "\n".join([*lines, *(f"written: {printable(str(file))}" for file in comparison["files"])])


def _in_block(block: str, protocol: str) -> str:
    return f"{block}: {protocol}" if block else protocol


def demo_page_text(ready: Mapping[str, Any]) -> str:
    """Return where the page is, and what to do with it and after it."""
    photos, drawn = ready["galleries"]
    gallery = printable(str(photos["gallery"]))
    return "\n".join(
        [
            f"{photos['images']:,} photos and {drawn['images']:,} drawings are at {ready['url']}    (Ctrl-C ends it)",
            "next:",
            f'  nsfse query IMAGE "make it red" -g {gallery}',
            "  nsfse index FOLDER                          your own images; this model knows photos of clothes only",
            "  nsfse demo --train                          how such a model is made; needs nsfse[export,pretrained]",
        ]
    )


def demo_text(report: Mapping[str, Any]) -> str:
    """Return the table of scores, the files, and what to try next."""
    names = ("queries", "R@1", "R@10", "R@50", "hard_negative_rate")
    rows = [
        (mode, engine, *(scores.get(name) for name in names))
        for engine, modes in (("torch", report["torch"]), ("onnx", report["runtime"]))
        for mode, scores in modes.items()
    ]
    files = {name: printable(path) for name, path in report["files"].items()}
    return "\n".join(
        [
            columns(("query", "engine", *names), rows),
            f"largest difference between the engines: {report['largest_difference']:.2f} points",
            f"the images: {files['sheet.png']} and {files['sheet.html']}",
            "next:",
            f"  nsfse query IMAGE TEXT -g {files['easy.gallery']}",
            f"  nsfse serve -g {files['easy.gallery']}    # a page at http://127.0.0.1:8000/",
            f"  nsfse info {files['bundle']}",
            f"  nsfse index my.gallery FOLDER -b {files['bundle']}     (it knows drawings only)",
        ]
    )
