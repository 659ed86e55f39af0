"""Rendering of tables as CSV, GitHub Markdown, LaTeX, HTML pages and text for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment
from pandas.io.formats.style import Styler
from tabulate import tabulate

from patch.files.io import atomic_file
from patch.pipeline.reporting.escape import escape_html, escape_markdown, escape_tex
from patch.pipeline.reporting.layout import Layout
from patch.pipeline.reporting.table import PARTS, Measure, Table
from patch.pipeline.results.order import percent

# A page needs no scripts, fonts or network access. The report shows it in a frame of half a screen, so a wide table
# scrolls instead of the page.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --text: #1c1e21; --faint: #5f6670; --paper: #fff; --line: #d9dce1; --rule: #1c1e21;
  --stripe: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e7e9; --faint: #a0a6af; --paper: #17191c; --line: #363a40;
  --rule: #c6c9ce; --stripe: #1f2226; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.2rem 1.4rem; color: var(--text); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .8rem; }
h2 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; }
.wide { overflow-x: auto; max-width: 100%; margin: .4rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-bottom: 2px solid var(--rule); }
th, td { padding: .22rem .7rem; white-space: nowrap; text-align: left; vertical-align: top; }
thead th { font-weight: 600; }
thead tr:first-child th { border-top: 2px solid var(--rule); }
thead tr:last-child th { border-bottom: 1px solid var(--rule); }
tbody tr:hover { background: var(--stripe); }
.notes { color: var(--faint); font-size: .86rem; margin-top: .8rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for part in parts %}
{{ part | safe }}
{% endfor %}
{% if notes %}
<div class="notes">
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
</div>
{% endif %}
</body>
</html>
"""
LATEX = r"""% {caption}
% Needs \usepackage{{booktabs,graphicx}}. A table wider than the line is scaled to the line.
\begingroup\centering\footnotesize\setlength{{\tabcolsep}}{{4pt}}%
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
{tabular}}}\par\smallskip
{notes}\endgroup
"""
NARROW = "The paper's numbers are left out for lack of width. The written tables have them."


def write_table(table: Table, stem: Path | str) -> list[Path]:
    """Write ``stem`` with `.csv`, `.md`, `.tex` and `.html`, each atomically, and return the four paths."""
    renderers = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex, ".html": to_html}
    paths = [Path(f"{stem}{suffix}") for suffix in renderers]
    for path, render in zip(paths, renderers.values(), strict=True):
        with atomic_file(path) as temporary:
            temporary.write_text(render(table), encoding="utf-8")
    return paths


def to_csv(table: Table) -> str:
    """Return a table as CSV, with the ``Heading.parts`` of each measure in separate columns.

    The parts on the paper are left out if its numbers are those of other models.
    """
    rows = table.rows
    columns: dict[str, list[str | int | None]] = {"model": [row.model for row in rows]} if table.names_models else {}
    columns |= {
        "sparsity_percent": [percent(row.sparsity) for row in rows],
        "method": [row.method for row in rows],
        "pattern": [row.pattern for row in rows],
    }
    columns |= {"setting": [row.setting for row in rows]} if table.names_settings else {}
    if table.names_models:
        columns["achieved_percent"] = [_number(100 * next(iter(row.achieved.values()), math.nan)) for row in rows]
    else:
        for name in dict.fromkeys(name for row in rows for name in row.achieved):
            columns[f"{name}_achieved_percent"] = [_number(100 * row.achieved.get(name, math.nan)) for row in rows]
    for index, heading in enumerate(table.header):
        parts = [_parts(row.measures[index], row.comparable) for row in rows]
        hidden = () if table.comparable(heading) else ("_published", "_difference")
        names = [name for name in heading.parts if name not in hidden]
        columns |= {f"{heading.key}{name}": [part[name] for part in parts] for name in names}
    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")


def _parts(measure: Measure | None, comparable: bool) -> dict[str, str | int]:
    if measure is None:
        return dict.fromkeys(PARTS, "")
    published = measure.published if comparable else math.nan
    numbers = measure.value, measure.stderr, measure.spread, published, measure.value - published
    value, stderr, spread, published, difference = map(_number, numbers)
    flags = (str(flag).lower() for flag in (measure.best, measure.noisy is not None))
    parts = [value, stderr, spread, measure.seeds, published, difference, *flags]
    return dict(zip(PARTS, parts, strict=True))


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def to_markdown(table: Table) -> str:
    """Return the caption, the table and the notes as GitHub Markdown."""
    caption, *notes = map(escape_markdown, (table.caption, *table.notes))
    return "\n\n".join([caption, markdown_table(Layout.of(table)), *notes]) + "\n"


def markdown_table(layout: Layout) -> str:
    """Return a table as GitHub Markdown; the name of a column follows its group."""
    frame = layout.marked(escape_markdown, "**{}**")
    heads = [f"{group} {name}".strip() for group, name in layout.texts.columns]
    return _tabulate("pipe", list(map(escape_markdown, heads)), frame, layout.numeric)


def _tabulate(style: str, heads: Sequence[str], frame: pd.DataFrame, numeric: Sequence[bool]) -> str:
    alignment = ["right" if right else "left" for right in numeric]
    options = {"disable_numparse": True, "preserve_whitespace": True, "colalign": alignment if len(frame) else None}
    return tabulate(frame.values.tolist(), heads, style, **options)


def to_text(table: Table, width: int = 110) -> str:
    """Return a table as aligned text with `*` for bold; published columns are dropped if it exceeds ``width``."""
    text, notes = _text_table(Layout.of(table)), list(table.notes)
    if max(map(len, text.splitlines())) > width:
        narrow = _text_table(Layout.of(table, published=False))
        notes += [NARROW] if narrow != text else []
        text = narrow
    wrapped = [textwrap.fill(note.replace("Bold:", "*:"), width, subsequent_indent="  ") for note in notes]
    return "\n".join([table.caption, "", text, "", *wrapped]) + "\n"


def _text_table(layout: Layout) -> str:
    # A space after the other cells of a column keeps the digits aligned.
    spaces = np.where(~layout.bold & layout.bold.any(axis=0), " ", "")
    frame = layout.marked(str, "{}*") + spaces
    heads = [f"{group}\n{name}" if group else name.replace(" (", "\n(") for group, name in layout.texts.columns]
    return _tabulate("simple", heads, frame, layout.numeric)


def to_latex(table: Table) -> str:
    """Return a booktabs tabular with its notes below, for `\\input`, without a float or a preamble."""
    layout = Layout.of(table)
    frame = layout.marked(escape_tex, r"\textbf{{{}}}")
    # Styler draws no rules between rows or below groups, so the first cell of a row begins with the rule.
    for index in layout.ruled:
        frame.iloc[index, 0] = f"\\midrule\n{frame.iloc[index, 0]}"
    if frame.columns.nlevels > 1:
        rules = [rf"\cmidrule(lr){{{first + 1}-{last + 1}}}" for group, first, last in layout.groups if group]
        (group, name), *others = frame.columns
        frame.columns = pd.MultiIndex.from_tuples([(group, f"{''.join(rules)}\n{name}"), *others])
    alignment = "".join("r" if right else "l" for right in layout.numeric)
    tabular = Styler(frame).hide(axis="index").to_latex(column_format=alignment, hrules=True, multicol_align="c")
    notes = "".join(rf"{{\scriptsize {escape_tex(note)}\par}}" + "\n" for note in table.notes)
    return LATEX.format(caption=escape_tex(table.caption), tabular=tabular.rstrip(), notes=notes)


def to_html(table: Table) -> str:
    """Return an HTML page with a table of results and its notes."""
    return html_page(table.caption, [html_table(Layout.of(table), "results")], table.notes)


def html_table(layout: Layout, name: str) -> str:
    """Return a table as HTML; its styles refer to ``name``, which is unique in a page."""
    frame = layout.marked(escape_html, "<b>{}</b>")
    styles = [(f".col{index}", "text-align: right") for index, right in enumerate(layout.numeric) if right]
    styles += [(f".row{index}", "border-top: 1px solid var(--line)") for index in layout.ruled]
    if frame.columns.nlevels > 1:
        styles.append((".level0:not(:empty)", "text-align: center; border-bottom: 1px solid var(--line)"))
    styler = Styler(frame, uuid=name, cell_ids=False).hide(axis="index")
    styler.set_table_styles([{"selector": selector, "props": props} for selector, props in styles])
    return f'<div class="wide">\n{styler.to_html()}</div>'


def html_page(title: str, parts: Iterable[str], notes: Iterable[str] = ()) -> str:
    """Return a complete HTML page.

    Args:
        title: title as plain text.
        parts: body as HTML.
        notes: notes below the body as plain text.
    """
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(PAGE).render(title=title, parts=parts, notes=notes)
