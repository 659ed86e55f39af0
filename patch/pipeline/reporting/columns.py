"""Conversion of a table to text columns, and number formatting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patch.pipeline.reporting.table import DASH, Measure, Row, Table
from patch.pipeline.results.order import percent


@dataclass(frozen=True)
class Column:
    """Column of text; ``group`` is the title above it, such as a model, and ``cells`` are (text, bold) pairs."""

    group: str
    name: str
    cells: list[tuple[str, bool]]
    numeric: bool = True


def text_columns(table: Table, published: bool = True) -> list[Column]:
    """Return the label columns, then for each heading the measurements and, if ``published``, the paper's numbers.

    A heading without published numbers gets no column for them.
    """

    def label(name: str, texts: list[str], numeric: bool = False) -> Column:
        return Column("", name, [(text, False) for text in texts], numeric)

    rows = table.rows
    found = [label("Model", [row.model or "" for row in rows])] if table.names_models else []
    found += [
        label("Sparsity (%)", [percent(row.sparsity) for row in rows], numeric=True),
        label("Method", [row.method for row in rows]),
        label("Pattern", [row.pattern for row in rows]),
    ]
    found += [label("Setting", [row.setting for row in rows])] if table.names_settings else []
    found += [label("Achieved (%)", [_achieved(row) for row in rows], numeric=True)]
    for index, heading in enumerate(table.header):
        measures = [row.measures[index] for row in rows]
        group = heading.model.title if heading.model else ""
        found.append(Column(group, heading.text, [_measured(m, heading.metric, table.deviation) for m in measures]))
        if published and any(m and not math.isnan(m.published) for m in measures):
            # A difference from another model's numbers is meaningless.
            same = [heading.model.comparable if heading.model else row.comparable for row in rows]
            texts = [(_published(m, heading.metric, s), False) for m, s in zip(measures, same, strict=True)]
            found.append(Column(group, "Paper (Δ)" if any(same) else "Paper", texts))
    return found


def groups(columns: list[Column]) -> list[tuple[str, int, int]]:
    """Return the spans of adjacent columns of one group: title, first and last position."""
    runs: list[tuple[str, int, int]] = []
    for index, column in enumerate(columns):
        if runs and runs[-1][0] == column.group:
            runs[-1] = (column.group, runs[-1][1], index)
        else:
            runs.append((column.group, index, index))
    return runs


def format_value(value: float, metric: str) -> str:
    """Return a value with two decimals, as in the paper; perplexities and tokens/s from 100 on have fewer."""
    large = metric in ("perplexity", "tokens_per_second")
    decimals = 2 if not large or abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:.{decimals}f}"


def _achieved(row: Row) -> str:
    shares = [100 * share for share in row.achieved.values()]
    if not shares:
        return DASH
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return low if low == high else f"{low}{DASH}{high}"


def _measured(measure: Measure | None, metric: str, deviation: bool) -> tuple[str, bool]:
    if measure is None:
        return DASH, False
    value, error = format_value(measure.value, metric), measure.spread if deviation else measure.stderr
    if math.isnan(error):
        return value, measure.best
    decimals = len(value.partition(".")[2])
    return f"{value} ± {error:.{decimals}f}", measure.best


def _published(measure: Measure | None, metric: str, difference: bool) -> str:
    if measure is None or math.isnan(measure.published):
        return DASH
    published = format_value(measure.published, metric)
    if not difference:
        return published
    gap = measure.value - measure.published
    return f"{published} ({'−' if gap < 0 else '+'}{format_value(abs(gap), metric)})"
