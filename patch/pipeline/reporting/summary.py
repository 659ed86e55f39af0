"""Markdown summary of an experiment's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from patch.pipeline.reporting.captions import caption
from patch.pipeline.reporting.comparison import ERRORS, compare_with_paper
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.findings import READING, find_findings
from patch.pipeline.reporting.missing_results import missing_results
from patch.pipeline.reporting.overview import environments
from patch.pipeline.reporting.published_table import PUBLISHED
from patch.pipeline.reporting.render import to_markdown
from patch.pipeline.reporting.table import DASH, Table
from patch.pipeline.reporting.uncertainty import uncertainty
from patch.pipeline.reporting.units import count, duration, size
from patch.pipeline.results.differences import Differences
from patch.pipeline.results.held_out import worse_than_initial
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
EXPLORE = "[Interactive page]({}): the figures of all models, with a choice of models, methods and metrics."
MAIN_TABLES = ("joint", "tile")
LEAD_FIGURE = "pareto"
# Properties of an environment that name the machine.
MACHINE = ("GPU", "processor", "device")
NOT_COMPARED = "The paper has none of these rows."
# A longer table is a link on the page.
INLINE_ROWS = 25


@dataclass(frozen=True)
class Results:
    """Inputs of the summary.

    Attributes:
        experiment: name of the experiment.
        run: description of the configuration: heading -> text.
        tables: tables in the order of the page.
        records: records of the measured runs.
        differences: paired differences between rows.
        models: models of the experiment.
        expected: runs that should have a record.
        published: the paper's numbers.
        command: shell command that reproduces the results.
        figures: title of a model -> name of a figure -> path relative to the page.
        speeds: speed records.
        explore: path of the interactive page, relative to the page; empty if there is none.
        table_folder: folder of the tables' files, relative to the page.
    """

    experiment: str
    run: Mapping[str, str]
    tables: Sequence[Table]
    records: Sequence[Record]
    differences: Differences
    models: Sequence[ModelInfo]
    expected: Sequence[Run]
    published: Published
    command: str
    figures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    speeds: Sequence[SpeedRecord] = ()
    explore: str = ""
    table_folder: str = "tables"

    @property
    def findings(self) -> list[str]:
        """Return the sentences that the page and the report begin with."""
        warnings = worse_than_initial(self.records, self.models)
        return [*find_findings(self.differences, self.models, self.expected, self.speeds), *warnings]


def summary(results: Results) -> str:
    """Return the summary page: findings, main figure and tables, then all details."""
    tables, by_name = results.tables, {table.name: _table(table, results.table_folder) for table in results.tables}
    main = [table for table in tables if table.name in MAIN_TABLES] or tables[:1]
    others = [table for table in tables if table not in main and table.name != PUBLISHED]
    lead = _lead_figure(results.figures, main)
    compared = [line for table in tables for line in compare_with_paper(table, results.models)]
    comparison = [f"{_bullets(compared)}\n\n{COMPARED}" if compared else NOT_COMPARED]
    findings = [_bullets(map(escape_markdown, results.findings)), READING]
    sections = {
        "Findings": "\n\n".join(findings) if results.findings else "",
        "Main results": "\n\n".join([*lead, *(by_name[table.name] for table in main)]),
        "More tables": "\n\n".join(by_name[table.name] for table in others),
        "More figures": _figures(results.figures, lead),
        "Comparison with the paper": "\n\n".join([*comparison, by_name.get(PUBLISHED, "")]).rstrip("\n"),
        "Uncertainty": uncertainty(results.records, results.differences.frame, results.models, results.expected),
        "Configuration": _bullets(escape_markdown(f"{name}: {text}") for name, text in results.run.items()),
        "Missing results": _missing(results),
        "Cost": cost_line(results.records, results.speeds),
        "Environment": environment_line(results.records),
        "Reproduction": f"```sh\n{results.command}\n```",
    }
    parts = [f"## {name}\n\n{text}" for name, text in sections.items() if text]
    explore = [EXPLORE.format(results.explore)] if results.explore else []
    return "\n\n".join([f"# Results of `{results.experiment}`", _measured_on(results), *explore, *parts]) + "\n"


def _measured_on(results: Results) -> str:
    """Return a sentence with the number of measured runs and the machines that measured them."""
    expected = {(run.model, run.id) for run in results.expected}
    done = len(expected & {(record.run.model, record.run.id) for record in results.records})
    seeds = len({record.run.seed for record in results.records if record.run.seeded})
    found = environments(results.records)
    machines = [name for kind in MACHINE for name in found.get(kind, {}) if name != DASH]
    machines += [record.hardware for record in results.speeds]
    where = f" on {escape_markdown(' and '.join(dict.fromkeys(machines)))}" if machines else ""
    runs = f"{done} of {count(len(expected), 'run')}"
    return f"{runs} of {count(len(results.models), 'model')} with {count(max(seeds, 1), 'seed')}, measured{where}."


def _table(table: Table, folder: str) -> str:
    """Return a table with its heading, or a link to a long one in ``folder``."""
    if len(table.rows) <= INLINE_ROWS:
        return f"### {table.name}\n\n{to_markdown(table)}".rstrip("\n")
    link = f"[{table.name}.md]({folder}/{table.name}.md)"
    return f"### {table.name}\n\n{escape_markdown(table.caption)} {len(table.rows)} rows: {link}."


def cost_line(records: Sequence[Record], speeds: Sequence[SpeedRecord] = ()) -> str:
    """Return a sentence with the compute time by stage and the largest peak memory."""
    costs = [(stage, cost.jobs, cost) for (stage, _), cost in measured_costs(records).items()]
    costs += [("speedup", 1, record.cost) for record in speeds]
    seconds: Counter[str] = Counter()
    jobs: Counter[str] = Counter()
    for stage, number, cost in costs:
        seconds[stage] += cost.seconds
        jobs[stage] += number
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


def _lead_figure(figures: Mapping[str, Mapping[str, str]], main: Sequence[Table]) -> list[str]:
    """Return the figure of quality against sparsity of a model of the first main table, empty if there is none."""
    shown = {heading.model.title for table in main[:1] for heading in table.header if heading.model}
    paths = {model: path for model, found in figures.items() for name, path in found.items() if name == LEAD_FIGURE}
    return [_figure(model, LEAD_FIGURE, path) for model, path in paths.items() if model in shown][:1]


def _figures(figures: Mapping[str, Mapping[str, str]], lead: Sequence[str]) -> str:
    """Return all figures but the leading one, below the titles of their models."""
    parts = []
    for model, paths in figures.items():
        shown = [_figure(model, name, path) for name, path in paths.items()]
        others = [figure for figure in shown if figure not in lead]
        parts += [f"### {escape_markdown(model)}", *others] if others else []
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
