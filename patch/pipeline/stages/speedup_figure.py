"""Figure of a model's accuracy and perplexity against its measured speed."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.figures import save
from patch.pipeline.reporting.figures import speedup as draw
from patch.pipeline.results.collect import read_results, row_names
from patch.pipeline.results.current import read_speeds
from patch.pipeline.results.record import ModelInfo
from patch.pipeline.runs.specs import FigureSpec


def run(spec: FigureSpec, *, results: Path, speedup: Path, out: Path) -> None:
    """Draw the rows in ``spec`` that have a measured speed."""
    frame, model = read_results(results, spec.digests), ModelInfo(**spec.model)
    (speed,) = read_speeds([speedup], spec.digests)
    save(draw(frame[row_names(frame).isin(spec.rows)], speed, model), out)
