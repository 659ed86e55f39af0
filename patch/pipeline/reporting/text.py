"""Table output for a terminal."""

from __future__ import annotations

import textwrap

from patch.pipeline.reporting.columns import Column, groups, text_columns
from patch.pipeline.reporting.table import Table


def to_text(table: Table, width: int = 110) -> str:
    """Return a table as aligned text with `*` for bold; published columns are dropped if it exceeds ``width``."""
    text, notes = _aligned(text_columns(table)), list(table.notes)
    if _width(text) > width:
        text = _aligned(text_columns(table, published=False))
        notes.append("The paper's numbers are left out here for want of width; the written tables have them.")
    wrapped = [textwrap.fill(note.replace("Bold:", "*:"), width, subsequent_indent="  ") for note in notes]
    return "\n".join([table.caption, "", *text, "", *wrapped]) + "\n"


def _aligned(columns: list[Column]) -> list[str]:
    heads = [_two_lines(column) for column in columns]
    texts = [_starred(column.cells) for column in columns]
    widths = [max(map(len, [*head, *column])) for head, column in zip(heads, texts, strict=True)]
    top = []
    for group, first, last in groups(columns):
        span = sum(widths[first : last + 1]) + 2 * (last - first)
        widths[last] += max(0, len(group) - span)
        members = range(first, last + 1)
        alone = [heads[i][0].rjust(widths[i]) if columns[i].numeric else heads[i][0].ljust(widths[i]) for i in members]
        top.append(group.center(max(span, len(group))) if group else "  ".join(alone))

    def line(cells: list[str]) -> str:
        padded = [t.rjust(w) if c.numeric else t.ljust(w) for t, w, c in zip(cells, widths, columns, strict=True)]
        return "  ".join(padded).rstrip()

    rows = [line(list(cells)) for cells in zip(*texts, strict=True)]
    header = ["  ".join(top).rstrip(), line([second for _, second in heads])]
    return [*header, "-" * _width([*header, *rows]), *rows]


def _two_lines(column: Column) -> tuple[str, str]:
    """Return the two heading lines of a column; units go to the second line to make the table narrower."""
    if column.group:
        return "", column.name
    name, bracket, unit = column.name.partition(" (")
    return (name, f"({unit}") if bracket else ("", name)


def _starred(cells: list[tuple[str, bool]]) -> list[str]:
    """Return texts with a star after bold cells and padding after the others, so that the digits stay aligned."""
    if not any(bold for _, bold in cells):
        return [text for text, _ in cells]
    return [text + (" *" if bold else "  ") for text, bold in cells]


def _width(lines: list[str]) -> int:
    return max(map(len, lines), default=0)
