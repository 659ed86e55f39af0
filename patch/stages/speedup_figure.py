"""Accuracy and perplexity of a model against its measured speed."""

from __future__ import annotations

from pathlib import Path

from patch.paper.figures import save
from patch.paper.figures import speedup as draw
from patch.results.collect import read_results, row_names
from patch.results.record import ModelInfo
from patch.results.speed import read_speed
from patch.specs import FigureSpec


def run(spec: FigureSpec, *, results: Path, speedup: Path, out: Path) -> None:
    """Draw the spec's rows that have a speed."""
    frame, model = read_results(results), ModelInfo(**spec.model)
    save(draw(frame[row_names(frame).isin(spec.rows)], read_speed(speedup), model), out)
