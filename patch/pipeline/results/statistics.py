"""Means and standard errors over seeds."""

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
    """Aggregate the seeds of each table row and metric, keeping the order of the frame.

    Args:
        frame: tidy frame that `collect` returns.

    Returns:
        A frame with the columns ``SUMMARY_COLUMNS``. ``value`` is the mean over seeds, ``spread`` is the sample
        standard deviation over seeds (null for one seed), ``stderr`` is the error to print (see `combined_stderr`),
        and ``seeds`` is the number of seeds. ``achieved_sparsity`` and ``seconds`` are means. ``peak_memory_mb`` is
        the maximum.
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
    """Return the standard error of a mean over seeds, in the unit of the values.

    All seeds are evaluated on the same questions, so averaging over seeds reduces the error due to the choice of
    seeds but not the error due to the finite test set: ``sqrt(mean(stderr^2) + std(values)^2 / seeds)``. The result
    for one seed is its own standard error. Missing standard errors are left out of the mean. The result is NaN if all
    are missing and there is only one seed.
    """
    known = np.asarray(stderrs.dropna(), dtype=np.float64)
    test_set = float(np.mean(known**2)) if known.size else np.nan
    if len(values) == 1:
        return float(np.sqrt(test_set))
    seeds = float(np.var(np.asarray(values, dtype=np.float64), ddof=1)) / len(values)
    return float(np.sqrt(np.nan_to_num(test_set) + seeds))
