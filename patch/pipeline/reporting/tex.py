"""LaTeX tables with booktabs, for use with \\input."""

from __future__ import annotations

from patch.pipeline.reporting.columns import Column, groups, text_columns
from patch.pipeline.reporting.escape import escape_tex
from patch.pipeline.reporting.table import Table


def tex_lines(table: Table) -> list[str]:
    """Return the lines of a tabular with its notes below, without a float or a preamble."""
    columns = text_columns(table)

    def text(cell: tuple[str, bool]) -> str:
        return rf"\textbf{{{escape_tex(cell[0])}}}" if cell[1] else escape_tex(cell[0])

    body = []
    for index, cells in enumerate(zip(*(c.cells for c in columns), strict=True)):
        row, previous = table.rows[index], table.rows[index - 1]
        if index and (row.model, row.sparsity) != (previous.model, previous.sparsity):
            body.append(r"\midrule")
        body.append(" & ".join(text(cell) for cell in cells) + r" \\")
    return [
        f"% {escape_tex(table.caption)}",
        r"% Needs \usepackage{booktabs,graphicx}. Wider than the line, it is scaled to it.",
        r"\begingroup\centering\footnotesize\setlength{\tabcolsep}{4pt}%",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in columns)}}}",
        r"\toprule",
        *_tex_header(columns),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}\par\smallskip",
        *(rf"{{\scriptsize {escape_tex(note)}\par}}" for note in table.notes),
        r"\endgroup",
    ]


def _tex_header(columns: list[Column]) -> list[str]:
    names = " & ".join(escape_tex(c.name) for c in columns) + r" \\"
    runs = groups(columns)
    if not any(group for group, *_ in runs):
        return [names]
    spans = [rf"\multicolumn{{{last - first + 1}}}{{c}}{{{escape_tex(group)}}}" for group, first, last in runs]
    rules = [rf"\cmidrule(lr){{{first + 1}-{last + 1}}}" for group, first, last in runs if group]
    return [" & ".join(spans) + r" \\", "".join(rules), names]
