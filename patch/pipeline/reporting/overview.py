"""HTML pages on planned and measured cost, and on the environment of the measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from patch.pipeline.reporting.columns import Column
from patch.pipeline.reporting.html import html_page, html_table
from patch.pipeline.reporting.table import DASH
from patch.pipeline.reporting.units import hours, size
from patch.pipeline.resources.forecast import Forecast, Line
from patch.pipeline.results.costs import Cost, measured_costs
from patch.pipeline.results.order import QUANTIZATIONS, method_title
from patch.pipeline.results.record import Record

COST_HEADS = ["Measured|Jobs", "Measured|Seconds", "Measured|Peak memory", "Plan|Jobs", "Plan|Seconds", "Plan|Memory"]
# Maximum number of values that the environment page lists for one property.
SHOWN = 12
LIMITS = (
    "What the plan says are limits that a job is not to pass, whole minutes with a margin on each, not what to "
    "expect. A mask that only another run starts from is in the plan; no record tells what it took."
)


def cost_page(experiment: str, records: Sequence[Record], forecast: Forecast) -> str:
    """Return a page with the plan by stage, and the measured and planned cost by stage and method.

    Args:
        experiment: name of the experiment.
        records: records of all runs.
        forecast: the plan's numbers.
    """
    unit = "GPU" if forecast.device == "cuda" else "Core"
    total = [sum(line.jobs for line in forecast.stages), sum(line.device_hours for line in forecast.stages)]
    lines = [[line.stage, f"{line.jobs}", hours(line.device_hours), size(line.memory_mb)] for line in forecast.stages]
    lines.append(["all", f"{total[0]}", hours(total[1]), size(max(line.memory_mb for line in forecast.stages))])
    plan = html_table(_columns(["Stage"], ["Jobs", f"{unit}-hours", "Memory"], lines), [len(lines) - 1])
    seeds = len({record.run.seed for record in records})
    what = (
        f"<p>{_counted(len({record.run.model for record in records}), 'model')}, {_counted(len(records), 'run')}, "
        f"{_counted(seeds, 'seed')}; {_counted(total[0], 'job')}.</p>"
    )
    parts = [what, "<h2>The plan</h2>", plan, "<h2>What it cost, beside the plan</h2>", _costs(records, forecast)]
    memory = "a GPU's" if forecast.device == "cuda" else "a process'"
    notes = [f"Seconds are summed over the jobs of a line; memory is {memory}, of the largest job.", LIMITS]
    return html_page(f"{experiment}: plan and cost", parts, notes)


def _costs(records: Sequence[Record], forecast: Forecast) -> str:
    measured = measured_costs(records)
    planned = {(line.stage, line.of): line for line in forecast.recorded}
    keys = [*measured, *(key for key in planned if key not in measured)]
    lines = [
        [stage, of_title(of), *_measured(measured, stage, of), *_planned(planned, stage, of)] for stage, of in keys
    ]
    apart = [index for index in range(1, len(keys)) if keys[index][0] != keys[index - 1][0]]
    return html_table(_columns(["Stage", "Method"], COST_HEADS, lines), apart)


def _measured(costs: dict[tuple[str, str], Cost], stage: str, of: str) -> list[str]:
    cost = costs.get((stage, of))
    return [f"{cost.jobs}", f"{cost.seconds:,.1f}", size(cost.peak_memory_mb)] if cost else [DASH] * 3


def _planned(lines: dict[tuple[str, str], Line], stage: str, of: str) -> list[str]:
    line = lines.get((stage, of))
    return [f"{line.jobs}", f"{60 * line.minutes:,}", size(line.memory_mb)] if line else [DASH] * 3


def of_title(of: str) -> str:
    """Return the printed name of a method or a quantization."""
    return QUANTIZATIONS.get(of) or method_title(of)


def environment_page(experiment: str, records: Sequence[Record]) -> str:
    """Return a page with packages, devices, threads and commits, and the number of runs for each value."""
    found = {name: Counter(values) for name, values in environments(records).items()}
    differing = [name for name, values in found.items() if len(values) > 1]
    verdict = (
        f"<p>The {_counted(len(records), 'record')} do not all come from one environment: "
        f"{', '.join(differing)} differ.</p>"
        if differing
        else f"<p>All {_counted(len(records), 'record')} come from one environment.</p>"
    )
    lines, apart = [], []
    for name, values in found.items():
        apart.append(len(lines))
        for value, count in values.most_common(SHOWN):
            lines.append([name, value, f"{count}"])
        if len(values) > SHOWN:
            lines.append([name, f"and {len(values) - SHOWN} more", f"{sum(values.values()) - _shown(values)}"])
    table = html_table(_columns(["What", "Value"], ["Runs"], lines), [index for index in apart if index])
    times = sorted(record.environment.time for record in records)
    notes = [f"Evaluated from {times[0]} to {times[-1]}.", "Environments are those of the evaluations."]
    return html_page(f"{experiment}: environment", [verdict, table], notes)


def environments(records: Iterable[Record]) -> dict[str, list[str]]:
    """Return the values of each property in all records: device, threads, Python, each package, and the commit."""
    all_values = []
    for record in records:
        environment = record.environment
        values = {"device": environment.device, "threads": f"{environment.threads}", "Python": environment.python}
        all_values.append(values | environment.packages | {"commit of the code": environment.git_commit or "unknown"})
    names = dict.fromkeys(name for values in all_values for name in values)
    return {name: [values.get(name, DASH) for values in all_values] for name in names}


def _shown(values: Counter[str]) -> int:
    return sum(count for _, count in values.most_common(SHOWN))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _columns(labels: list[str], heads: list[str], lines: list[list[str]]) -> list[Column]:
    """Return text columns for ``labels`` and numeric columns for ``heads``; `group|name` puts a head in a group."""
    columns = []
    for index, head in enumerate([*labels, *heads]):
        group, _, name = head.rpartition("|")
        columns.append(Column(group, name, [(line[index], False) for line in lines], numeric=index >= len(labels)))
    return columns
