"""README with the results of an experiment."""

from __future__ import annotations

from pathlib import Path

from patch.files.io import atomic_file
from patch.pipeline.reporting.summary import Results, summary
from patch.pipeline.reporting.tables import Arrangement, build_table
from patch.pipeline.results.collect import read_results
from patch.pipeline.results.current import read_records, read_speeds
from patch.pipeline.results.differences import Differences
from patch.pipeline.results.published import load_published
from patch.pipeline.results.speed import Speeds
from patch.pipeline.runs.stage_settings import SummarySettings


def run(
    settings: SummarySettings,
    *,
    records: list[Path],
    results: Path,
    differences: Path,
    command: str,
    out: Path,
    speedups: list[Path] | None = None,
) -> None:
    """Write the README; ``command`` is the command that reproduces the experiment."""
    tabulate = settings.tabulate
    models, runs = tabulate.models, tabulate.runs
    frame, paired = read_results(results, tabulate.digests), Differences.read(differences, tabulate.row_digests)
    arrangement, published = Arrangement(tabulate.standard, tabulate.tables), load_published(tabulate.published)
    speeds = Speeds(read_speeds(speedups or [], tabulate.digests), published)
    text = summary(
        Results(
            experiment=settings.experiment,
            run=settings.run,
            tables=[build_table(name, frame, models, runs, arrangement, paired, speeds) for name in settings.shown],
            records=read_records(records, tabulate.digests),
            differences=paired.frame,
            models=models,
            expected=runs,
            published=published,
            speeds=speeds.records,
            command=command,
            figures=settings.figures,
        )
    )
    with atomic_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
