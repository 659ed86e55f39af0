"""Collection of records in one tidy table."""

from __future__ import annotations

from pathlib import Path

from patch.files.io import atomic_file
from patch.pipeline.results.collect import collect
from patch.pipeline.results.current import read_records
from patch.pipeline.results.published import load_published
from patch.pipeline.runs.stage_settings import TabulateSettings


def run(settings: TabulateSettings, *, records: list[Path], published: Path, out: Path) -> None:
    """Write results.csv."""
    frame = collect(read_records(records, settings.digests), settings.models, load_published(published))
    with atomic_file(out) as temporary:
        frame.to_csv(temporary, index=False)
