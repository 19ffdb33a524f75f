"""Tables in Markdown, for reports and model cards, and in LaTeX, for papers."""

import re
from collections.abc import Sequence

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "≤": r"$\le$",
}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; a `|` in a cell becomes `/`, since it would end the cell."""
    lines: list[Sequence[object]] = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def latex_table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """Return a table for LaTeX with booktabs; **bold** cells are bold there, too, and numbers are to the right."""
    aligned = "".join("r" if re.match(r"[*\d-]", str(cell)) else "l" for cell in (rows[0] if rows else header))
    lines = [" & ".join(map(_latex_cell, row)) + r" \\" for row in (header, *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_latex_cell(caption)}}}",
            rf"\begin{{tabular}}{{{aligned}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_cell(cell: object) -> str:
    text = str(cell)
    bold = re.fullmatch(r"\*\*(.*)\*\*", text)
    escaped = "".join(_LATEX.get(sign, sign) for sign in (bold[1] if bold else text))
    return rf"\textbf{{{escaped}}}" if bold else escaped
