"""Figure of a model's accuracy and perplexity against its measured speed."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.figure_style import save
from patch.pipeline.reporting.speedup import speedup as draw
from patch.pipeline.results.collect import read_results, row_names
from patch.pipeline.results.current import read_speeds
from patch.pipeline.runs.stage_settings import FigureSettings


def run(settings: FigureSettings, *, results: Path, speedup: Path, out: Path) -> None:
    """Draw the rows in ``settings`` that have a measured speed."""
    frame, model = read_results(results, settings.digests), settings.model
    (speed,) = read_speeds([speedup], settings.digests)
    save(draw(frame[row_names(frame).isin(settings.rows)], speed, model), out)
