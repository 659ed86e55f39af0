"""Figure of a model's accuracy and perplexity against sparsity."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.figures import pareto, save
from patch.pipeline.results.collect import mean_chance, read_results, row_names
from patch.pipeline.results.current import read_records
from patch.pipeline.results.record import ModelInfo
from patch.pipeline.runs.specs import FigureSpec


def run(spec: FigureSpec, *, results: Path, record: Path, out: Path) -> None:
    """Draw the Pareto plots of the rows in ``spec``; any ``record`` of the model has the tasks' chance level."""
    model = ModelInfo(**spec.model)
    chance = mean_chance(read_records([record], spec.digests), model.name)
    frame = read_results(results, spec.digests)
    save(pareto(frame[row_names(frame).isin(spec.rows)], model, chance), out)
