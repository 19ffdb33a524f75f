"""An evaluation as one HTML file that can be mailed: figures, kinds of queries, boundaries, worst and best queries."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nsfse.data import EvalQuery
from nsfse.evaluation.diagnostics import HITS, Diagnosis, QueryExample, ScoreHistogram
from nsfse.evaluation.notices import category_line, notices
from nsfse.evaluation.scores import ProtocolResult
from nsfse_runtime.retrieval.results import Hit
from nsfse_runtime.types import Pixels
from nsfse_runtime.visualize.html_page import safe, section, write_page
from nsfse_runtime.visualize.rows import THUMBNAIL, SheetHit, SheetRow

if TYPE_CHECKING:
    from nsfse.evaluation.evaluate import Evaluation

Load = Callable[[str, tuple[int, int]], Pixels]
"""An id and a size (height, width) → the image [H, W, 3] that fits it."""

LABELS = {
    "hard_negative_rate": "hard-negative@1",
    "phrasing_gap": "phrasing gap",
    "phrasing_sensitivity_R@1": "phrasing sensitivity, R@1",
    "phrasing_sensitivity_P@10": "phrasing sensitivity, P@10",
}
COUNTS = ("queries",)
POINTS = ("phrasing_gap", "phrasing_sensitivity_R@1", "phrasing_sensitivity_P@10")
WIDE, HIGH, UNDER = 400, 120, 18
"""A histogram's size and the room under it, in units of its drawing."""


def evaluation_page(found: "Evaluation", examined: Sequence[Diagnosis], load: Load, path: Path) -> None:
    """Write what was `found` and `examined` as one page at `path`; `load` reads images. Raises OutputError."""
    body = "".join(part for each in examined for part in _protocol(found, each, load))
    first, *others = (each.result.protocol.name for each in examined)
    means = [f"{group}: {category_line(scores)}" for group, scores in found.summary.items()]
    skipped = [f"{name} is not scored: {reason}" for name, reason in found.reasons.items()]
    note = "; ".join([f"model {found.fingerprint[:16]}", *means, *skipped])
    title = f"nsfse evaluate: {first}{f' and {len(others)} more' if others else ''}"
    overview = _overview([each.result for each in examined]) if others else ""
    write_page(overview + body, path, title=title, note=note, answers_known=True)


def _protocol(found: "Evaluation", examined: Diagnosis, load: Load) -> Iterator[str]:
    result = examined.result
    modes = [each for each in found.results if each.protocol.name == result.protocol.name]
    yield f'<h2 id="{_anchor(result)}">{safe(result.protocol.name)}</h2><p class="note">{safe(_about(result))}</p>'
    yield f'<section class="scored"><dl class="figures">{"".join(_figures(result.scores))}</dl></section>'
    if len(modes) > 1:
        yield f"<h3>By mode</h3>{_scores(modes, [safe(each.mode) for each in modes])}"
    if kinds := result.scores.get("kinds"):
        yield f"<h3>By kind of query</h3>{_kinds(kinds)}"
    charts = [_histogram(*each) for each in _named_histograms(examined) if each[2]]
    if charts:
        yield f'<h3>Where the boundaries lie</h3><section class="scored spreads">{"".join(charts)}</section>'
    for title, shown in (("The worst", examined.worst), ("The best", examined.best)):
        if shown:
            yield f"<h3>{title} <small>{len(shown)} queries; among equals chosen by lot</small></h3>"
            yield from (section(_row(each, len(result.rankings[0].rows), load), "h4") for each in shown)


def _about(result: ProtocolResult) -> str:
    protocol, about = result.protocol, result.to_json()
    parts = [f"{len(protocol.gallery)} images", result.mode, f"version {protocol.version}", protocol.note]
    parts.append("the reference is no hit" if protocol.remove_reference else "the reference may be a hit")
    parts.append(f"stage 2 over {about['rerank']}" if about["rerank"] else "stage 1 alone")
    parts += notices(about)
    return " · ".join(part for part in parts if part)


def _numbers(scores: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in scores.items():
        if isinstance(value, int | float) and np.isfinite(value):
            yield name, value


def _figures(scores: Mapping[str, Any]) -> Iterator[str]:
    for name, value in _numbers(scores):
        unit = "" if name in COUNTS else " points" if name in POINTS else " %"
        shown = f"{value:.0f}" if name in COUNTS else f"{value:.1f}<small>{unit}</small>"
        yield f"<div><dt>{safe(LABELS.get(name, name))}</dt><dd>{shown}</dd></div>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of cells that are HTML already, the first of each row its heading."""
    lines = []
    for first, *rest in rows:
        lines.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>')
    top = "".join(f'<th scope="col">{safe(name)}</th>' for name in head)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<section class="scored scroll">{table}</section>'


def _overview(results: Sequence[ProtocolResult]) -> str:
    return _scores(results, [f'<a href="#{_anchor(each)}">{safe(each.protocol.name)}</a>' for each in results])


def _anchor(result: ProtocolResult) -> str:
    return "p-" + "".join(letter if letter.isalnum() else "-" for letter in result.protocol.name)


def _scores(results: Sequence[ProtocolResult], names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(name for each in results for name, _ in _numbers(each.scores)))
    rows = [(name, *(_cell(each.scores.get(key)) for key in shown)) for name, each in zip(names, results, strict=True)]
    return _table(["", *(LABELS.get(key, key) for key in shown)], rows)


def _kinds(kinds: Mapping[str, Mapping[str, float | None]]) -> str:
    shares = [
        name for name in ("R@1", "R@10", "hard_negative_rate") if any(k.get(name) is not None for k in kinds.values())
    ]
    rows = [
        (safe(kind), str(scores["queries"]), *(_bar(scores.get(name), name) for name in shares))
        for kind, scores in kinds.items()
    ]
    return _table(["", "queries", *(LABELS.get(name, name) for name in shares)], rows)


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, int) else "–" if value is None else f"{value:.1f}"


def _bar(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    colour = "bad" if name == "hard_negative_rate" else "good"
    fill = f'<rect class="track" width="100" height="8"/><rect class="{colour}" width="{value:.1f}" height="8"/>'
    return f'{value:.1f}<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{fill}</svg>'


def _named_histograms(examined: Diagnosis) -> tuple[tuple[str, str, ScoreHistogram | None], ...]:
    return (
        ("Words (S_c)", "each with an image's best region", examined.words),
        ("Imagined regions (S_v)", "each with an image's best region", examined.probes),
    )


def _histogram(name: str, what: str, histogram: ScoreHistogram | None) -> str:
    """Draw the histograms of one kind of correspondence, and where its boundary lies."""
    if histogram is None:
        return ""
    kinds = [("good", "right answers", histogram.matched), ("bad", "other images", histogram.mismatched)]
    kinds += [("near", "hard negatives", histogram.near)] if histogram.near is not None else []
    top = max(float(values.max()) for _, _, values in kinds)
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])
    at = WIDE * (histogram.boundary - low) / (high - low)
    ticks = [tick for tick in (-1.0, -0.5, 0.0, 0.5, 1.0) if low <= tick <= high]
    marks = "".join(
        f'<text x="{WIDE * (tick - low) / (high - low):.1f}" y="{HIGH + 14}">{tick:g}</text>' for tick in ticks
    )
    shapes = "".join(f'<path class="{kind}" d="{_steps(values / top)}"/>' for kind, _, values in kinds)
    said = (
        f"{histogram.missed:.0f} % of what right answers show lies under the boundary t = {histogram.boundary:.2f}, "
        f"{histogram.alarms:.0f} % of what other images show over it."
    )
    keys = "".join(
        f'<span><svg viewBox="0 0 14 10" aria-hidden="true"><path class="{kind}" d="M1 9V2H13V9Z"/></svg>{label}</span>'
        for kind, label, _ in kinds
    )
    return (
        f"<figure><figcaption><b>{name}</b>: {what}</figcaption>"
        f'<svg viewBox="0 -16 {WIDE} {HIGH + UNDER + 16}" role="img" aria-label="{safe(f"{name}: {said}")}">'
        f'{shapes}<path class="axis" d="M0 {HIGH}H{WIDE}"/>{marks}'
        f'<path class="boundary" d="M{at:.1f} -2V{HIGH}"/>'
        f'<text class="t" x="{at:.1f}" y="-6">t = {histogram.boundary:.2f}</text>'
        f'</svg><div class="key">{keys}</div><p>{said}</p></figure>'
    )


def _steps(heights: np.ndarray) -> str:
    """Return the outline of a histogram whose bars are `heights` [B], 0 to 1, as the path of a drawing."""
    step = WIDE / len(heights)
    bars = "".join(f"V{HIGH * (1 - height):.1f}H{step * (at + 1):.1f}" for at, height in enumerate(heights.tolist()))
    return f"M0 {HIGH}{bars}V{HIGH}"


def _row(shown: QueryExample, depth: int, load: Load) -> SheetRow:
    query = shown.query
    parts = [*query.texts_at(shown.position), *(f"without {text}" for text in query.negative_texts)]
    stands = f"first right answer: {shown.rank + 1}." if shown.rank is not None else f"no right answer in {depth}"
    more = [("and like", item) for item in query.more_references] + [
        ("not like", item) for item in query.negative_images
    ]
    hits = [_hit(hit, query, load) for hit in shown.hits[: HITS - 1 if shown.missed else HITS]]
    if shown.missed:
        hits.append(_hit(shown.missed, query, load, f"> {depth}" if shown.rank is None else str(shown.rank + 1)))
    return SheetRow(
        load(query.reference, THUMBNAIL),
        "; ".join(parts),
        tuple(hits),
        " · ".join(part for part in (query.kind, stands, query.reference) if part),
        tuple((label, load(item, THUMBNAIL)) for label, item in more),
    )


def _hit(hit: Hit, query: EvalQuery, load: Load, rank: str = "") -> SheetHit:
    note = "a hard negative" if hit.id in query.hard_negatives else ""
    image, right = load(hit.id, THUMBNAIL), hit.id in query.targets
    return SheetHit(image, hit.id, hit.score, hit.is_match, tuple(hit.evidence), right, rank, note)
