"""Tables and pages of an experiment, made from its records and samples."""

from __future__ import annotations

from pathlib import Path

from patch.files.io import atomic_file
from patch.pipeline.reporting.measured import Measured
from patch.pipeline.reporting.overview import cost_page, environment_page
from patch.pipeline.reporting.render import write_table
from patch.pipeline.reporting.summary import summary
from patch.pipeline.resources.forecast import read_forecast
from patch.pipeline.results.collect import collect
from patch.pipeline.results.differences import paired_differences
from patch.pipeline.results.published import load_published
from patch.pipeline.results.record import Record
from patch.pipeline.results.samples import Samples
from patch.pipeline.runs.stage_settings import CompareSettings, OverviewSettings, SummarySettings, TabulateSettings


def run_collect(settings: TabulateSettings, *, records: list[Path], published: Path, out: Path) -> None:
    """Write results.csv, the tidy table of all records."""
    found = Record.read_current(records, settings.digests)
    with atomic_file(out) as temporary:
        collect(found, settings.models, load_published(published)).to_csv(temporary, index=False)


def run_compare(settings: CompareSettings, *, samples: list[Path], out: Path) -> None:
    """Write differences.csv, the paired differences between rows with their standard errors."""
    found = Samples.read_current(samples, settings.digests)
    with atomic_file(out) as temporary:
        paired_differences(found).to_csv(temporary, index=False)


def run_table(
    settings: TabulateSettings, *, results: Path, differences: Path, out: Path, speedups: list[Path] | None = None
) -> None:
    """Write one table as .csv, .md, .tex and .html; its name is the last part of ``out``, a path without a suffix.

    The speed table needs ``speedups``, the records of speed measurements.
    """
    write_table(Measured.read(settings, results, differences, speedups or []).table(out.name), out)


def run_overview(
    settings: OverviewSettings, *, records: list[Path], forecast: Path, cost: Path, environment: Path
) -> None:
    """Write the pages on cost and environment; ``forecast`` is a file of `patch.pipeline.resources.forecast`."""
    found = Record.read_current(records, settings.digests)
    _write(cost, cost_page(settings.experiment, found, read_forecast(forecast)))
    _write(environment, environment_page(settings.experiment, found))


def run_summary(
    settings: SummarySettings,
    *,
    records: list[Path],
    results: Path,
    differences: Path,
    command: str,
    out: Path,
    findings: Path,
    speedups: list[Path] | None = None,
) -> None:
    """Write the README with all results, and its findings as lines of plain text for the report.

    ``command`` is the command that reproduces the experiment.
    """
    measured = Measured.read(settings.tabulate, results, differences, speedups or [])
    tables = [measured.table(name) for name in settings.shown]
    found = Record.read_current(records, settings.tabulate.digests)
    results = measured.results(settings, tables, found, command)
    _write(out, summary(results))
    _write(findings, "".join(f"{line}\n" for line in results.findings))


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
