"""First table of an experiment, and the paths of its tables and figures.

With `--partial` the tables contain only the runs that are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from patch.errors import InputError, print_result
from patch.files.io import atomic_file
from patch.pipeline.cli.workflow import command_parser, read_plan
from patch.pipeline.reporting.experiment import command, describe_experiment
from patch.pipeline.reporting.render import to_text, write_table
from patch.pipeline.reporting.summary import Results, summary
from patch.pipeline.reporting.table import Table
from patch.pipeline.reporting.tables import Arrangement, build_table
from patch.pipeline.results.collect import collect, read_results
from patch.pipeline.results.current import read_all_samples, read_records, read_speeds
from patch.pipeline.results.differences import Differences, paired_differences
from patch.pipeline.results.published import load_published
from patch.pipeline.results.speed import Speeds
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import ModelInfo
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
    settings = plan.tabulate_settings()
    frame, paired = read_results(results, settings.digests), Differences.read(differences, settings.row_digests)
    first = _table(plan, plan.tables()[0], frame, paired, _speeds(plan, stale_outputs(plan)))
    lines = [f"Table 1. {to_text(first)}", "Tables:"]
    lines += [f"  {root}/tables/{name}.csv .md .tex .html" for name in plan.tables()]
    lines += ["Figures:"]
    lines += [f"  {root}/figures/{m}/{name}.svg .pdf .png" for m in plan.models for name in plan.figures(m)]
    lines += [
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
    runs, digests, stale = plan.grid.runs, plan.digests(plan.grid.runs), stale_outputs(plan)
    paths = _current(map(plan.layout.record, runs), stale)
    if not paths:
        raise InputError(f"{plan.layout.root}/records has no record with the settings of this configuration yet")
    records, published = read_records(paths, digests), load_published(plan.experiment.published)
    frame = collect(records, _models(plan), published)
    samples = read_all_samples(_current(map(plan.layout.samples, runs), stale), digests)
    differences = Differences(paired_differences(samples))
    speeds = _speeds(plan, stale)
    tables = [_table(plan, name, frame, differences, speeds) for name in plan.tables()]
    folder = Path(plan.layout.root) / "partial"
    for table in tables:
        write_table(table, folder / table.name)
    results = Results(
        experiment=plan.experiment.experiment,
        run=describe_experiment(plan),
        tables=tables,
        records=records,
        differences=differences.frame,
        models=_models(plan),
        expected=runs,
        published=published,
        command=command,
        speeds=speeds.records,
    )
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(summary(results), encoding="utf-8")
    where = f"{len(paths)} of {len(runs)} runs. Tables: {folder}/, on one page in its README.md"
    named = [f"Left out because they were made with other settings ({len(stale)}):", *stale] if stale else []
    return "\n  ".join(["\n".join([to_text(tables[0]), where, *named[:1]]), *named[1:]])


def _models(plan: Plan) -> list[ModelInfo]:
    return [plan.model_info(name) for name in plan.models]


def _current(paths: Iterable[str], stale: Sequence[str]) -> list[Path]:
    """Return those of ``paths`` that exist and are not stale."""
    return [Path(path) for path in paths if Path(path).exists() and path not in stale]


def _speeds(plan: Plan, stale: Sequence[str]) -> Speeds:
    """Return the existing speed measurements that have the settings of the configuration."""
    paths = _current(map(plan.layout.speedup, plan.timed_models), stale)
    records = read_speeds(paths, plan.digests([], plan.timed_models))
    return Speeds(records, load_published(plan.experiment.published))


def _table(plan: Plan, name: str, frame: pd.DataFrame, differences: Differences, speeds: Speeds) -> Table:
    settings = plan.tabulate_settings()
    arrangement = Arrangement(settings.standard, settings.tables)
    return build_table(name, frame, _models(plan), plan.grid.runs, arrangement, differences, speeds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch show` and return the exit code."""
    parser = command_parser("show", __doc__)
    parser.add_argument("--partial", action="store_true", help="make tables of the runs that are done")
    options = parser.parse_args(arguments)
    run = show_partial if options.partial else show
    return print_result(lambda: run(read_plan(options), command(options.configfile, options.config)))
