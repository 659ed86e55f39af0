"""Paired differences between table rows, with standard errors.

All rows are measured on the same sequences and questions, and their errors on these samples are correlated. The error
of a difference is therefore smaller than the two errors in quadrature, often by half.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from patch.errors import InputError
from patch.evaluation.bootstrap import SEED, resampled_means
from patch.evaluation.metric import accuracy_names
from patch.files.schema import Name, Positive
from patch.pipeline.results.order import run_order
from patch.pipeline.results.result_files import Row, joint_digest, read_rows, refuse_stale
from patch.pipeline.results.samples import Samples
from patch.pipeline.runs.run import Run, format_sparsity


class DifferenceRow(Row):
    """Difference of two rows in one metric; `paired_differences` describes the fields."""

    model: Name
    metric: Name
    sparsity: float = Field(ge=0, lt=1)
    a: Name
    b: Name
    difference: float
    stderr: float | None = Field(ge=0)
    samples: Positive
    seeds: Positive
    config_digest: Name


COLUMNS = list(DifferenceRow.model_fields)
_KINDS = dict.fromkeys(("sparsity", "difference", "stderr"), "float64") | dict.fromkeys(("samples", "seeds"), "int64")
_KINDS |= dict.fromkeys(("model", "metric", "a", "b", "config_digest"), "str")


@dataclass(frozen=True)
class _Estimate:
    """Estimate of one metric of one row.

    ``by_seed`` has one value for each seed, ``resamples`` the mean over seeds for each resample of the bootstrap, and
    ``counts`` the number of samples of each data set. Only rows with equal ``counts`` are compared.
    """

    by_seed: np.ndarray
    resamples: np.ndarray
    counts: dict[str, int]

    @property
    def seed_variance(self) -> float:
        """Variance of the mean over seeds; 0 for one seed, from which it cannot be estimated."""
        return float(self.by_seed.var(ddof=1)) / len(self.by_seed) if len(self.by_seed) > 1 else 0.0


def paired_differences(samples: list[Samples]) -> pd.DataFrame:
    """Return the paired differences between rows of one model.

    Compared are the rows of equal sparsity, each row and the dense model, hybrid and 2:4 rows with equal quantization
    and fine-tuning, and rows that differ only in their sparsity.

    The standard error comes from a paired bootstrap. Each resample draws the same sequences and questions for both
    rows, independently for each task, and recomputes the mean over tasks. The variance of the mean over seeds is
    added for each row with several seeds; it is the sample variance of the metric divided by the number of seeds.

    Args:
        samples: one for each run, in any order.

    Returns:
        A frame with the columns ``COLUMNS``. ``metric`` is `perplexity`, `accuracy` (mean over tasks), a task, or
        another metric of a task; all differences but those of perplexity are in percentage points. ``a`` and ``b``
        are row names and ``difference`` is a - b. ``sparsity`` is the target of ``a``, which is at least that of
        ``b``. ``stderr`` is null if a data set has only one sample. ``samples`` is the number of sequences or
        questions. ``seeds`` is the larger number of seeds of the two rows. ``config_digest`` is the joint digest of all
        samples of both rows.
        A metric is left out if the two rows do not have the same samples: a data set differs in size, a task is
        missing, or a task has no per-question values.

    Raises:
        InputError: a run has two sets of samples.
    """
    by_model: dict[str, dict[str, Samples]] = defaultdict(dict)
    for found in samples:
        runs = by_model[found.run.model]
        if found.run.id in runs:
            raise InputError(f"two sets of samples of run `{found.run.id}` of model `{found.run.model}`; expected one")
        runs[found.run.id] = found
    lines = [line for runs in by_model.values() for line in _model_lines(list(runs.values()))]
    return pd.DataFrame(lines, columns=COLUMNS).astype(_KINDS)


def _model_lines(runs: list[Samples]) -> Iterator[tuple]:
    """Yield the lines of the frame for one model."""
    rows: dict[str, list[Samples]] = defaultdict(list)
    for found in sorted(runs, key=lambda found: (_order(found.run), found.run.seed)):
        rows[found.run.row].append(found)
    tasks = list(dict.fromkeys(name for found in runs for name in found.samples if name != "perplexity"))
    estimates = {metric: _estimates(rows, metric) for metric in ("perplexity", *tasks)}
    estimates = {"perplexity": estimates["perplexity"], "accuracy": _means_over_tasks(rows, estimates), **estimates}
    digests = {row: [found.config_digest for found in seeds] for row, seeds in rows.items()}
    for a, b, sparsity in _pairs([seeds[0].run for seeds in rows.values()]):
        for metric, known in estimates.items():
            if a in known and b in known and known[a].counts == known[b].counts:
                joint = joint_digest([*digests[a], *digests[b]])
                yield runs[0].run.model, metric, sparsity, a, b, *_difference(known[a], known[b]), joint


def _order(run: Run) -> tuple:
    return run_order(run.model_copy(update={"variant": None})), run.row


def _pairs(rows: list[Run]) -> Iterator[tuple[str, str, float]]:
    """Yield the names of the rows to compare and the larger sparsity; the dense model always comes second."""
    for first, second in itertools.combinations(rows, 2):
        if _compared(first, second):
            a, b = (second, first) if _is_dense(first) else (first, second)
            yield a.row, b.row, a.sparsity


def _compared(first: Run, second: Run) -> bool:
    """Return whether the file has the difference of two rows, see `paired_differences`."""
    if format_sparsity(first.sparsity) == format_sparsity(second.sparsity) or _is_dense(first) or _is_dense(second):
        return True
    if {first.pattern, second.pattern} == {"hybrid", "2:4"}:
        return (first.quantization, first.finetune) == (second.quantization, second.finetune)
    return first.model_copy(update={"sparsity": second.sparsity, "seed": second.seed}) == second


def _is_dense(run: Run) -> bool:
    return run.pattern == "dense" and not run.quantization and not run.variant


def _estimates(rows: dict[str, list[Samples]], metric: str) -> dict[str, _Estimate]:
    """Estimate one metric (perplexity or a task) of each row whose seeds all have equally many samples of it."""
    by_count: dict[int, list[str]] = defaultdict(list)
    for row, seeds in rows.items():
        counts = {len(found.samples.get(metric, ())) for found in seeds}
        if len(counts) == 1 and 0 not in counts:
            by_count[counts.pop()].append(row)
    estimates = {}
    for count, names in by_count.items():
        values = np.stack([found.samples[metric] for row in names for found in rows[row]])
        # All rows share the weights of a resample. This pairs them, and the work grows with the number of rows
        # instead of pairs. Each metric has its own seed, so that tasks are independent.
        means = resampled_means(values, seed=SEED + zlib.crc32(metric.encode()))
        with np.errstate(over="ignore", invalid="ignore"):
            # The exponential precedes the mean over seeds because the tables average perplexities, not losses.
            by_run = np.exp(values.mean(axis=1)) if metric == "perplexity" else 100 * values.mean(axis=1)
            resampled = np.exp(means) if metric == "perplexity" else 100 * means
        ends = np.cumsum([len(rows[row]) for row in names])[:-1]
        for row, by_seed, means in zip(names, np.split(by_run, ends), np.split(resampled, ends), strict=True):
            estimates[row] = _Estimate(by_seed, means.mean(axis=0), {metric: count})
    return estimates


def _means_over_tasks(
    rows: dict[str, list[Samples]], estimates: dict[str, dict[str, _Estimate]]
) -> dict[str, _Estimate]:
    """Return the unweighted mean over tasks for each row that has estimates of all its tasks."""
    means = {}
    for row, seeds in rows.items():
        tasks = sorted({name for found in seeds for name in accuracy_names(found.samples)})
        if tasks and all(row in estimates[task] for task in tasks):
            parts = [estimates[task][row] for task in tasks]
            means[row] = _Estimate(
                np.mean([part.by_seed for part in parts], axis=0),
                np.mean([part.resamples for part in parts], axis=0),
                {task: part.counts[task] for task, part in zip(tasks, parts, strict=True)},
            )
    return means


def _difference(a: _Estimate, b: _Estimate) -> tuple[float, float, int, int]:
    with np.errstate(over="ignore", invalid="ignore"):
        variance = np.var(a.resamples - b.resamples, ddof=1) + a.seed_variance + b.seed_variance
        difference = a.by_seed.mean() - b.by_seed.mean()
    # The variance overflows for very large perplexities.
    stderr = math.sqrt(variance) if math.isfinite(variance) else math.nan
    return float(difference), stderr, sum(a.counts.values()), max(len(a.by_seed), len(b.by_seed))


class Differences:
    """Lookup of paired differences.

    Args:
        frame: frame that `paired_differences` returns.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        columns = (frame[name] for name in ("model", "metric", "a", "b", "difference", "stderr"))
        self._known: dict[tuple[str, str, str, str], tuple[float, float]] = {
            key: numbers
            for model, metric, a, b, difference, stderr in zip(*columns, strict=True)
            for key, numbers in (
                ((model, metric, a, b), (difference, stderr)),
                ((model, metric, b, a), (-difference, stderr)),
            )
        }

    @classmethod
    def read(cls, path: Path | str, digests: Mapping[str, Sequence[str]] | None = None) -> Differences:
        """Read `differences.csv`.

        Args:
            path: path of the file.
            digests: `model/row` -> digests of the evaluation settings of its runs. None skips the check.

        Raises:
            InputError: the file is missing or truncated, has other columns or values out of range, compares two rows
                twice, or was made from runs with other settings than those of ``digests``.
        """
        rows = read_rows(path, DifferenceRow, "differences")
        (pair, count), *_ = Counter((row.model, row.metric, *sorted((row.a, row.b))) for row in rows).most_common(
            1
        ) or [((), 0)]
        if count > 1:
            raise InputError(f"{path}: the difference of {' '.join(pair)} occurs {count} times; expected once")
        if digests is not None:
            found = {(row.model, row.a, row.b): row.config_digest for row in rows}
            stale = [
                f"{model}/{a} against {b} in {path}"
                for (model, a, b), one in found.items()
                if joint_digest(d for row in (a, b) for d in digests.get(f"{model}/{row}", ())) != one
            ]
            refuse_stale(stale, len(found))
        return cls(pd.DataFrame([row.model_dump() for row in rows], columns=COLUMNS).astype(_KINDS))

    def difference(self, model: str, metric: str, a: str, b: str) -> float | None:
        """Return the value of row ``a`` minus that of row ``b``, or None if they were not compared."""
        return self._known.get((model, metric, a, b), (None, None))[0]

    def stderr(self, model: str, metric: str, a: str, b: str) -> float | None:
        """Return the standard error of the difference of two rows in either order, or None if it is unknown."""
        error = self._known.get((model, metric, a, b), (None, math.nan))[1]
        return None if math.isnan(error) else error
