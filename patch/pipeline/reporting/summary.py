"""Markdown summary of an experiment's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from patch.pipeline.reporting.captions import caption
from patch.pipeline.reporting.comparison import ERRORS, compare_with_paper
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.missing_results import missing_results
from patch.pipeline.reporting.overview import environments
from patch.pipeline.reporting.render import to_markdown
from patch.pipeline.reporting.table import Table
from patch.pipeline.reporting.uncertainty import uncertainty
from patch.pipeline.reporting.units import duration, size
from patch.pipeline.results.published import Published
from patch.pipeline.results.record import Record, measured_costs
from patch.pipeline.results.speed import SpeedRecord
from patch.pipeline.runs.run import ModelInfo, Run

COMPARED = (
    f"A number agrees with the paper if it is within {ERRORS} standard errors of the measurement. The published "
    "numbers have no errors, so a larger difference is not always a real one. Accuracy differences are in points, "
    "perplexity differences in percent of the published value. For a model that stands for another model of its "
    "family, only the order of the rows is compared."
)
NOT_COMPARED = "The paper has none of these rows."


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
    compared = [line for table in results.tables for line in compare_with_paper(table, results.models)]
    sections = {
        "Configuration": _bullets(escape_markdown(f"{name}: {text}") for name, text in results.run.items()),
        "Tables": "\n".join(f"### {table.name}\n\n{to_markdown(table)}" for table in results.tables).rstrip("\n"),
        "Figures": _figures(results.figures),
        "Comparison with the paper": f"{_bullets(compared)}\n\n{COMPARED}" if compared else NOT_COMPARED,
        "Uncertainty": uncertainty(results.records, results.differences, results.models, results.expected),
        "Missing results": _missing(results),
        "Cost": cost_line(results.records, results.speeds),
        "Environment": environment_line(results.records),
        "Reproduction": f"```sh\n{results.command}\n```",
    }
    parts = [f"## {name}\n\n{text}" for name, text in sections.items() if text]
    return "\n\n".join([f"# Results of `{results.experiment}`", *parts]) + "\n"


def cost_line(records: Sequence[Record], speeds: Sequence[SpeedRecord] = ()) -> str:
    """Return a sentence with the compute time by stage and the largest peak memory."""
    costs = [(stage, cost.jobs, cost) for (stage, _), cost in measured_costs(records).items()]
    costs += [("speedup", 1, record.cost) for record in speeds]
    seconds: Counter[str] = Counter()
    jobs: Counter[str] = Counter()
    for stage, count, cost in costs:
        seconds[stage] += cost.seconds
        jobs[stage] += count
    stages = ", ".join(f"{stage} {_time(seconds[stage])} in {jobs[stage]} jobs" for stage in seconds)
    peak = max((cost.peak_memory_mb for _, _, cost in costs), default=0.0)
    return f"{_time(sum(seconds.values()))} of compute time ({stages}); peak memory of a job: {size(peak)}."


def _time(seconds: float) -> str:
    return f"{seconds:.{int(seconds < 10)}f} s" if seconds < 600 else duration(seconds / 60)


def environment_line(records: Sequence[Record]) -> str:
    """Return a sentence with device, versions and commit; up to two values are shown where records differ."""
    parts = []
    for name, values in environments(records).items():
        shown = list(values)[:2] + ([f"{len(values) - 2} more"] if len(values) > 2 else [])
        parts.append(f"{name} {escape_markdown(' and '.join(shown))}")
    return f"{', '.join(parts)}." if parts else ""


def _figures(figures: Mapping[str, Mapping[str, str]]) -> str:
    parts = []
    for model, paths in figures.items():
        parts.append(f"### {escape_markdown(model)}")
        parts += [_figure(model, name, path) for name, path in paths.items()]
    return "\n\n".join(parts)


def _figure(model: str, name: str, path: str) -> str:
    return f"![{escape_markdown(model)}: {name}]({path})\n\n{escape_markdown(caption(name))}"


def _missing(results: Results) -> str:
    measured = {(record.run.model, record.run.id) for record in results.records}
    runs = [f"{run.model}/{run.id}" for run in results.expected if (run.model, run.id) not in measured]
    reason = (
        "no record. Its jobs have not run, are running or have failed; `python -m patch status` shows their state. "
        "The tables show a dash."
    )
    lines = [f"{escape_markdown(run)}: {reason}" for run in runs]
    absent = missing_results(results.published, results.expected, results.models, bool(results.speeds))
    complete = "" if runs else f"All {len(results.expected)} runs have a record.\n\n"
    return complete + _bullets([*lines, *map(escape_markdown, absent)])


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
