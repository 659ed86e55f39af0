"""Means and errors over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

ROW = ["model", "method", "pattern", "sparsity", "tile", "quantization", "variant", "metric"]
SUMMARY_COLUMNS = [
    *ROW,
    "value",
    "spread",
    "stderr",
    "seeds",
    "published",
    "achieved_sparsity",
    "seconds",
    "peak_memory_mb",
]


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Join the seeds of each row of a table and metric, keeping the order of the frame.

    Args:
        frame: as `collect` makes it.

    Returns:
        The columns ``SUMMARY_COLUMNS``: ``value`` is the mean, ``spread`` the sample standard deviation
        over seeds (null for one seed), ``stderr`` the error to print, see `combined_stderr`, ``seeds``
        their number. ``achieved_sparsity`` and ``seconds`` are means, ``peak_memory_mb`` the largest.
    """
    groups = frame.groupby(ROW, sort=False, dropna=False)
    summary = groups.agg(
        value=("value", "mean"),
        spread=("value", "std"),
        seeds=("value", "size"),
        published=("published", "first"),
        achieved_sparsity=("achieved_sparsity", "mean"),
        seconds=("seconds", "mean"),
        peak_memory_mb=("peak_memory_mb", "max"),
    )
    summary["stderr"] = [combined_stderr(group["value"], group["stderr"]) for _, group in groups]
    return summary.reset_index()[SUMMARY_COLUMNS]


def combined_stderr(values: pd.Series, stderrs: pd.Series) -> float:
    """Standard error of a mean over seeds, in the unit of the values.

    Seeds are judged on the same questions, so averaging over them does not shrink the error that a
    finite test set leaves; it shrinks only the error that the choice of seeds leaves:
    ``sqrt(mean(stderr^2) + std(values)^2 / seeds)``. One seed: its own standard error.
    A missing standard error is left out of the mean; NaN if all are missing and there is one seed.
    """
    known = np.asarray(stderrs.dropna(), dtype=np.float64)
    test_set = float(np.mean(known**2)) if known.size else np.nan
    if len(values) == 1:
        return float(np.sqrt(test_set))
    seeds = float(np.var(np.asarray(values, dtype=np.float64), ddof=1)) / len(values)
    return float(np.sqrt(np.nan_to_num(test_set) + seeds))
