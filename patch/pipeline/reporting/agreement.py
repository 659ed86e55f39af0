"""Comparison of measurements with the paper: by value for the same model, by row order for another model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from patch.pipeline.reporting.columns import format_value
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.table import Heading, Measure, Row, Table
from patch.pipeline.results.order import percent
from patch.pipeline.results.record import ModelInfo

# A number agrees with the published one within this many standard errors of the measurement.
ERRORS = 2
# Maximum number of swapped pairs that a line names.
SHOWN_SWAPS = 3
Found = tuple[Row, Heading, Measure]


def beside_paper(table: Table, models: Sequence[ModelInfo]) -> Iterator[str]:
    """Yield a line of Markdown for each model whose numbers in the table can be compared with published ones."""
    if table.deviation:
        # Another table has the same rows.
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
    """Return the count of numbers that agree with the published ones, and the largest differences, as text."""
    known = [(row, heading, m) for row, heading, m in found if not math.isnan(m.stderr)]
    if not known:
        return ""
    near = sum(abs(m.value - m.published) <= ERRORS * m.stderr for _, _, m in known)
    text = f"{near} of {len(known)} numbers are within two standard errors of the published ones"
    largest = [_largest(known, perplexity) for perplexity in (False, True)]
    return f"{text}; largest difference: {', '.join(part for part in largest if part)}."


def _largest(found: list[Found], perplexity: bool) -> str:
    """Return the largest difference as text, in points of accuracy or in percent of the published perplexity.

    Perplexity differences are relative because perplexities span orders of magnitude.
    """
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
    """Return the rank correlation with the published perplexities, and the swapped neighbours, as text."""
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
    """Return Kendall's rank correlation tau-b of two lists: 1 for the same order, −1 for the reverse order.

    Args:
        pairs: pairs of corresponding values.

    Returns:
        The correlation, or NaN if all values of one list are equal. Ties count for neither order.
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
    """Return the name of a table row for use in a sentence."""
    if row.pattern == "dense":
        return "dense"
    setting = f", {row.setting}" if row.setting else ""
    return f"{row.method} {row.pattern} at {percent(row.sparsity)} %{setting}"
