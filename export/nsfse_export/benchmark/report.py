"""The report of `nsfse bench speed` as Markdown and as a plot."""

import html
import math
from collections.abc import Mapping
from typing import Any

from nsfse.benchmark.markdown import markdown_table

WIDTH, HEIGHT, LEFT, RIGHT = 760, 220, 60, 230  # of a panel, and its margins, in pixels
COLOURS = ("#1f5fa8", "#b4472f", "#3d8361", "#8a5fa8")

Curves = Mapping[str, Mapping[str, Mapping[float, float]]]


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables of a report."""
    machine, model = report["machine"], report["model"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    sections = [
        f"{machine['threads']} threads of {machine['cores']} cores, {machine['gflops']} GFLOP/s in float32, "
        f"{machine['gb_per_second_one_thread']} GB/s; load {machine['load']} at the start; {versions}.",
        f"{model['backbone']}: {model['regions']} regions of {model['dim']}, {model['bytes_per_image']} bytes each.",
    ]
    if report["parts"]:
        sections.append(_parts(report["parts"]))
    if report["whole"]:
        sections.append(_whole(report["whole"]))
    if report["cold"]:
        sections.append(_cold(report["cold"]))
    if report["index"]:
        index = report["index"]
        sections.append(
            f"Indexing {index['images']} images: {index['images_per_second']} images/s, {index['times_faster']} "
            f"times a loop of PyTorch ({index['torch_images_per_second']})."
        )
    sections += [_curve(title, lines) for title, lines in (report["growth"] or {}).items()]
    if report["left_out"]:
        sections.append(f"Left out, for want of time (--minutes): {', '.join(report['left_out'])}.")
    return "\n\n".join(sections) + "\n"


def _parts(parts: Mapping[str, Any]) -> str:
    rows = [
        [name, way, f"{value['ms']:g}", f"{value['times_faster']:.2f}×", part["floor_ms"] or ""]
        for name, part in parts.items()
        for way, value in part["ways"].items()
    ]
    note = (
        "The floor is what the products of torch's form take at the machine's rate in float32; a GRU's are not counted."
    )
    return f"{markdown_table(['part', 'way', 'ms', 'faster', 'floor, ms'], rows)}\n\n{note}"


def _whole(report: Mapping[str, Any]) -> str:
    rows = []
    for way, value in report["ways"].items():
        laps = ", ".join(f"{name} {ms:g}" for name, ms in value.get("laps", {}).items() if name != "total")
        tails = [f"{value[tail]:g}" if tail in value else "" for tail in ("p50", "p95", "p99")]
        rows.append([way, f"{value['ms']:g}", f"{value['times_faster']:.2f}×", *tails, laps])
    note = f"Whole queries over {report['images']} images, {report['candidates']} re-ranked, in ms:"
    names = ["query", "in turns", "faster", "p50", "p95", "p99", "of which"]
    base = "The loop of PyTorch encodes its image each time, and pads the text of a CLIP to all positions."
    return f"{note}\n\n{markdown_table(names, rows)}\n\n{base}"


def _cold(report: Mapping[str, Any]) -> str:
    rows = [[way, f"{value['seconds']:g}", f"{value['peak_mb']:g}"] for way, value in report["ways"].items()]
    note = f"A process for one query, over {report['images']} images:"
    return f"{note}\n\n{markdown_table(['process', 's', 'peak MB'], rows)}"


def _curve(title: str, lines: Mapping[str, Mapping[float, float]]) -> str:
    values = sorted({value for line in lines.values() for value in line})
    rows = [[name, *(f"{line[value]:g}" if value in line else "" for value in values)] for name, line in lines.items()]
    return markdown_table([f"{title} (ms)", *(f"{value:g}" for value in values)], rows)


def plot(curves: Curves) -> str:
    """Return an SVG: a panel for each curve, both axes logarithmic."""
    parts = [_panel(title, lines, index * HEIGHT) for index, (title, lines) in enumerate(curves.items())]
    size = f'viewBox="0 0 {WIDTH} {max(1, len(parts)) * HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


def _panel(title: str, lines: Mapping[str, Mapping[float, float]], top: int) -> str:
    values = sorted({value for line in lines.values() for value in line})
    times = [ms for line in lines.values() for ms in line.values()]
    low, high = 10 ** math.floor(math.log10(min(times))), 10 ** math.ceil(math.log10(max(times) * 1.001))
    first, last = top + 34, top + HEIGHT - 34

    def x(value: float) -> float:
        share = math.log(value / values[0]) / max(math.log(values[-1] / values[0]), 1e-9)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(ms: float) -> float:
        return round(last - (last - first) * math.log(ms / low) / math.log(high / low), 1)

    parts = [f'<text x="10" y="{top + 18}" font-weight="bold">{html.escape(title)}: ms</text>']
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        line_y = y(10.0**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{line_y}" y2="{line_y}" stroke="#d9dde3"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{line_y + 4}" text-anchor="end" fill="#6b7280">{10.0**power:g}</text>')
    parts += [
        f'<text x="{x(value)}" y="{last + 16}" text-anchor="middle" fill="#6b7280">{value:g}</text>' for value in values
    ]
    for line, colour in zip(lines.values(), COLOURS, strict=False):
        points = [(x(value), y(ms)) for value, ms in sorted(line.items())]
        path = " ".join(f"{px},{py}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px}" cy="{py}" r="3" fill="{colour}"/>' for px, py in points]
    names = sorted(lines, key=lambda name: -lines[name][max(lines[name])])
    for index, name in enumerate(names):
        colour = COLOURS[list(lines).index(name) % len(COLOURS)]
        position = f'x="{WIDTH - RIGHT + 14}" y="{first + 18 * index + 4}"'
        parts.append(f'<text {position} fill="{colour}">{html.escape(name)}</text>')
    return "\n".join(parts)
