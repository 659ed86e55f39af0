"""Table export to CSV, GitHub Markdown, LaTeX and HTML files."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from patch.files.io import atomic_file
from patch.pipeline.reporting.columns import text_columns
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.html import table_page
from patch.pipeline.reporting.table import PARTS, Measure, Table
from patch.pipeline.reporting.tex import tex_lines
from patch.pipeline.results.order import percent


def write_table(table: Table, stem: Path | str) -> list[Path]:
    """Write ``stem`` with `.csv`, `.md`, `.tex` and `.html`, each atomically, and return the four paths."""
    writers = {".csv": _write_csv, ".md": _write_markdown, ".tex": _write_tex, ".html": _write_html}
    paths = [Path(f"{stem}{suffix}") for suffix in writers]
    for path, write in zip(paths, writers.values(), strict=True):
        with atomic_file(path) as temporary:
            write(table, temporary)
    return paths


def _write_csv(table: Table, path: Path) -> None:
    models = list(dict.fromkeys(name for row in table.rows for name in row.achieved))
    labels = ["model"] if table.names_models else []
    labels += ["sparsity_percent", "method", "pattern", *(["setting"] if table.names_settings else [])]
    labels += ["achieved_percent"] if table.names_models else [f"{name}_achieved_percent" for name in models]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*labels, *(f"{heading.key}{part}" for heading in table.header for part in heading.parts)])
        for row in table.rows:
            cells = [row.model] if table.names_models else []
            cells += [percent(row.sparsity), row.method, row.pattern]
            cells += [row.setting] if table.names_settings else []
            shares = (
                list(row.achieved.values()) or [None]
                if table.names_models
                else [row.achieved.get(name) for name in models]
            )
            cells += ["" if share is None else _number(100 * share) for share in shares]
            for heading, measure in zip(table.header, row.measures, strict=True):
                found = _csv_cells(measure)
                cells += [found[part] for part in heading.parts]
            writer.writerow(cells)


def _csv_cells(measure: Measure | None) -> dict[str, str | int]:
    if measure is None:
        return dict.fromkeys(PARTS, "")
    value, stderr, spread = (_number(x) for x in (measure.value, measure.stderr, measure.spread))
    published = (_number(x) for x in (measure.published, measure.value - measure.published))
    cells = [value, stderr, spread, measure.seeds, *published, str(measure.best).lower()]
    return dict(zip(PARTS, cells, strict=True))


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def to_markdown(table: Table) -> str:
    """Return the caption, the table and the notes as GitHub Markdown."""
    columns = text_columns(table)

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def text(cell: tuple[str, bool]) -> str:
        return f"**{escape_markdown(cell[0])}**" if cell[1] else escape_markdown(cell[0])

    lines = [line([text((f"{c.group} {c.name}".strip(), False)) for c in columns])]
    lines.append(line(["---:" if c.numeric else ":---" for c in columns]))
    lines += [line([text(cell) for cell in cells]) for cells in zip(*(c.cells for c in columns), strict=True)]
    caption, *notes = (escape_markdown(line) for line in (table.caption, *table.notes))
    return "\n\n".join([caption, "\n".join(lines), *notes]) + "\n"


def _write_markdown(table: Table, path: Path) -> None:
    path.write_text(to_markdown(table), encoding="utf-8")


def _write_tex(table: Table, path: Path) -> None:
    path.write_text("\n".join(tex_lines(table)) + "\n", encoding="utf-8")


def _write_html(table: Table, path: Path) -> None:
    path.write_text(table_page(table), encoding="utf-8")
