"""Results of several seeds → means, deviations and what leads, as rows, as Markdown and as a plot."""

import html
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import msgspec

from nsfse.benchmark.markdown import latex_table, markdown_table
from nsfse.benchmark.significance import (
    LEVEL,
    OLDER,
    OTHER_QUERIES,
    RESAMPLES,
    Bootstrap,
    Difference,
    Outcomes,
    Versus,
    read_outcomes,
)

WIDTH, LEFT, LINE = 760, 240, 24  # of the plot, in pixels
COLUMNS = ("method", "seeds", "R@1", "R@10", "hard-negative@1", "phrasing gap", "steps", "training minutes")


class Row(msgspec.Struct, frozen=True):
    """One method on one protocol, over `seeds` trainings; rates in percent.

    A deviation (`_std`) is that of a sample, over n - 1; it is None for one seed. A rate is None where
    it does not apply.
    """

    method: str
    protocol: str
    seeds: int
    r1: float
    r1_std: float | None
    r10: float
    r10_std: float | None
    hard_negative_rate: float | None
    phrasing_gap: float | None
    minutes: float
    steps: int
    block: str = ""
    against_best: Versus | None = None
    """Against the best other method by R@1; a variant of the same method is none, where there are others."""
    against_first: Versus | None = None
    """Against the first method of the table."""
    least_sure: Versus | None = None
    """Of the best by R@1 alone: the comparison with another method that has the largest p."""
    leads: bool = False
    """Whether R@1 is above that of every other method with p < 0.05 each."""


class Finding(msgspec.Struct, frozen=True):
    """The conclusion for one protocol of one block."""

    block: str
    protocol: str
    leader: str
    """Empty where no lead is shown."""
    text: str


def table(
    results: Sequence[Mapping[str, Any]], protocols: Sequence[str], methods: Sequence[str], block: str = ""
) -> tuple[Row, ...]:
    """Return the rows of `results` in the order of `protocols`, then `methods`; what no result has is left out."""
    table_rows = []
    for protocol in protocols:
        chosen = {
            method: entries
            for method in methods
            if (entries := [e for e in results if e["method"] == method and protocol in e["scores"]])
        }
        rows = [_row(method, protocol, entries, block) for method, entries in chosen.items()]
        outcomes_of = {
            method: read_outcomes([e["scores"][protocol] for e in entries]) for method, entries in chosen.items()
        }
        table_rows += _compared(rows, outcomes_of)
    return tuple(table_rows)


def _compared(rows: Sequence[Row], outcomes_of: Mapping[str, Outcomes | None]) -> list[Row]:
    """Return the rows of one table with their differences."""
    known = {method: outcomes for method, outcomes in outcomes_of.items() if outcomes}
    groups = {
        queries: Bootstrap({method: outcomes for method, outcomes in known.items() if outcomes.queries == queries})
        for queries in {outcomes.queries for outcomes in known.values()}
    }

    def versus(method: str, other: str) -> Versus:
        if method not in known or other not in known:
            return Versus(other, no_p=OLDER)
        if known[method].queries != known[other].queries:
            return Versus(other, no_p=OTHER_QUERIES)
        return groups[known[method].queries].versus(method, other)

    best = max(rows, key=lambda row: row.r1, default=None)
    compared_rows = []
    for row in rows:
        others = _others(row, rows)
        changes: dict[str, Any] = {}
        if others:
            changes["against_best"] = versus(row.method, max(others, key=lambda other: other.r1).method)
        if row is not rows[0]:
            changes["against_first"] = versus(row.method, rows[0].method)
        if row is best and others:
            comparisons = [versus(row.method, other.method) for other in others]
            changes["least_sure"] = max(comparisons, key=lambda comparison: comparison.r1.p if comparison.r1 else 2.0)
            changes["leads"] = all(c.r1 and c.r1.points > 0 and c.r1.p < LEVEL for c in comparisons)
        compared_rows.append(msgspec.structs.replace(row, **changes))
    return compared_rows


def _others(row: Row, rows: Sequence[Row]) -> list[Row]:
    others = [other for other in rows if other.method != row.method]
    strangers = [other for other in others if other.method.partition(":")[0] != row.method.partition(":")[0]]
    return strangers or others


def findings(rows: Sequence[Row]) -> tuple[Finding, ...]:
    """Return for each table of several methods whether one leads at R@1, in words."""
    conclusions = []
    for chosen in _tables(rows):
        best = max(chosen, key=lambda row: row.r1)
        if len(chosen) > 1:
            leader = best.method if best.leads else ""
            conclusions.append(Finding(best.block, best.protocol, leader, _finding(best)))
    return tuple(conclusions)


def _finding(best: Row) -> str:
    against, unsure = best.against_best, best.least_sure
    if best.leads and against and against.r1 and unsure and unsure.r1:
        others = "" if unsure.method == against.method else f"; {p_text(unsure.r1.p)} against every other"
        caveat = "" if against.seeds_resampled else ONE_SEED
        return f"{best.method} leads at R@1: {_over(against.method, against.r1)}, the best other{others}{caveat}"
    if unsure and unsure.r1:
        caveat = "" if unsure.seeds_resampled else ONE_SEED
        return f"no lead is shown at R@1: {best.method} is {_over(unsure.method, unsure.r1)}{caveat}"
    return f"no lead is shown at R@1: no p ({unsure.no_p if unsure else OLDER})"


ONE_SEED = " (one seed: seeds were not resampled)"


def _over(method: str, difference: Difference) -> str:
    return f"{interval(difference)} over {method}, {p_text(difference.p)}"


def interval(difference: Difference) -> str:
    """Return `+1.2 (−0.3 to +2.7)`: points and their interval."""
    signed = [f"{value:+.1f}".replace("-", "−") for value in (difference.points, difference.low, difference.high)]
    return f"{signed[0]} ({signed[1]} to {signed[2]})"


def p_text(p: float) -> str:
    """Return `p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _tables(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.block, row.protocol), []).append(row)
    return list(groups.values())


def _row(method: str, protocol: str, chosen: Sequence[Mapping[str, Any]], block: str) -> Row:
    scores = [entry["scores"][protocol] for entry in chosen]
    r1, r1_std = mean_and_std([score["R@1"] for score in scores])
    r10, r10_std = mean_and_std([score["R@10"] for score in scores])
    return Row(
        method=method,
        protocol=protocol,
        seeds=len(chosen),
        r1=r1,
        r1_std=r1_std,
        r10=r10,
        r10_std=r10_std,
        hard_negative_rate=_mean_of_all([score["hard_negative_rate"] for score in scores]),
        phrasing_gap=_mean_of_all([score["phrasing_gap"] for score in scores]),
        minutes=fmean(entry["train_seconds"] for entry in chosen) / 60,
        steps=int(chosen[0]["steps"]),
        block=block,
    )


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample's standard deviation, None for one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def markdown(rows: Sequence[Row], missing: Sequence[str] = (), captions: Mapping[str, str] | None = None) -> str:
    """Return a table for each block and protocol, what leads, the differences, and what is missing."""
    finding_of = {(finding.block, finding.protocol): finding for finding in findings(rows)}
    parts, captioned = [], set()
    for chosen in _tables(rows):
        block, protocol = chosen[0].block, chosen[0].protocol
        parts.append(f"## {block}: {protocol}" if block else f"## {protocol}")
        if block not in captioned and (caption := (captions or {}).get(block)):
            parts.append(caption)
        captioned.add(block)
        parts.append(markdown_table(COLUMNS, [_cells(row) for row in chosen]))
        if finding := finding_of.get((block, protocol)):
            text = f"{finding.text[0].upper()}{finding.text[1:]}."
            parts.append(f"**{text}**" if finding.leader else text)
            parts.append(_differences(chosen))
    parts.append(
        "Percent; mean ± standard deviation over seeds. Differences are in points, with 95 % intervals and two-sided\n"
        f"p of a paired bootstrap over queries and seeds, {RESAMPLES:,} resamples. A lead is claimed from p < {LEVEL}\n"
        "against every other method."
    )
    if any(_has_single_seed(row) for row in rows):
        parts.append("Where a method has one seed, seeds were not resampled: p says nothing of another training.")
    if missing:
        parts.append("\n".join(["Missing:\n", *(f"- {name}" for name in missing)]))
    return "\n\n".join(parts) + "\n"


def latex(rows: Sequence[Row]) -> str:
    """Return the tables of `markdown` for LaTeX, with booktabs."""
    tables = []
    for chosen in _tables(rows):
        caption = ", ".join(part for part in (chosen[0].block, chosen[0].protocol) if part)
        tables.append(latex_table(COLUMNS, [_cells(row) for row in chosen], f"{caption}: percent, mean ± deviation"))
    return "\n\n".join(["% Needs \\usepackage{booktabs}.", *tables]) + "\n"


def _has_single_seed(row: Row) -> bool:
    return any(versus and versus.r1 and not versus.seeds_resampled for versus in (row.against_best, row.against_first))


def _differences(rows: Sequence[Row]) -> str:
    """Return a table of each method against the best other one and the first."""
    cells = []
    for row in rows:
        best, first = row.against_best, row.against_first
        same = best and first and best.method == first.method
        for versus, role in (
            (best, "the best other and the first" if same else "the best other"),
            (first, "the first"),
        ):
            if versus and not (same and versus is first):
                cells.append([row.method, f"{versus.method}, {role}", *_versus_cells(versus)])
    return markdown_table(("method", "against", "R@1", "p", "R@10", "p"), cells)


def _versus_cells(versus: Versus) -> list[str]:
    if not versus.r1 or not versus.r10:
        return ["", f"no p ({versus.no_p or OLDER})", "", ""]
    recalls = (versus.r1, versus.r10)
    return [cell for recall in recalls for cell in (interval(recall), p_text(recall.p).removeprefix("p = "))]


def _cells(row: Row) -> list[str]:
    r1 = format_mean_std(row.r1, row.r1_std)
    return [
        row.method,
        str(row.seeds),
        f"**{r1}**" if row.leads else r1,
        format_mean_std(row.r10, row.r10_std),
        format_mean_std(row.hard_negative_rate, None),
        format_mean_std(row.phrasing_gap, None),
        str(row.steps),
        format_mean_std(row.minutes, None),
    ]


def format_mean_std(mean: float | None, deviation: float | None) -> str:
    """Return `12.3 ± 0.4`, the mean alone where there is no deviation, or nothing."""
    if mean is None:
        return ""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def plot(rows: Sequence[Row]) -> str:
    """Return an SVG of R@1: a panel for each table with what leads, a dot with its deviation for each method."""
    most = max((row.r1 + (row.r1_std or 0.0) for row in rows), default=0.0)
    end = next(step for step in (5, 10, 20, 40, 60, 80, 100) if step >= min(most, 100.0))
    text_of = {(finding.block, finding.protocol): finding.text for finding in findings(rows)}
    parts, top = [], 10
    for chosen in _tables(rows):
        block, protocol = chosen[0].block, chosen[0].protocol
        title = f"{block}: {protocol}" if block else protocol
        parts += _panel(title, text_of.get((block, protocol), ""), chosen, top, end)
        top += LINE * (len(chosen) + 4)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


def _panel(title: str, finding: str, rows: Sequence[Row], top: int, end: int) -> list[str]:
    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 60) * min(value, 100.0) / end, 1)

    parts = [f'<text x="10" y="{top + 15}" font-weight="bold">{html.escape(title)}: R@1, percent</text>']
    top += LINE
    parts.append(f'<text x="10" y="{top + 10}" font-size="11" fill="#374151">{html.escape(finding)}</text>')
    bottom = top + LINE * (len(rows) + 1)
    for tick in (0, end // 2, end) if end % 2 == 0 else (0, end):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{top + LINE}" y2="{bottom}" stroke="#d9dde3"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 16}" fill="#6b7280" text-anchor="middle">{tick}</text>')
    for number, row in enumerate(rows, 1):
        y = top + LINE * number + LINE // 2
        low, high = x(max(0.0, row.r1 - (row.r1_std or 0.0))), x(row.r1 + (row.r1_std or 0.0))
        name, label = html.escape(row.method), format_mean_std(row.r1, row.r1_std) + (", leads" if row.leads else "")
        weight = ' font-weight="bold"' if row.leads else ""
        parts.append(f'<text x="{LEFT - 12}" y="{y + 5}" text-anchor="end"{weight}>{name}</text>')
        parts.append(f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="#1f5fa8" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(row.r1)}" cy="{y}" r="5" fill="#1f5fa8"><title>{name} {label}</title></circle>')
        parts.append(f'<text x="{high + 10}" y="{y + 5}" fill="#6b7280" font-size="11">{label}</text>')
    return parts
