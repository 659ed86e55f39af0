"""One standard or additional table as .csv, .md, .tex and .html."""

from __future__ import annotations

from pathlib import Path

from patch.pipeline.reporting.render import write_table
from patch.pipeline.reporting.tables import Arrangement, build_table
from patch.pipeline.results.collect import read_results
from patch.pipeline.results.current import read_speeds
from patch.pipeline.results.differences import Differences
from patch.pipeline.results.published import load_published
from patch.pipeline.results.speed import Speeds
from patch.pipeline.runs.stage_settings import TabulateSettings


def run(
    settings: TabulateSettings, *, results: Path, differences: Path, out: Path, speedups: list[Path] | None = None
) -> None:
    """Write the table whose name is the last part of ``out``, a path without a suffix.

    The speed table needs ``speedups``, the records of speed measurements.
    """
    arrangement = Arrangement(settings.standard, settings.tables)
    errors = Differences.read(differences, settings.row_digests)
    speeds = Speeds(read_speeds(speedups or [], settings.digests), load_published(settings.published))
    frame = read_results(results, settings.digests)
    write_table(build_table(out.name, frame, settings.models, settings.runs, arrangement, errors, speeds), out)
