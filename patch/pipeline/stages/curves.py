"""Figure of the training curves of a model's learned masks."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.figures import curves, save
from patch.pipeline.results.record import ModelInfo
from patch.pipeline.runs.specs import FigureSpec


def run(spec: FigureSpec, *, curves_of: list[Path], out: Path) -> None:
    """Draw loss, density and temperature; ``curves_of`` are the curve files in the order of the labels in ``spec``."""
    save(curves(dict(zip(spec.labels, curves_of, strict=True)), ModelInfo(**spec.model)), out)
