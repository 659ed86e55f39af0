"""Print where an experiment's tables and figures are, and its first table: `python -m patch.show [CONFIG]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from patch.config import load_experiment
from patch.errors import InputError
from patch.plan import Plan


def show(config: str) -> str:
    """The text.

    Raises:
        InputError: the configuration is wrong, or its tables are not there yet.
    """
    from patch.grid import Cell
    from patch.paper.tables import build_table, to_text
    from patch.results.collect import read_results
    from patch.results.record import ModelInfo

    plan = Plan(load_experiment(config))
    root = Path(plan.layout.root)
    spec = plan.tabulate_spec()
    models = [ModelInfo(**model) for model in spec.models]
    cells = [Cell(**cell.model_dump(exclude={"id"})) for cell in spec.cells]
    frame = read_results(root / "results.csv")
    first = build_table(plan.tables()[0], frame, models, cells)
    lines = [f"Table 1. {to_text(first)}", "Tables:"]
    lines += [f"  {root}/tables/{name}.csv .md .tex" for name in plan.tables()]
    lines += ["Figures:"]
    lines += [f"  {root}/figures/{m}/{name}.svg .pdf .png" for m in plan.experiment.models for name in plan.figures(m)]
    return "\n".join([*lines, f"All numbers: {root}/results.csv"])


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m patch.show", description=__doc__.partition(":")[0])
    parser.add_argument("config", nargs="?", default="config/demo.yaml", help="configuration file (config/demo.yaml)")
    try:
        print(show(parser.parse_args().config))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
