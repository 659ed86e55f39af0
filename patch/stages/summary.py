"""The results of an experiment as a README."""

from __future__ import annotations

from pathlib import Path

from patch.cell import Cell
from patch.io import atomic_file
from patch.paper.summary import Results, summary
from patch.paper.tables import Arrangement, build_table
from patch.results.collect import read_results
from patch.results.differences import Differences
from patch.results.published import load_published
from patch.results.record import ModelInfo, read_record
from patch.specs import SummarySpec


def run(spec: SummarySpec, *, records: list[Path], results: Path, differences: Path, command: str, out: Path) -> None:
    """Write the README; ``command`` makes the experiment again."""
    tabulate, frame, paired = spec.tabulate, read_results(results), Differences.read(differences)
    models = [ModelInfo(**model) for model in tabulate.models]
    expected = [Cell.of(cell) for cell in tabulate.cells]
    arrangement = Arrangement(tabulate.standard, tabulate.tables)
    text = summary(
        Results(
            experiment=spec.experiment,
            run=spec.run,
            tables=[build_table(name, frame, models, expected, arrangement, paired) for name in spec.shown],
            records=[read_record(path) for path in records],
            differences=paired.frame,
            models=models,
            expected=expected,
            published=load_published(tabulate.published),
            command=command,
            figures=spec.figures,
        )
    )
    with atomic_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
