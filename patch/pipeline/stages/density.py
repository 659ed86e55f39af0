"""Figure of a model's density by layer and projection."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.density import density
from patch.pipeline.reporting.figure_style import save
from patch.pipeline.results.current import read_records
from patch.pipeline.runs.stage_settings import FigureSettings


def run(settings: FigureSettings, *, records: list[Path], out: Path) -> None:
    """Draw the density of each layer; ``records`` are those of the model's hybrid runs."""
    save(density(read_records(records, settings.digests), settings.model), out)
