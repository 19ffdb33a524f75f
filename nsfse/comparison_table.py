"""Results of several seeds → means and deviations, as rows, as Markdown and as a plot."""

import html
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import msgspec

WIDTH, LEFT, LINE = 760, 240, 24  # of the plot, in pixels


class Row(msgspec.Struct, frozen=True):
    """One method on one protocol, over `seeds` trainings; rates in percent.

    A deviation (`_sd`) is that of a sample, over n - 1, and None for one seed; a rate is None where it does not apply.
    """

    method: str
    protocol: str
    seeds: int
    r1: float
    r1_sd: float | None
    r10: float
    r10_sd: float | None
    hard_negative_rate: float | None
    phrasing_spread: float | None
    minutes: float
    steps: int


def table(results: Sequence[Mapping[str, Any]], protocols: Sequence[str], methods: Sequence[str]) -> tuple[Row, ...]:
    """Return the rows of `results` in the order of `protocols`, then `methods`; what no result has is left out."""
    found = []
    for protocol in protocols:
        for method in methods:
            chosen = [entry for entry in results if entry["method"] == method and protocol in entry["scores"]]
            if chosen:
                found.append(_row(method, protocol, chosen))
    return tuple(found)


def _row(method: str, protocol: str, chosen: Sequence[Mapping[str, Any]]) -> Row:
    scores = [entry["scores"][protocol] for entry in chosen]
    r1, r1_sd = mean_and_deviation([found["R@1"] for found in scores])
    r10, r10_sd = mean_and_deviation([found["R@10"] for found in scores])
    return Row(
        method=method,
        protocol=protocol,
        seeds=len(chosen),
        r1=r1,
        r1_sd=r1_sd,
        r10=r10,
        r10_sd=r10_sd,
        hard_negative_rate=_mean_of_all([found["hard_negative_rate"] for found in scores]),
        phrasing_spread=_mean_of_all([found["phrasing_spread"] for found in scores]),
        minutes=fmean(entry["train_seconds"] for entry in chosen) / 60,
        steps=int(chosen[0]["steps"]),
    )


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample's standard deviation, None for one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def markdown(rows: Sequence[Row], missing: Sequence[str] = ()) -> str:
    """Return a table for each protocol, and what is missing."""
    parts = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        lines = [
            f"## {protocol}\n",
            "| method | seeds | R@1 | R@10 | hard negative first | phrasing spread | steps | training minutes |",
            "|---|---|---|---|---|---|---|---|",
        ]
        parts.append("\n".join([*lines, *(_line(row) for row in rows if row.protocol == protocol)]))
    parts.append("Percent; mean ± standard deviation over seeds.")
    if missing:
        parts.append("\n".join(["Missing:\n", *(f"- {name}" for name in missing)]))
    return "\n\n".join(parts) + "\n"


def _line(row: Row) -> str:
    cells = [
        row.method,
        str(row.seeds),
        spread(row.r1, row.r1_sd),
        spread(row.r10, row.r10_sd),
        spread(row.hard_negative_rate, None),
        spread(row.phrasing_spread, None),
        str(row.steps),
        spread(row.minutes, None),
    ]
    return f"| {' | '.join(cells)} |"


def spread(mean: float | None, deviation: float | None) -> str:
    """Return `12.3 ± 0.4`, the mean alone where there is no deviation, or nothing."""
    if mean is None:
        return ""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def plot(rows: Sequence[Row]) -> str:
    """Return an SVG of R@1: a panel for each protocol, a dot with its deviation for each method."""
    most = max((row.r1 + (row.r1_sd or 0.0) for row in rows), default=0.0)
    end = next(step for step in (5, 10, 20, 40, 60, 80, 100) if step >= min(most, 100.0))
    parts, top = [], 10
    for protocol in dict.fromkeys(row.protocol for row in rows):
        chosen = [row for row in rows if row.protocol == protocol]
        parts += _panel(protocol, chosen, top, end)
        top += LINE * (len(chosen) + 3)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


def _panel(protocol: str, rows: Sequence[Row], top: int, end: int) -> list[str]:
    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 60) * min(value, 100.0) / end, 1)

    bottom = top + LINE * (len(rows) + 1)
    parts = [f'<text x="10" y="{top + 15}" font-weight="bold">{html.escape(protocol)}: R@1, percent</text>']
    for tick in (0, end // 2, end) if end % 2 == 0 else (0, end):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{top + LINE}" y2="{bottom}" stroke="#d9dde3"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 16}" fill="#6b7280" text-anchor="middle">{tick}</text>')
    for at, row in enumerate(rows):
        y = top + LINE * (at + 1) + LINE // 2
        low, high = x(max(0.0, row.r1 - (row.r1_sd or 0.0))), x(row.r1 + (row.r1_sd or 0.0))
        name, label = html.escape(row.method), spread(row.r1, row.r1_sd)
        parts.append(f'<text x="{LEFT - 12}" y="{y + 5}" text-anchor="end">{name}</text>')
        parts.append(f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="#1f5fa8" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(row.r1)}" cy="{y}" r="5" fill="#1f5fa8"><title>{name} {label}</title></circle>')
        parts.append(f'<text x="{high + 10}" y="{y + 5}" fill="#6b7280" font-size="11">{label}</text>')
    return parts
