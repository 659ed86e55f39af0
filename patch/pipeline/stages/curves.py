"""Figure of the training curves of a model's learned masks."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.curves import curves
from patch.pipeline.reporting.figure_style import save
from patch.pipeline.runs.stage_settings import FigureSettings


def run(settings: FigureSettings, *, curves_of: list[Path], out: Path) -> None:
    """Draw loss, density and temperature; ``curves_of`` are the curve files in the order of ``settings.labels``."""
    save(curves(dict(zip(settings.labels, curves_of, strict=True)), settings.model), out)
