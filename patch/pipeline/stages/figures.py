"""Figures of a model: Pareto plots, density, training curves, and measured speed beside quality."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.curves import curves
from patch.pipeline.reporting.density import density
from patch.pipeline.reporting.figure_style import save
from patch.pipeline.reporting.pareto import pareto
from patch.pipeline.reporting.speedup import speedup as draw_speedup
from patch.pipeline.results.collect import mean_chance, read_results, row_names
from patch.pipeline.results.published import load_published
from patch.pipeline.results.record import Record
from patch.pipeline.results.speed import SpeedRecord
from patch.pipeline.runs.stage_settings import FigureSettings


def run_pareto(settings: FigureSettings, *, results: Path, record: Path, published: Path, out: Path) -> None:
    """Draw accuracy and perplexity against sparsity for the rows in ``settings``.

    Any ``record`` of the model has the tasks' chance level. ``published`` has the title of the paper's model.
    """
    model = settings.model
    chance = mean_chance(Record.read_current([record], settings.digests), model.name)
    frame = read_results(results, settings.digests)
    title = load_published(published).models[model.published].title if model.published else None
    save(pareto(frame[row_names(frame).isin(settings.rows)], model, chance, title), out)


def run_density(settings: FigureSettings, *, records: list[Path], out: Path) -> None:
    """Draw the density by layer and projection; ``records`` are those of the model's hybrid runs."""
    save(density(Record.read_current(records, settings.digests), settings.model), out)


def run_curves(settings: FigureSettings, *, curves_of: list[Path], out: Path) -> None:
    """Draw the learning of masks; ``curves_of`` are the curve files in the order of ``settings.runs``."""
    save(curves(dict(zip(settings.runs, curves_of, strict=True)), settings.model), out)


def run_speedup_figure(settings: FigureSettings, *, results: Path, speedup: Path, out: Path) -> None:
    """Draw speed, accuracy and perplexity of the rows in ``settings`` that have a measured speed."""
    frame = read_results(results, settings.digests)
    (speed,) = SpeedRecord.read_current([speedup], settings.digests)
    save(draw_speedup(frame[row_names(frame).isin(settings.rows)], speed, settings.model), out)
