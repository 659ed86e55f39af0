"""Uncertainty of the reported metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from patch.pipeline.reporting.comparison import ERRORS
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.layout import Layout
from patch.pipeline.reporting.render import markdown_table
from patch.pipeline.reporting.table import DASH, pattern_title
from patch.pipeline.results.order import percent, run_title, variant_title
from patch.pipeline.results.record import Record
from patch.pipeline.runs.run import ModelInfo, Run

# A line names its pairs only up to this number.
NAMED = 4
# Metric -> names of the close pairs, and the number of all pairs.
Pairs = dict[str, tuple[list[str], int]]


def uncertainty(
    records: Sequence[Record], differences: pd.DataFrame, models: Sequence[ModelInfo], expected: Sequence[Run]
) -> str:
    """Return an explanation of the errors, and a table of indistinguishable row pairs of equal sparsity, as Markdown.

    Args:
        records: records of the measured runs.
        differences: frame that `patch.pipeline.results.differences.paired_differences` returns.
        models: models of the experiment.
        expected: runs of the experiment.
    """
    pairs = close_pairs(differences, expected)
    metrics = [name for name in ("perplexity", "accuracy") if any(name in record.metrics for record in records)]
    rows = [
        [model.title, percent(sparsity), *(_counted(*found[metric]) for metric in metrics)]
        for model in models
        for (name, sparsity), found in pairs.items()
        if name == model.name
    ]
    titles = [("", name) for name in ("Model", "Sparsity (%)", *(f"Close in {metric}" for metric in metrics))]
    table = [markdown_table(Layout.plain(titles, rows, len(titles), []))] if rows else []
    return "\n\n".join([_errors(records), *table])


def _errors(records: Sequence[Record]) -> str:
    samples: dict[str, list[int | None]] = {}
    for record in records:
        for name, metric in record.metrics.items():
            # All metrics of a task are measured on its questions.
            samples.setdefault(name.partition("/")[0], []).append(metric.samples)
    tasks = [name for name in samples if name not in ("perplexity", "accuracy")]
    seeds = len({record.run.seed for record in records})
    over = (
        f"A row is the mean over up to {seeds} seeds, and its error includes the variance between them."
        if seeds > 1
        else "There is one seed, so the errors exclude the variance between draws of calibration and learning."
    )
    questions = ", ".join(f"{escape_markdown(name)} {_range(samples[name])}" for name in tasks)
    accuracy = f", accuracy on questions ({questions})" if tasks else ""
    return (
        "The standard errors estimate how much a number changes with other samples. Perplexity is measured on "
        f"{_range(samples.get('perplexity', []))} sequences{accuracy}. {over} All rows are "
        "measured on the same sequences and questions, so the error of a difference is a paired one, often much "
        "smaller than the errors of the two rows. The table lists the pairs of rows of one sparsity whose difference "
        f"is within {ERRORS} paired errors. These pairs cannot be distinguished."
    )


def _range(counts: Iterable[int | None]) -> str:
    known = [count for count in counts if count is not None]
    return " to ".join(f"{count:,}" for count in sorted({min(known), max(known)})) if known else "?"


def close_pairs(differences: pd.DataFrame, expected: Sequence[Run]) -> dict[tuple[str, float], Pairs]:
    """Return the pairs of rows of one sparsity whose difference is within the error.

    Returns:
        A map from model and sparsity (highest first) to the pairs.
    """
    titles = {(run.model, run.row): _title(run) for run in expected}
    sparsities = {(run.model, run.row): run.sparsity for run in expected}
    pairs: dict[tuple[str, float], Pairs] = {}
    for line in differences.sort_values("sparsity", ascending=False, kind="stable").itertuples():
        sides = (line.model, line.a), (line.model, line.b)
        equal = len({sparsities.get(side) for side in sides}) == 1
        if line.metric not in ("perplexity", "accuracy") or pd.isna(line.stderr) or not equal:
            continue
        found = pairs.setdefault((line.model, line.sparsity), {"perplexity": ([], 0), "accuracy": ([], 0)})
        close, count = found[line.metric]
        if abs(line.difference) <= ERRORS * line.stderr:
            close.append(" and ".join(titles.get(side, side[1]) for side in sides))
        found[line.metric] = close, count + 1
    return pairs


def _counted(close: list[str], count: int) -> str:
    if not count:
        return DASH
    return f"{len(close)} of {count} pairs" + (f": {'; '.join(close)}" if 0 < len(close) <= NAMED else "")


def _title(run: Run) -> str:
    """Return the name of a run's row for a sentence about rows of one sparsity."""
    if run.pattern == "dense" and not run.quantization and not run.variant:
        return "dense"
    variant = f", {variant_title(run.variant)}" if run.variant else ""
    return f"{run_title(run)} {pattern_title(run)}{variant}"
