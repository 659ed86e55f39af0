"""HTML pages on planned and measured cost, and on the environment of the measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from patch.pipeline.reporting.escape import escape_html
from patch.pipeline.reporting.layout import Layout, starts
from patch.pipeline.reporting.render import html_page, html_table
from patch.pipeline.reporting.table import DASH
from patch.pipeline.reporting.units import count, hours, size
from patch.pipeline.resources.forecast import Forecast
from patch.pipeline.results.order import FINETUNED, QUANTIZATIONS, method_title
from patch.pipeline.results.record import Record, measured_costs

COST_TITLES = [("", "Stage"), ("", "Method")]
COST_TITLES += [("Measured", name) for name in ("Jobs", "Seconds", "Peak memory")]
COST_TITLES += [("Planned", name) for name in ("Jobs", "Seconds", "Memory")]
# Maximum number of values that the environment page lists for one property.
SHOWN = 12
LIMITS = (
    "Planned times and memory are limits of jobs, in whole minutes and with a margin, not expected values. A mask that "
    "only initializes other runs is in the plan but has no measured cost."
)


def cost_page(experiment: str, records: Sequence[Record], forecast: Forecast) -> str:
    """Return a page with the plan by stage, and the measured and planned cost by stage and method.

    Args:
        experiment: name of the experiment.
        records: records of all runs.
        forecast: the plan's numbers.
    """
    stages, on_gpu = forecast.stages, forecast.device == "cuda"
    rows = [[line.stage, f"{line.jobs}", hours(line.device_hours), size(line.memory_mb)] for line in stages]
    jobs, device_hours = sum(line.jobs for line in stages), sum(line.device_hours for line in stages)
    rows.append(["all", f"{jobs}", hours(device_hours), size(max(line.memory_mb for line in stages))])
    titles = [("", name) for name in ("Stage", "Jobs", "GPU-hours" if on_gpu else "Core-hours", "Memory")]
    models, seeds = ({getattr(record.run, name) for record in records} for name in ("model", "seed"))
    totals = ", ".join([count(len(models), "model"), count(len(records), "run"), count(len(seeds), "seed")])
    parts = [
        f"<p>{totals}; {count(jobs, 'job')}.</p>",
        "<h2>Plan</h2>",
        html_table(Layout.plain(titles, rows, 1, [len(rows) - 1]), "plan"),
        "<h2>Measured and planned cost</h2>",
        html_table(_costs(records, forecast), "cost"),
    ]
    memory = f"Memory is the {'GPU' if on_gpu else 'process'} memory of the largest job."
    return html_page(f"{experiment}: plan and cost", parts, [f"Seconds are sums over jobs. {memory}", LIMITS])


def _costs(records: Sequence[Record], forecast: Forecast) -> Layout:
    measured = measured_costs(records)
    planned = {(line.stage, line.of): line for line in forecast.recorded}
    rows = []
    for stage, of in dict.fromkeys([*measured, *planned]):
        cost, line = measured.get((stage, of)), planned.get((stage, of))
        cells = [stage, (QUANTIZATIONS | FINETUNED).get(of) or method_title(of)]
        cells += [f"{cost.jobs}", f"{cost.seconds:,.1f}", size(cost.peak_memory_mb)] if cost else [DASH] * 3
        cells += [f"{line.jobs}", f"{60 * line.minutes:,}", size(line.memory_mb)] if line else [DASH] * 3
        rows.append(cells)
    return Layout.plain(COST_TITLES, rows, 2, starts([row[0] for row in rows])[1:])


def environment_page(experiment: str, records: Sequence[Record]) -> str:
    """Return a page with packages, devices, threads and commits, and the number of runs for each value."""
    found, total = environments(records), count(len(records), "record")
    differing = ", ".join(name for name, values in found.items() if len(values) > 1)
    verdict = (
        f"The {total} come from different environments, which differ in: {differing}."
        if differing
        else f"All {total} come from one environment."
    )
    rows = []
    for name, values in found.items():
        shown = values.most_common(SHOWN)
        rows += [[name, value, f"{number}"] for value, number in shown]
        if len(values) > SHOWN:
            rest = values.total() - sum(number for _, number in shown)
            rows.append([name, f"and {len(values) - SHOWN} more", f"{rest}"])
    titles = [("", name) for name in ("Property", "Value", "Runs")]
    table = html_table(Layout.plain(titles, rows, 2, starts([row[0] for row in rows])[1:]), "environment")
    times = sorted(record.environment.time for record in records)
    notes = [f"Evaluated from {times[0]} to {times[-1]}.", "The environments are those of the evaluations."]
    return html_page(f"{experiment}: environment", [f"<p>{escape_html(verdict)}</p>", table], notes)


def environments(records: Sequence[Record]) -> dict[str, Counter[str]]:
    """Return the number of records with each value of each property, such as the processor, a package or the commit."""
    properties = []
    for record in records:
        environment = record.environment
        values = environment.machine | {"threads": f"{environment.threads}", "Python": environment.python}
        properties.append(values | environment.packages | {"code commit": environment.git_commit or "unknown"})
    names = dict.fromkeys(name for values in properties for name in values)
    return {name: Counter(values.get(name, DASH) for values in properties) for name in names}
