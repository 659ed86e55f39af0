"""One table of the paper as .csv, .md and .tex."""

from __future__ import annotations

from pathlib import Path

from patch.cell import Cell
from patch.paper.tables import build_table, write_table
from patch.results.collect import read_results
from patch.results.record import ModelInfo
from patch.specs import TabulateSpec


def run(spec: TabulateSpec, *, results: Path, out: Path) -> None:
    """Write the table that ``out`` is named after; ``out`` is the path without an ending."""
    models = [ModelInfo(**model) for model in spec.models]
    expected = [Cell(**cell.model_dump(exclude={"id"})) for cell in spec.cells]
    write_table(build_table(out.name, read_results(results), models, expected), out)
