"""How what was measured compares with the paper: number by number, or of another model in the order of its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from patch.pipeline.reporting.columns import format_value
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.table import Heading, Measure, Row, Table
from patch.pipeline.results.order import percent
from patch.pipeline.results.record import ModelInfo

# Standard errors of the measurement within which a number agrees with the published one.
ERRORS = 2
# Pairs that a line names.
SHOWN_SWAPS = 3
Found = tuple[Row, Heading, Measure]


def beside_paper(table: Table, models: Sequence[ModelInfo]) -> Iterator[str]:
    """Return a line of Markdown for each model that the table has published numbers of and something to compare."""
    if table.deviation:
        # The same rows as in another table.
        return
    for model in models:
        found = [(row, heading, m) for row, heading, m in _measures(table, model) if not math.isnan(m.published)]
        line = _within(found) if model.comparable else _order(found)
        if line:
            of = "" if model.comparable else f" beside {model.published}"
            yield f"{escape_markdown(f'{model.title}{of}')}, table `{table.name}`: {escape_markdown(line)}"


def _measures(table: Table, model: ModelInfo) -> Iterator[Found]:
    for row in table.rows:
        for heading, measure in zip(table.header, row.measures, strict=True):
            title = heading.model.title if heading.model else row.model
            if measure is not None and title == model.title:
                yield row, heading, measure


def _within(found: list[Found]) -> str:
    """How many numbers are near the published ones, and the largest differences."""
    known = [(row, heading, m) for row, heading, m in found if not math.isnan(m.stderr)]
    if not known:
        return ""
    near = sum(abs(m.value - m.published) <= ERRORS * m.stderr for _, _, m in known)
    text = f"{near} of {len(known)} numbers are within two standard errors of the published ones"
    largest = [_largest(known, perplexity) for perplexity in (False, True)]
    return f"{text}; largest difference: {', '.join(part for part in largest if part)}."


def _largest(found: list[Found], perplexity: bool) -> str:
    """In points of accuracy, or as a share of the published perplexity, which spans orders of magnitude."""
    those = [(row, heading, m) for row, heading, m in found if (heading.metric == "perplexity") == perplexity]
    if not those:
        return ""

    def gap(m: Measure) -> float:
        return 100 * (m.value / m.published - 1) if perplexity else m.value - m.published

    row, heading, m = max(those, key=lambda part: abs(gap(part[2])))
    sign = "−" if gap(m) < 0 else "+"
    size = f"{sign}{abs(gap(m)):.1f} %" if perplexity else f"{sign}{abs(gap(m)):.2f} points"
    name = {"accuracy": "accuracy"}.get(heading.metric, heading.metric)
    values = f"{format_value(m.value, heading.metric)} for {format_value(m.published, heading.metric)}"
    return f"{name} {size} ({row_label(row)}: {values})"


def _order(found: list[Found]) -> str:
    """Whether the rows stand in the published order of perplexity, and which neighbours in it swap."""
    rows = sorted(
        ((m.published, m.value, row) for row, heading, m in found if heading.metric == "perplexity"), key=_first
    )
    tau = kendall_tau([(published, value) for published, value, _ in rows])
    if math.isnan(tau):
        return ""
    swapped = [
        f"{row_label(a[2])} and {row_label(b[2])}"
        for a, b in zip(rows, rows[1:], strict=False)
        if a[0] < b[0] and a[1] > b[1]
    ]
    more = f"; and {len(swapped) - SHOWN_SWAPS} more" if len(swapped) > SHOWN_SWAPS else ""
    named = "; ".join(swapped[:SHOWN_SWAPS]) + more
    swaps = f"neighbours in it that swap: {named}" if swapped else "no neighbours in it swap"
    return (
        f"by perplexity, the order of {len(rows)} rows agrees with the published one to a Kendall's tau of {tau:.2f}; "
        f"{swaps}."
    )


def _first(row: tuple[float, float, Row]) -> float:
    return row[0]


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Kendall's rank correlation tau-b of two lists: 1 for the same order, −1 for the reverse; ties count for neither.

    Args:
        pairs: of corresponding values.

    Returns:
        NaN where one of the lists has fewer than two values that differ.
    """
    score = first_differ = second_differ = 0
    for index, (a, b) in enumerate(pairs):
        for c, d in pairs[:index]:
            first, second = (a > c) - (a < c), (b > d) - (b < d)
            score += first * second
            first_differ += first != 0
            second_differ += second != 0
    return score / math.sqrt(first_differ * second_differ) if first_differ and second_differ else math.nan


def row_label(row: Row) -> str:
    """A row of a table in a sentence."""
    if row.pattern == "dense":
        return "dense"
    setting = f", {row.setting}" if row.setting else ""
    return f"{row.method} {row.pattern} at {percent(row.sparsity)} %{setting}"
