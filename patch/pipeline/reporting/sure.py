"""Uncertainty of the reported metrics."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from patch.pipeline.reporting.agreement import ERRORS
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.results.order import QUANTIZATIONS, method_title, percent, tile_title, variant_title
from patch.pipeline.results.record import ModelInfo, Record
from patch.pipeline.runs.run import Run

# A line names its pairs only up to this number.
NAMED = 4


def how_sure(
    records: Sequence[Record], differences: pd.DataFrame, models: Sequence[ModelInfo], expected: Sequence[Run]
) -> str:
    """Return an explanation of the errors, and a table of indistinguishable row pairs of equal sparsity, as Markdown.

    Args:
        records: records of the measured runs.
        differences: frame that `patch.pipeline.results.differences.paired_differences` returns.
        models: models of the experiment.
        expected: runs of the experiment.
    """
    lines = []
    pairs = close_pairs(differences, expected)
    for model in models:
        for (name, sparsity), found in pairs.items():
            if name == model.name:
                lines.append(
                    [model.title, percent(sparsity), *(_counted(*found[m]) for m in ("perplexity", "accuracy"))]
                )
    if not lines:
        return _errors(records)
    heads = ["Model", "Sparsity (%)", "Close in perplexity", "Close in accuracy"]
    lines = [[escape_markdown(run) for run in line] for line in lines]
    table = [f"| {' | '.join(runs)} |" for runs in (heads, [":---", "---:", ":---", ":---"], *lines)]
    return f"{_errors(records)}\n\n" + "\n".join(table)


def _errors(records: Sequence[Record]) -> str:
    sequences = {record.metrics["perplexity"].samples for record in records if "perplexity" in record.metrics}
    questions: dict[str, set[int | None]] = {}
    for record in records:
        for name, metric in record.metrics.items():
            if name not in ("perplexity", "accuracy"):
                questions.setdefault(name, set()).add(metric.samples)
    seeds = sorted({record.run.seed for record in records})
    over = (
        f"A row is the mean of up to {len(seeds)} seeds, and its error includes their scatter."
        if len(seeds) > 1
        else "There is one seed, so the errors leave out what another draw of calibration and learning would change."
    )
    tasks = ", ".join(f"{escape_markdown(name)} {_range(counts)}" for name, counts in questions.items())
    return (
        "The standard errors say how much a number would change on other samples: perplexity is over "
        f"{_range(sequences)} sequences, accuracy over questions ({tasks}). {over} Rows are measured on the same "
        "sequences and questions, so the error of a difference is a paired one, often much smaller than those of the "
        "two rows. "
        f"Below: of the pairs of rows with one sparsity, those whose difference is within {ERRORS} paired errors, "
        "which cannot be told apart."
    )


def _range(counts: set[int | None]) -> str:
    known = sorted(count for count in counts if count is not None)
    if not known:
        return "?"
    return f"{known[0]:,}" if known[0] == known[-1] else f"{known[0]:,} to {known[-1]:,}"


def close_pairs(
    differences: pd.DataFrame, expected: Sequence[Run]
) -> dict[tuple[str, float], dict[str, tuple[list[str], int]]]:
    """Return the pairs of rows whose difference is within the error, without pairs that contain the dense model.

    Returns:
        A map from model and sparsity (highest first) to metric to the names of the close pairs and the number of all
        pairs.
    """
    titles = {(run.model, run.row): _title(run) for run in expected}
    dense = {key for key, title in titles.items() if title == "dense"}
    pairs: dict[tuple[str, float], dict[str, tuple[list[str], int]]] = {}
    for line in differences.sort_values("sparsity", ascending=False, kind="stable").itertuples():
        sides = (line.model, line.a), (line.model, line.b)
        if line.metric not in ("perplexity", "accuracy") or pd.isna(line.stderr) or dense.intersection(sides):
            continue
        at = pairs.setdefault((line.model, line.sparsity), {"perplexity": ([], 0), "accuracy": ([], 0)})
        close, count = at[line.metric]
        if abs(line.difference) <= ERRORS * line.stderr:
            close.append(" and ".join(titles.get(side, side[1]) for side in sides))
        at[line.metric] = close, count + 1
    return pairs


def _counted(close: list[str], count: int) -> str:
    if not count:
        return "–"
    named = "; ".join(close) if 0 < len(close) <= NAMED else ""
    return f"{len(close)} of {count} pairs" + (f": {named}" if named else "")


def _title(run: Run) -> str:
    """Return the name of a run's row for a sentence about rows of one sparsity."""
    if run.pattern == "dense" and not run.quantization and not run.variant:
        return "dense"
    parts = [f"{method_title(run.method)} {run.pattern}"]
    parts += [tile_title(run.tile)] if run.tile else []
    parts += [variant_title(run.variant)] if run.variant else []
    parts += [QUANTIZATIONS[run.quantization]] if run.quantization else []
    return " ".join(parts)
