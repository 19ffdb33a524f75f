"""One-line notices of queries left out, odd queries, incomplete galleries and texts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nsfse.data.datasets.file_index import counted
from nsfse.evaluation.query_counts import LEFT_OUT, ODD

__all__ = ["by_line", "category_line", "gap_parts", "left_out_line", "notices"]


def notices(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that a reader of one protocol's scores must know; `entry` is its JSON."""
    if incomplete := entry.get("incomplete"):
        yield "; ".join(gap_parts(incomplete))
    for note in entry.get("odd_queries", ()):
        yield _queries(note, ODD, "")
    if background := entry.get("background"):
        yield from _background_line(background)
    if aspects := entry.get("aspects"):
        parts = (f"{name} {row['mAP@10']:.1f} (n = {row['queries']})" for name, row in aspects.items())
        yield f"mAP@10 by aspect: {', '.join(parts)}"
    if named := entry.get("old_value_named"):
        recalls = ", ".join(f"{name} {named[name]:.1f}" for name in ("R@1", "R@10"))
        yield f"texts that exclude a value of the reference by its name: {recalls} (n = {named['queries']})"
    if abstention := entry.get("abstention"):
        yield (
            f"nothing matches: said of {abstention['no_match@10']:.1f} % of galleries without a right answer and "
            f"10.0 % of the others, AUROC {abstention['auroc']:.1f}, AURC {abstention['aurc']:.1f}"
        )
    yield from _text_parts(entry)


def by_line(named_lines: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield each line of (protocol, line) once, with all protocols that it concerns."""
    names: dict[str, list[str]] = {}
    for name, line in named_lines:
        names.setdefault(line, []).append(name)
    for line, protocols in names.items():
        yield f"{', '.join(protocols)}: {line}"


def gap_parts(incomplete: Mapping[str, Any]) -> Iterator[str]:
    """Yield how much of a gallery is there, where it is not all, and why queries are left out."""
    present, expected = incomplete["gallery_found"], incomplete["gallery_expected"]
    if present < expected:
        yield f"incomplete gallery, {present} of {expected} images"
    if incomplete["left_out"]:
        yield left_out_line(incomplete["left_out"])


def left_out_line(notes: Sequence[Mapping[str, Any]]) -> str:
    """Return how many queries are left out for each reason, and the first of them by name."""
    return "; ".join(_queries(entry, LEFT_OUT, " left out") for entry in notes)


def category_line(means: Mapping[str, Any]) -> str:
    """Return the means over categories, or why there are none."""
    if means["missing"]:
        return f"no mean: {means['categories']} of {means['expected']} categories (no {', no '.join(means['missing'])})"
    return "mean " + ", ".join(f"{name} {means[name]:.2f}" for name in ("R@10", "R@50"))


def _queries(note: Mapping[str, Any], reasons: Mapping[str, tuple[str, str]], suffix: str) -> str:
    number, examples = note["queries"], note["examples"]
    rest = f" and {number - len(examples)} more" if number > len(examples) else ""
    reason = reasons[note["reason"]][number > 1]
    return f"{counted(number, 'query', 'queries')}{suffix}: {reason} ({'; '.join(examples)}{rest})"


def _background_line(background: Mapping[str, Any]) -> Iterator[str]:
    if wrong := background["wrong"]:
        yield (
            f"of {counted(wrong, 'wrong first hit')} of colour queries {background['percent']:.1f} % "
            f"have the colour on the background alone (by chance {background['by_chance']:.1f} %)"
        )


def _text_parts(entry: Mapping[str, Any]) -> Iterator[str]:
    if unreadable := entry.get("unreadable_texts"):
        have = "has" if unreadable == 1 else "have"
        yield f"{counted(unreadable, 'text')} {have} no word that the model knows: ranked by the image alone"
    texts = entry.get("texts") or {}
    if unknown := texts.get("with_unknown_word"):
        have = "has a word" if unknown == 1 else "have words"
        yield f"{_share(unknown, texts['count'])} {have} that the model does not know"
    if longer := texts.get("longer_than_read"):
        verb, words = "is" if longer == 1 else "are", texts["words_read"]
        yield f"{_share(longer, texts['count'])} {verb} longer than the {words} words that the model reads"


def _share(number: int, whole: int) -> str:
    return f"{number} of {counted(whole, 'text')} ({100 * number / whole:.1f} %)"
