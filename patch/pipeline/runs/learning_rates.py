"""Warnings about learning rates that do not fit the tokens of a run."""

from __future__ import annotations

from patch.learning.learning_rate import far_rate
from patch.models.shapes import model_shape, prunable_parameters
from patch.pipeline.runs.grid import Grid


def far_rates(grid: Grid) -> list[str]:
    """Return one line for each learning rate that is far off the one that fits, with the model."""
    models = grid.experiment.models
    weights = {name: prunable_parameters(model_shape(name, model)) for name, model in models.items()}
    learned = [run for run in grid.closure if run.definition.stage == "learn" and not run.derived]
    found = {(run.model, far_rate(grid.learning(run), run.method, weights[run.model])): None for run in learned}
    return [f"{model}: {sentence}" for model, sentence in found if sentence]
