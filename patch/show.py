"""Print where an experiment's tables and figures are, and its first table: `python -m patch.show [CONFIG]`.

With `--partial`, also while cells are missing: the tables are made from the records that exist.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from patch.cell import Cell
from patch.config import load_experiment
from patch.errors import InputError, print_result
from patch.paper.tables import build_table, to_text, write_table
from patch.plan import Plan
from patch.results.collect import collect, read_results
from patch.results.published import load_published
from patch.results.record import ModelInfo, read_record


def show(config: str) -> str:
    """The first table and the paths of all results.

    Raises:
        InputError: the configuration is wrong, or its results are not there yet.
    """
    plan = Plan(load_experiment(config))
    root = Path(plan.layout.root)
    models, cells = _models_and_cells(plan)
    if not (root / "results.csv").exists():
        raise InputError(f"{root}/results.csv is not there yet; `--partial` makes tables of the cells that are")
    first = build_table(plan.tables()[0], read_results(root / "results.csv"), models, cells)
    lines = [f"Table 1. {to_text(first)}", "Tables:"]
    lines += [f"  {root}/tables/{name}.csv .md .tex" for name in plan.tables()]
    lines += ["Figures:"]
    lines += [f"  {root}/figures/{m}/{name}.svg .pdf .png" for m in plan.models for name in plan.figures(m)]
    return "\n".join([*lines, f"All numbers: {root}/results.csv"])


def show_partial(config: str) -> str:
    """Write tables of the cells that have a record to `results/<experiment>/partial/`; returns the first of them.

    Raises:
        InputError: the configuration is wrong, or there is no record.
    """
    plan = Plan(load_experiment(config))
    models, cells = _models_and_cells(plan)
    paths = [path for cell in cells if (path := Path(plan.layout.record(cell))).exists()]
    if not paths:
        raise InputError(f"{plan.layout.root}/records has no record of this experiment yet")
    frame = collect([read_record(path) for path in paths], models, load_published(plan.experiment.published))
    tables = [build_table(name, frame, models, cells) for name in plan.tables()]
    folder = Path(plan.layout.root) / "partial"
    for table in tables:
        write_table(table, folder / table.name)
    return f"{to_text(tables[0])}\n{len(paths)} of {len(cells)} cells. Tables: {folder}/"


def _models_and_cells(plan: Plan) -> tuple[list[ModelInfo], list[Cell]]:
    return [ModelInfo(**model) for model in plan.tabulate_spec().models], plan.grid.cells


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m patch.show", description=__doc__)
    parser.add_argument("config", nargs="?", default="config/demo.yaml", help="configuration file (config/demo.yaml)")
    parser.add_argument("--partial", action="store_true", help="make tables of the cells that are there")
    options = parser.parse_args()
    return print_result(lambda: show_partial(options.config) if options.partial else show(options.config))


if __name__ == "__main__":
    sys.exit(main())
