"""Markdown summary of an experiment's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from patch.pipeline.reporting.agreement import ERRORS, beside_paper
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.overview import environments
from patch.pipeline.reporting.render import to_markdown
from patch.pipeline.reporting.sure import how_sure
from patch.pipeline.reporting.table import Table
from patch.pipeline.reporting.units import duration, size
from patch.pipeline.reporting.unlisted import not_here
from patch.pipeline.results.costs import measured_costs
from patch.pipeline.results.published import Published
from patch.pipeline.results.record import ModelInfo, Record
from patch.pipeline.results.speed import SpeedRecord
from patch.pipeline.runs.run import Run

COMPARED = (
    f"Within: the standard error of the measurement times {ERRORS}; the published numbers come without errors of "
    "their own, so a difference beyond it need not be one. Accuracy differs in points, perplexity as a share of the "
    "published one. Of a model that stands for another one of its family the order of the rows is compared alone."
)


@dataclass(frozen=True)
class Results:
    """Inputs of the summary.

    Attributes:
        experiment: name of the experiment.
        run: description of the configuration: heading -> text.
        tables: tables in the order of the page.
        records: records of the measured runs.
        differences: frame that `patch.pipeline.results.differences.paired_differences` returns.
        models: models of the experiment.
        expected: runs that should have a record.
        published: the paper's numbers.
        command: shell command that reproduces the results.
        figures: title of a model -> name of a figure -> path relative to the page.
        speeds: speed records.
    """

    experiment: str
    run: Mapping[str, str]
    tables: Sequence[Table]
    records: Sequence[Record]
    differences: pd.DataFrame
    models: Sequence[ModelInfo]
    expected: Sequence[Run]
    published: Published
    command: str
    figures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    speeds: Sequence[SpeedRecord] = ()


def summary(results: Results) -> str:
    """Return the summary page: configuration, tables, figures, comparison, uncertainty, missing results and cost."""
    compared = [line for table in results.tables for line in beside_paper(table, results.models)]
    sections = {
        "What was run": _bullets(escape_markdown(f"{name}: {text}") for name, text in results.run.items()),
        "Tables": "\n".join(f"### {table.name}\n\n{to_markdown(table)}" for table in results.tables).rstrip("\n"),
        "Figures": _figures(results.figures),
        "Beside the paper": f"{_bullets(compared)}\n\n{COMPARED}" if compared else "The paper has none of these rows.",
        "How sure": how_sure(results.records, results.differences, results.models, results.expected),
        "Missing": _missing(results),
        "What it cost": cost_line(results.records, results.speeds),
        "Environment": environment_line(results.records),
        "How to make this again": f"```sh\n{results.command}\n```",
    }
    parts = [f"## {name}\n\n{text}" for name, text in sections.items() if text]
    return "\n\n".join([f"# Results of `{results.experiment}`", *parts]) + "\n"


def cost_line(records: Sequence[Record], speeds: Sequence[SpeedRecord] = ()) -> str:
    """Return a sentence with the compute time by stage and the largest peak memory."""
    stages: dict[str, float] = Counter()
    jobs: dict[str, int] = Counter()
    costs = measured_costs(records)
    for (stage, _), cost in costs.items():
        stages[stage] += cost.seconds
        jobs[stage] += cost.jobs
    if speeds:
        stages["speedup"], jobs["speedup"] = sum(record.cost.seconds for record in speeds), len(speeds)
    parts = [f"{stage} {_time(seconds)} in {jobs[stage]} jobs" for stage, seconds in stages.items()]
    measured = [*costs.values(), *(record.cost for record in speeds)]
    peak = max((cost.peak_memory_mb for cost in measured), default=0.0)
    return f"{_time(sum(stages.values()))} of computing ({', '.join(parts)}); at most {size(peak)} of memory in a job."


def _time(seconds: float) -> str:
    return f"{seconds:.{int(seconds < 10)}f} s" if seconds < 600 else duration(seconds / 60)


def environment_line(records: Sequence[Record]) -> str:
    """Return a sentence with device, versions and commit; up to two values are shown where records differ."""
    parts = []
    for name, values in environments(records).items():
        different = list(dict.fromkeys(values))
        shown = " and ".join(different[:2]) + (f" and {len(different) - 2} more" if len(different) > 2 else "")
        parts.append(f"{name} {escape_markdown(shown)}")
    return f"{', '.join(parts)}." if parts else ""


def _figures(figures: Mapping[str, Mapping[str, str]]) -> str:
    parts = []
    for model, paths in figures.items():
        images = [f"![{escape_markdown(model)}: {name}]({path})" for name, path in paths.items()]
        parts.append("\n\n".join([f"### {escape_markdown(model)}", *images]))
    return "\n\n".join(parts)


def _missing(results: Results) -> str:
    measured = {(record.run.model, record.run.id) for record in results.records}
    runs = [run for run in results.expected if (run.model, run.id) not in measured]
    lines = [
        f"{escape_markdown(f'{run.model}/{run.id}')}: no record; its jobs have not run, run still or have failed "
        "(`python -m patch status` says which). It is a dash in the tables."
        for run in runs
    ]
    absent = not_here(results.published, results.expected, results.models, bool(results.speeds))
    lines += map(escape_markdown, absent)
    whole = "" if runs else f"All {len(results.expected)} runs have a record.\n\n"
    return whole + _bullets(lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
