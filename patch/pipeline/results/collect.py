"""Tidy frame of all records, and its means and standard errors over seeds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from patch.errors import InputError, suggest
from patch.evaluation.metric import Fraction, accuracy_names
from patch.files.schema import Name
from patch.pipeline.results.order import run_order
from patch.pipeline.results.published import Published, published_value
from patch.pipeline.results.record import Record, projection_density
from patch.pipeline.results.result_files import Row, read_rows, refuse_stale
from patch.pipeline.runs.run import ModelInfo, Run

# Prefix of a projection's name in the column `metric`.
DENSITY = "density/"


class ResultRow(Run):
    """Metric of one run; `collect` describes the fields."""

    model_config = Row.model_config | {"strict": False}

    experiment: Name
    metric: Name
    value: float = Field(ge=0)
    stderr: float | None = Field(ge=0)
    published: float | None = Field(ge=0)
    achieved_sparsity: Fraction
    seconds: float | None = Field(ge=0)
    peak_memory_mb: float | None = Field(ge=0)
    held_out_loss: float | None = Field(ge=0)
    initial_held_out_loss: float | None = Field(ge=0)
    config_digest: str

    @model_validator(mode="after")
    def _in_range(self) -> ResultRow:
        """Check that perplexities are at least 1, and that all other metrics are percentages."""
        if self.metric == "perplexity" and self.value < 1:
            raise ValueError(f"`value` of perplexity is {self.value}; expected 1 or more")
        if self.metric != "perplexity" and self.value > 100 + _ROUNDING:
            raise ValueError(f"`value` of {self.metric} is {self.value}; expected 0 to 100")
        return self


RUN_COLUMNS = list(Run.model_fields)
COLUMNS = list(ResultRow.model_fields)
# Columns that identify the row of a table and its metric; runs that differ in the seed alone share them.
ROW = [name for name in RUN_COLUMNS if name != "seed"] + ["metric"]
# Rounding may put a percentage slightly above 100.
_ROUNDING = 1e-9
_LOSSES = ("held_out_loss", "initial_held_out_loss")
_FLOATS = ("sparsity", "value", "stderr", "published", "achieved_sparsity", "seconds", "peak_memory_mb", *_LOSSES)
_TEXTS = ("experiment", "model", "method", "pattern", "quantization", "finetune", "variant", "metric", "config_digest")
_KINDS = {"tile": "Int64", "seed": "int64"} | dict.fromkeys(_FLOATS, "float64") | dict.fromkeys(_TEXTS, "str")


def collect(records: list[Record], models: list[ModelInfo], published: Published) -> pd.DataFrame:
    """Return a frame with one row for each metric of each record, in the paper's order.

    Args:
        records: one for each run, in any order.
        models: models of the configuration, in its order.
        published: the paper's numbers.

    Returns:
        A frame with the columns ``COLUMNS``. ``metric`` is `accuracy` (mean over tasks), `perplexity`, a task (its
        `acc`), another metric of a task such as `<task>/acc_norm`, or `density/<projection>` (mean kept fraction over
        layers) for a hybrid run that is not derived. All metrics but perplexity are percentages. ``sparsity`` (target)
        and ``achieved_sparsity`` are fractions. ``seconds`` is the sum over the stages of the run and
        ``peak_memory_mb`` is their maximum. ``held_out_loss`` is that of a learned mask, in nats, and
        ``initial_held_out_loss`` that of the mask it started from. ``config_digest`` is that of the record. Unknown
        values are null.

    Raises:
        InputError: a record's model is not in ``models``, a run has two records, or the published counterpart of a
            model is not in ``published``.
    """
    by_name = {model.name: model for model in models}
    _check(records, by_name, published)
    positions = {name: position for position, name in enumerate(by_name)}

    def order(record: Record) -> tuple[Any, ...]:
        run = record.run
        return positions[run.model], run_order(run), run.seed

    sizes = Counter((c.model, c.method, c.sparsity, c.tile) for c in (record.run for record in records) if c.tile)
    compared = Counter(size[:3] for size in sizes)
    rows = []
    for record in sorted(records, key=order):
        run = record.run
        sized = compared[run.model, run.method, run.sparsity] > 1
        rows += _rows(record, by_name[run.model], published, sized)
    return pd.DataFrame(rows, columns=COLUMNS).astype(_KINDS)


def mean_chance(records: list[Record], model: str) -> float | None:
    """Return the mean chance accuracy over a model's tasks in percent, or None if a task has no chance level."""
    found = next((record for record in records if record.run.model == model), None)
    if found is None:
        return None
    tasks = [found.metrics[name] for name in accuracy_names(found.metrics)]
    chances = [task.chance for task in tasks if task.chance is not None]
    return 100 * math.fsum(chances) / len(chances) if chances and len(chances) == len(tasks) else None


def _check(records: list[Record], models: dict[str, ModelInfo], published: Published) -> None:
    for model in models.values():
        if model.published is not None and model.published not in published.models:
            hint = suggest(model.published, list(published.models))
            raise InputError(f"`models.{model.name}.published` is {model.published!r}; {hint}")
    for record in records:
        if record.run.model not in models:
            raise InputError(f"record `{record.run.id}` is of model `{record.run.model}`; known: {', '.join(models)}")
    (run, count), *_ = Counter((r.run.model, r.run.id) for r in records).most_common(1) or [(None, 0)]
    if count > 1:
        raise InputError(f"{count} records of run `{run[1]}` of model `{run[0]}`; expected one")


def _rows(record: Record, model: ModelInfo, published: Published, sized: bool) -> list[dict[str, Any]]:
    run = record.run
    costs = record.stages.values()
    shared = {
        "experiment": record.experiment,
        **run.model_dump(),
        "achieved_sparsity": record.achieved_sparsity,
        "seconds": math.fsum(cost.seconds for cost in costs) if costs else None,
        "peak_memory_mb": max((cost.peak_memory_mb for cost in costs), default=None),
        "held_out_loss": record.held_out.result if record.held_out else None,
        "initial_held_out_loss": record.held_out.initial if record.held_out else None,
        "config_digest": record.config_digest,
    }
    leading = [name for name in ("accuracy", "perplexity") if name in record.metrics]
    rows = []
    for name in [*leading, *(task for task in record.metrics if task not in leading)]:
        metric = record.metrics[name]
        scale = 1 if name == "perplexity" else 100
        rows.append(
            shared
            | {
                "metric": name,
                "value": scale * metric.value,
                "stderr": None if metric.stderr is None else scale * metric.stderr,
                "published": _published(record, model, published, name, sized),
            }
        )
    if run.pattern == "hybrid" and not run.derived:
        blank = {"stderr": None, "published": None}
        densities = projection_density(record.density)
        rows += [shared | blank | {"metric": f"{DENSITY}{name}", "value": 100 * v} for name, v in densities.items()]
    return rows


def run_of(line: Any, seed: int) -> Run:
    """Return the run of a line of the tidy frame or of its summary, as `itertuples` yields it."""
    names = ("model", "method", "pattern", "sparsity", "tile", "quantization", "finetune", "variant")
    values = {name: getattr(line, name) for name in names}
    known = {name: value for name, value in values.items() if not pd.isna(value)}
    return Run(**known | ({"tile": int(line.tile)} if "tile" in known else {}), seed=seed)


def row_names(frame: pd.DataFrame) -> pd.Series:
    """Return `model/row` for each line of the tidy frame; `row` is `Run.row`."""
    values = frame[RUN_COLUMNS].astype(object).where(frame[RUN_COLUMNS].notna(), None)
    runs = (Run(**line) for line in values.to_dict("records"))
    return pd.Series([f"{run.model}/{run.row}" for run in runs], index=frame.index, dtype="str")


def _published(record: Record, model: ModelInfo, published: Published, metric: str, sized: bool) -> float | None:
    # The paper's numbers are zero-shot, and it fine-tunes nothing.
    names = accuracy_names(record.metrics) if metric == "accuracy" else [metric]
    if model.published is None or record.run.finetune or any(record.metrics[name].fewshot for name in names):
        return None
    run = record.run

    def value(tile: int | None) -> float | None:
        arguments = (run.method, run.pattern, run.sparsity, metric, tile, run.quantization, run.variant)
        return published_value(published, model.published, *arguments)

    # A non-comparable model has other layer sizes, so its default tile matches the paper's default tile. In a
    # comparison of tile sizes, an equal size in the paper takes precedence.
    standing = not model.comparable and run.tile == model.tile
    own = value(run.tile) if sized or not standing else None
    return value(None) if own is None and standing else own


def read_results(path: Path | str, digests: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read `results.csv` into the frame that `collect` returned.

    Args:
        path: path of the file.
        digests: `model/run` -> digest of the evaluation settings of each run. None skips the check.

    Raises:
        InputError: the file is missing or truncated, has other columns or values out of range, has a metric of a run
            twice, lacks one that other runs of the model have, or has runs whose settings are not those of ``digests``.
    """
    rows = read_rows(path, ResultRow, "results")
    _check_complete(path, rows)
    if digests is not None:
        found = {f"{row.model}/{row.id}": row.config_digest for row in rows}
        refuse_stale([f"{name} in {path}" for name, one in found.items() if digests.get(name) != one], len(found))
    return pd.DataFrame([row.model_dump() for row in rows], columns=COLUMNS).astype(_KINDS)


def _check_complete(path: Path | str, rows: list[ResultRow]) -> None:
    """Check that each run has each metric of its model once; only hybrid runs that are not derived need densities."""
    runs: dict[Run, set[str]] = defaultdict(set)
    for row in rows:
        names = runs[Run(**{name: getattr(row, name) for name in RUN_COLUMNS})]
        if row.metric in names:
            raise InputError(f"{path}: `{row.metric}` of {row.model}/{row.id} occurs twice; expected once")
        names.add(row.metric)
    metrics: dict[str, set[str]] = defaultdict(set)
    for run, names in runs.items():
        metrics[run.model] |= names
    for run, names in runs.items():
        has_densities = run.pattern == "hybrid" and not run.derived
        lacking = {name for name in metrics[run.model] - names if has_densities or not name.startswith(DENSITY)}
        if lacking:
            raise InputError(f"{path}: `{min(lacking)}` of {run.model}/{run.id} is missing")


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Aggregate the seeds of each table row and metric, keeping the order of the frame.

    Args:
        frame: tidy frame that `collect` returns.

    Returns:
        A frame with the columns ``ROW`` and one for each aggregate. ``value`` is the mean over seeds, ``spread`` is the
        sample standard deviation over seeds (null for one seed), ``stderr`` is the error to print (see
        `_combined_stderr`), and ``seeds`` is the number of seeds. ``achieved_sparsity``, ``seconds`` and
        the held-out losses are means. ``peak_memory_mb`` is the maximum.
    """
    groups = frame.assign(squared=frame["stderr"] ** 2).groupby(ROW, sort=False, dropna=False)
    summary = groups.agg(
        value=("value", "mean"),
        spread=("value", "std"),
        seeds=("value", "size"),
        stderr=("squared", "mean"),
        published=("published", "first"),
        achieved_sparsity=("achieved_sparsity", "mean"),
        seconds=("seconds", "mean"),
        peak_memory_mb=("peak_memory_mb", "max"),
        **{name: (name, "mean") for name in _LOSSES},
    )
    summary["stderr"] = _combined_stderr(summary["stderr"], summary["spread"], summary["seeds"])
    return summary.reset_index()


def _combined_stderr(squared: pd.Series, spread: pd.Series, seeds: pd.Series) -> pd.Series:
    """Return the standard errors of means over seeds, in the unit of the values.

    All seeds are evaluated on the same questions, so averaging over seeds reduces the error due to the choice of
    seeds but not the error due to the finite test set: ``sqrt(mean(stderr^2) + std(values)^2 / seeds)``. The result
    for one seed is its own standard error. Missing standard errors are left out of the mean. The result is NaN if all
    are missing and there is only one seed.

    Args:
        squared: means of the known squared standard errors; NaN if all are missing.
        spread: sample standard deviations of the values.
        seeds: numbers of seeds.
    """
    several = squared.fillna(0) + spread**2 / seeds
    return np.sqrt(squared.where(seeds == 1, several))
