"""Figure of a model's accuracy and perplexity against sparsity."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.figure_style import save
from patch.pipeline.reporting.pareto import pareto
from patch.pipeline.results.collect import mean_chance, read_results, row_names
from patch.pipeline.results.current import read_records
from patch.pipeline.runs.stage_settings import FigureSettings


def run(settings: FigureSettings, *, results: Path, record: Path, out: Path) -> None:
    """Draw the Pareto plots of the rows in ``settings``; any ``record`` of the model has the tasks' chance level."""
    model = settings.model
    chance = mean_chance(read_records([record], settings.digests), model.name)
    frame = read_results(results, settings.digests)
    save(pareto(frame[row_names(frame).isin(settings.rows)], model, chance), out)
