"""Pages on planned and measured cost, and on the environment of the jobs."""

from __future__ import annotations

from pathlib import Path

from patch.files.io import atomic_file
from patch.pipeline.reporting.overview import cost_page, environment_page
from patch.pipeline.resources.forecast import read_forecast
from patch.pipeline.results.current import read_records
from patch.pipeline.runs.stage_settings import OverviewSettings


def run(settings: OverviewSettings, *, records: list[Path], forecast: Path, cost: Path, environment: Path) -> None:
    """Write both pages; ``forecast`` is a file of `patch.pipeline.resources.forecast`."""
    found = read_records(records, settings.digests)
    pages = {
        cost: cost_page(settings.experiment, found, read_forecast(forecast)),
        environment: environment_page(settings.experiment, found),
    }
    for path, text in pages.items():
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
