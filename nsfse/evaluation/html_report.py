"""An evaluation as one HTML file that can be mailed: figures, kinds of queries, boundaries, worst and best queries."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsfse.data import EvalQuery
from nsfse.evaluation.diagnostics import HITS
from nsfse.evaluation.notices import category_line, notices
from nsfse.evaluation.results import Diagnosis, Evaluation, ProtocolResult, QueryExample, ScoreHistogram
from nsfse_runtime.errors import UsageError
from nsfse_runtime.retrieval.results import Hit
from nsfse_runtime.types import Pixels
from nsfse_runtime.visualize.html_page import safe, section, write_page
from nsfse_runtime.visualize.rows import THUMBNAIL, SheetHit, SheetRow

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
"""A histogram's width, its height and the height of its axis labels, in user units of the drawing."""


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation with diagnoses as one page that loads nothing.

    Args:
        evaluation: What `evaluate_source(..., diagnostics=True)` returned; its `source` loads the images.
        path: The HTML file.

    Raises:
        UsageError: The evaluation has no diagnoses.
        OutputError: The file cannot be written.
    """
    if not evaluation.diagnoses or evaluation.source is None:
        raise UsageError("a report needs diagnoses; evaluate with diagnostics=True")
    load, results = evaluation.source.load, [diagnosis.result for diagnosis in evaluation.diagnoses]
    body = "".join(part for diagnosis in evaluation.diagnoses for part in _protocol(evaluation, diagnosis, load))
    first, *others = (result.protocol.name for result in results)
    means = [f"{group}: {category_line(scores)}" for group, scores in evaluation.summary.items()]
    skipped = [f"{name} is not scored: {reason}" for name, reason in evaluation.reasons.items()]
    note = "; ".join([f"model {evaluation.fingerprint[:16]}", *means, *skipped])
    title = f"nsfse evaluate: {first}{f' and {len(others)} more' if others else ''}"
    overview = _overview(results) if others else ""
    write_page(overview + body, path, title=title, note=note, answers_known=True)


def _protocol(evaluation: Evaluation, diagnosis: Diagnosis, load: Load) -> Iterator[str]:
    """Yield one protocol's section: figures, modes, kinds, histograms, worst and best queries."""
    result = diagnosis.result
    modes = [other for other in evaluation.results if other.protocol.name == result.protocol.name]
    yield f'<h2 id="{_anchor(result)}">{safe(result.protocol.name)}</h2><p class="note">{safe(_about(result))}</p>'
    yield f'<section class="scored"><dl class="figures">{"".join(_figures(result.scores))}</dl></section>'
    if len(modes) > 1:
        yield f"<h3>By mode</h3>{_scores(modes, [safe(other.mode) for other in modes])}"
    if kinds := result.scores.get("kinds"):
        yield f"<h3>By kind of query</h3>{_kinds(kinds)}"
    named = (("Words (S_c)", diagnosis.words), ("Target region predictions (S_v)", diagnosis.probes))
    charts = [_histogram(name, histogram) for name, histogram in named if histogram]
    if charts:
        yield f'<h3>Where the boundaries are</h3><section class="scored histograms">{"".join(charts)}</section>'
    for title, examples in (("The worst", diagnosis.worst), ("The best", diagnosis.best)):
        if examples:
            yield f"<h3>{title} <small>{len(examples)} queries; ties in random order</small></h3>"
            yield from (section(_row(example, len(result.rankings[0].rows), load), "h4") for example in examples)


def _about(result: ProtocolResult) -> str:
    protocol, entry = result.protocol, result.to_json()
    parts = [f"{len(protocol.gallery)} images", result.mode, f"version {protocol.version}", protocol.note]
    parts.append("the reference is no hit" if protocol.remove_reference else "the reference may be a hit")
    parts.append(f"stage 2 over {entry['rerank']}" if entry["rerank"] else "stage 1 alone")
    parts += notices(entry)
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
    return _scores(results, [f'<a href="#{_anchor(result)}">{safe(result.protocol.name)}</a>' for result in results])


def _anchor(result: ProtocolResult) -> str:
    return "p-" + "".join(letter if letter.isalnum() else "-" for letter in result.protocol.name)


def _scores(results: Sequence[ProtocolResult], names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(name for result in results for name, _ in _numbers(result.scores)))
    rows = [
        (name, *(_cell(result.scores.get(key)) for key in shown)) for name, result in zip(names, results, strict=True)
    ]
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


def _histogram(name: str, histogram: ScoreHistogram) -> str:
    """Draw one kind of correspondence with its boundary."""
    kinds = [("good", "targets", histogram.matched), ("bad", "other images", histogram.mismatched)]
    kinds += [("near", "hard negatives", histogram.near)] if histogram.near is not None else []
    top = max(float(values.max()) for _, _, values in kinds)
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])

    def x(value: float) -> str:
        return f"{WIDE * (value - low) / (high - low):.1f}"

    ticks = [tick for tick in (-1.0, -0.5, 0.0, 0.5, 1.0) if low <= tick <= high]
    marks = "".join(f'<text x="{x(tick)}" y="{HIGH + 14}">{tick:g}</text>' for tick in ticks)
    shapes = "".join(f'<path class="{kind}" d="{_steps(values / top)}"/>' for kind, _, values in kinds)
    caption = (
        f"{histogram.missed:.0f} % of correspondences with targets are under the boundary "
        f"t = {histogram.boundary:.2f}, {histogram.alarms:.0f} % of those with other images are over it."
    )
    keys = "".join(
        f'<span><svg viewBox="0 0 14 10" aria-hidden="true"><path class="{kind}" d="M1 9V2H13V9Z"/></svg>{label}</span>'
        for kind, label, _ in kinds
    )
    return (
        f"<figure><figcaption><b>{name}</b>: each with an image's best region</figcaption>"
        f'<svg viewBox="0 -16 {WIDE} {HIGH + UNDER + 16}" role="img" aria-label="{safe(f"{name}: {caption}")}">'
        f'{shapes}<path class="axis" d="M0 {HIGH}H{WIDE}"/>{marks}'
        f'<path class="boundary" d="M{x(histogram.boundary)} -2V{HIGH}"/>'
        f'<text class="t" x="{x(histogram.boundary)}" y="-6">t = {histogram.boundary:.2f}</text>'
        f'</svg><div class="key">{keys}</div><p>{caption}</p></figure>'
    )


def _steps(heights: np.ndarray) -> str:
    """Return the path of a histogram whose bars are `heights` [B], 0 to 1."""
    step = WIDE / len(heights)
    bars = "".join(f"V{HIGH * (1 - h):.1f}H{step * number:.1f}" for number, h in enumerate(heights.tolist(), 1))
    return f"M0 {HIGH}{bars}V{HIGH}"


def _row(example: QueryExample, depth: int, load: Load) -> SheetRow:
    query, rank = example.query, example.rank
    texts = [*query.texts_at(example.position), *(f"without {text}" for text in query.negative_texts)]
    position = f"first target: {rank + 1}." if rank is not None else f"no target in the first {depth}"
    further = [("and like", item) for item in query.more_references]
    further += [("not like", item) for item in query.negative_images]
    hits = [_hit(hit, query, load) for hit in example.hits[: HITS - 1 if example.missed else HITS]]
    if example.missed:
        hits.append(_hit(example.missed, query, load, f"> {depth}" if rank is None else str(rank + 1)))
    return SheetRow(
        load(query.reference, THUMBNAIL) if query.reference else None,
        "; ".join(texts),
        tuple(hits),
        " · ".join(part for part in (query.kind, position, query.reference) if part),
        tuple((label, load(item, THUMBNAIL)) for label, item in further),
    )


def _hit(hit: Hit, query: EvalQuery, load: Load, rank: str = "") -> SheetHit:
    note = "a hard negative" if hit.id in query.hard_negatives else ""
    image, right = load(hit.id, THUMBNAIL), hit.id in query.targets
    return SheetHit(image, hit.id, hit.score, hit.is_match, tuple(hit.evidence), right, rank, note)
