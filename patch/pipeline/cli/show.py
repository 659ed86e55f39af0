"""First table of an experiment, and the paths of its tables and figures.

With `--partial` the tables contain only the runs that are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from patch.errors import InputError, print_result
from patch.files.io import atomic_file
from patch.pipeline.cli.workflow import command_parser, read_plan
from patch.pipeline.reporting.experiment import command, summary_settings
from patch.pipeline.reporting.measured import Measured, read_speeds
from patch.pipeline.reporting.render import to_text, write_table
from patch.pipeline.reporting.summary import summary
from patch.pipeline.results.collect import collect
from patch.pipeline.results.differences import Differences, paired_differences
from patch.pipeline.results.record import Record
from patch.pipeline.results.samples import Samples
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.stale import stale_outputs


def show(plan: Plan, command: str) -> str:
    """Return the first table and the paths of all results.

    Raises:
        InputError: The configuration is invalid, or its results do not exist yet.
    """
    root = Path(plan.layout.root)
    results, differences = root / "results.csv", root / "differences.csv"
    for path in (results, differences):
        if not path.exists():
            raise InputError(f"{path}: no such file; `--partial` makes tables of the runs that are done")
    speedups = _current(map(plan.layout.speedup, plan.timed_models), stale_outputs(plan))
    measured = Measured.read(plan.settings.tabulate(speed=True), results, differences, speedups)
    first = measured.table(plan.tables()[0])
    lines = [f"Table 1. {to_text(first)}", "Tables:"]
    lines += [f"  {root}/tables/{name}.csv .md .tex .html" for name in plan.tables()]
    lines += ["Figures:"]
    lines += [f"  {root}/figures/{m}/{name}.svg .pdf .png" for m in plan.models for name in plan.figures(m)]
    lines += [
        f"Interactive page: {root}/explore.html",
        f"All numbers: {root}/results.csv",
        f"All tables on one page: {root}/README.md",
        f"Report for a browser: {command} --report {root}/report.zip",
    ]
    return "\n".join(lines)


def show_partial(plan: Plan, command: str) -> str:
    """Write tables and a README of the runs that have a record to `results/<experiment>/partial/`.

    Records that were made with settings other than the configuration's are omitted and listed.

    Returns:
        The first table, the folder of the tables, and the omitted files.

    Raises:
        InputError: The configuration is invalid, or no record with its settings exists.
    """
    runs, stale, layout = plan.grid.runs, stale_outputs(plan), plan.layout
    paths = _current(map(layout.record, runs), stale)
    if not paths:
        raise InputError(f"{layout.root}/records has no record with the settings of this configuration yet")
    settings = summary_settings(plan).model_copy(update={"figures": {}, "explore": ""})
    tabulate = settings.tabulate
    speeds = read_speeds(tabulate, _current(map(layout.speedup, plan.timed_models), stale))
    records = Record.read_current(paths, tabulate.digests)
    samples = Samples.read_current(_current(map(layout.samples, runs), stale), tabulate.digests)
    frame = collect(records, tabulate.models, speeds.published)
    measured = Measured(tabulate, frame, Differences(paired_differences(samples)), speeds)
    tables = [measured.table(name) for name in settings.shown]
    folder = Path(layout.root) / "partial"
    for table in tables:
        write_table(table, folder / table.name)
    with atomic_file(folder / "README.md") as temporary:
        results = replace(measured.results(settings, tables, records, command), table_folder=".")
        temporary.write_text(summary(results), encoding="utf-8")
    where = f"{len(paths)} of {len(runs)} runs. Tables: {folder}/, on one page in its README.md"
    named = [f"Left out because they were made with other settings ({len(stale)}):", *stale] if stale else []
    return "\n  ".join(["\n".join([to_text(tables[0]), where, *named[:1]]), *named[1:]])


def _current(paths: Iterable[str], stale: Sequence[str]) -> list[Path]:
    """Return those of ``paths`` that exist and are not stale."""
    return [Path(path) for path in paths if Path(path).exists() and path not in stale]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch show` and return the exit code."""
    parser = command_parser("show", __doc__)
    parser.add_argument("--partial", action="store_true", help="make tables of the runs that are done")
    options = parser.parse_args(arguments)
    run = show_partial if options.partial else show
    return print_result(lambda: run(read_plan(options), command(options.configfile, options.config)))
