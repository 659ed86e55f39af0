"""Comparison of measurements with the paper: by value for the same model, by row order for another model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.table import Heading, Measure, Row, Table
from patch.pipeline.reporting.units import metric_value
from patch.pipeline.results.order import percent
from patch.pipeline.runs.run import ModelInfo

# A number agrees with the published one within this many standard errors of the measurement.
ERRORS = 2
# Maximum number of swapped pairs that a line names.
SHOWN_SWAPS = 3
Found = tuple[Row, Heading, Measure]


def compare_with_paper(table: Table, models: Sequence[ModelInfo]) -> Iterator[str]:
    """Yield a line of Markdown for each model whose numbers in the table can be compared with published ones."""
    if table.deviation:
        # Another table has the same rows.
        return
    for model in models:
        found = [
            (row, heading, measure)
            for row in table.rows
            for heading, measure in zip(table.header, row.measures, strict=True)
            if (heading.model.title if heading.model else row.model) == model.title
            and measure is not None
            and not math.isnan(measure.published)
        ]
        line = _values(found) if model.comparable else _order(found)
        if line:
            title = model.title if model.comparable else f"{model.title} and {model.published}"
            yield f"{escape_markdown(title)}, table `{table.name}`: {escape_markdown(line)}"


def _values(found: list[Found]) -> str:
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

    def gap(m: Measure) -> float:
        return 100 * (m.value / m.published - 1) if perplexity else m.value - m.published

    candidates = [part for part in found if (part[1].metric == "perplexity") == perplexity]
    if not candidates:
        return ""
    row, heading, m = max(candidates, key=lambda part: abs(gap(part[2])))
    size = f"{abs(gap(m)):.1f} %" if perplexity else f"{abs(gap(m)):.2f} points"
    values = f"{metric_value(m.value, heading.metric)} measured, {metric_value(m.published, heading.metric)} published"
    return f"{heading.metric} {'−' if gap(m) < 0 else '+'}{size} ({row_label(row)}: {values})"


def _order(found: list[Found]) -> str:
    """Return the rank correlation with the published perplexities, and the swapped neighbours, as text."""
    # Its import takes a second, and most stages that make tables need no comparison.
    from scipy.stats import kendalltau

    rows = [(m.published, m.value, row) for row, heading, m in found if heading.metric == "perplexity"]
    rows.sort(key=lambda row: row[0])
    # Tau-b: ties count for neither order. It is NaN if all values of one side are equal.
    tau = kendalltau([row[0] for row in rows], [row[1] for row in rows]).statistic if len(rows) > 1 else math.nan
    if math.isnan(tau):
        return ""
    swapped = [
        f"{row_label(a[2])} and {row_label(b[2])}"
        for a, b in zip(rows, rows[1:], strict=False)
        if a[0] < b[0] and a[1] > b[1]
    ]
    more = [f"{len(swapped) - SHOWN_SWAPS} more"] if len(swapped) > SHOWN_SWAPS else []
    swaps = f"swapped neighbours: {'; '.join(swapped[:SHOWN_SWAPS] + more)}" if swapped else "no swapped neighbours"
    return f"Kendall's tau of {tau:.2f} between measured and published perplexity over {len(rows)} rows; {swaps}."


def row_label(row: Row) -> str:
    """Return the name of a table row for use in a sentence."""
    if row.pattern == "dense":
        return "dense"
    setting = f", {row.setting}" if row.setting else ""
    return f"{row.method} {row.pattern} at {percent(row.sparsity)} %{setting}"
