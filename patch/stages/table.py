"""One table of the paper, or of the grid's own, as .csv, .md, .tex and .html."""

from __future__ import annotations

from pathlib import Path

from patch.cell import Cell
from patch.paper.tables import Arrangement, build_table, write_table
from patch.results.collect import read_results
from patch.results.differences import Differences
from patch.results.record import ModelInfo
from patch.specs import TabulateSpec


def run(spec: TabulateSpec, *, results: Path, differences: Path, out: Path) -> None:
    """Write the table that ``out`` is named after; ``out`` is the path without an ending."""
    models = [ModelInfo(**model) for model in spec.models]
    expected = [Cell.of(cell) for cell in spec.cells]
    arrangement, errors = Arrangement(spec.standard, spec.tables), Differences.read(differences)
    write_table(build_table(out.name, read_results(results), models, expected, arrangement, errors), out)
