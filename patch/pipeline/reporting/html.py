"""Self-contained HTML pages with tables, without scripts, fonts or network access."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from patch.pipeline.reporting.columns import Column, groups, text_columns
from patch.pipeline.reporting.escape import escape_html
from patch.pipeline.reporting.table import Table

# The report shows a page in a frame of half a screen, so a wide table scrolls instead of the page.
CSS = """
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
th.group { text-align: center; border-bottom: 1px solid var(--line); }
.number { text-align: right; }
tbody tr:hover { background: var(--stripe); }
tbody tr.apart td { border-top: 1px solid var(--line); }
.notes { color: var(--faint); font-size: .86rem; margin-top: .8rem; }
""".strip()


def html_table(columns: list[Column], apart: Collection[int] = ()) -> str:
    """Return columns as an HTML table.

    Args:
        columns: columns of the table; adjacent columns of one group share a title.
        apart: indices of rows with a line above them.
    """
    return "\n".join(
        [
            '<div class="wide">',
            "<table>",
            "<thead>",
            *_head(columns),
            "</thead>",
            "<tbody>",
            *_body(columns, apart),
            "</tbody>",
            "</table>",
            "</div>",
        ]
    )


def html_page(title: str, parts: Iterable[str], notes: Iterable[str] = ()) -> str:
    """Return a complete HTML page.

    Args:
        title: title as plain text.
        parts: body as HTML.
        notes: notes below the body as plain text.
    """
    below = [f"<p>{escape_html(note)}</p>" for note in notes]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape_html(title)}</title>",
            f"<style>\n{CSS}\n</style>",
            "</head>",
            "<body>",
            f"<h1>{escape_html(title)}</h1>",
            *parts,
            *(['<div class="notes">', *below, "</div>"] if below else []),
            "</body>",
            "</html>",
            "",
        ]
    )


def table_page(table: Table) -> str:
    """Return an HTML page with a table of results and its notes."""
    rows = table.rows
    apart = [i for i in range(1, len(rows)) if _level(table, i) != _level(table, i - 1)]
    return html_page(table.caption, [html_table(text_columns(table), apart)], table.notes)


def _level(table: Table, index: int) -> tuple[str | None, float]:
    row = table.rows[index]
    return row.model, row.sparsity


def _head(columns: list[Column]) -> list[str]:
    lines = []
    if any(column.group for column in columns):
        spans = [
            f'<th class="group" colspan="{last - first + 1}" scope="colgroup">{escape_html(group)}</th>'
            if group
            else f'<th colspan="{last - first + 1}"></th>'
            for group, first, last in groups(columns)
        ]
        lines.append(f"<tr>{''.join(spans)}</tr>")
    names = [f'<th{_kind(column)} scope="col">{escape_html(column.name)}</th>' for column in columns]
    return [*lines, f"<tr>{''.join(names)}</tr>"]


def _body(columns: list[Column], apart: Collection[int]) -> list[str]:
    lines = []
    for index, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        texts = [f"<td{_kind(column)}>{_text(*cell)}</td>" for column, cell in zip(columns, cells, strict=True)]
        row = '<tr class="apart">' if index in apart else "<tr>"
        lines.append(f"{row}{''.join(texts)}</tr>")
    return lines


def _text(text: str, bold: bool) -> str:
    return f"<b>{escape_html(text)}</b>" if bold else escape_html(text)


def _kind(column: Column) -> str:
    return ' class="number"' if column.numeric else ""
