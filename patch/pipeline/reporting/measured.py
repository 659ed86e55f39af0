"""Measured numbers of an experiment, and the tables and the page that show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from patch.pipeline.reporting.published_table import PUBLISHED, published_table
from patch.pipeline.reporting.summary import Results
from patch.pipeline.reporting.table import Table
from patch.pipeline.reporting.tables import Arrangement, build_table
from patch.pipeline.results.collect import read_results
from patch.pipeline.results.differences import Differences
from patch.pipeline.results.published import load_published
from patch.pipeline.results.record import Record
from patch.pipeline.results.speed import SpeedRecord, Speeds
from patch.pipeline.runs.stage_settings import SummarySettings, TabulateSettings


def read_speeds(settings: TabulateSettings, paths: Iterable[Path]) -> Speeds:
    """Read speed records that match ``settings``, and the paper's numbers."""
    return Speeds(SpeedRecord.read_current(paths, settings.digests), load_published(settings.published))


@dataclass(frozen=True)
class Measured:
    """Tidy frame, paired differences and speeds of the runs in ``settings``."""

    settings: TabulateSettings
    frame: pd.DataFrame
    differences: Differences
    speeds: Speeds

    @classmethod
    def read(cls, settings: TabulateSettings, results: Path, differences: Path, speedups: Iterable[Path]) -> Measured:
        """Read results.csv, differences.csv and speed records.

        Raises:
            InputError: A file is missing or damaged, or was made with other settings.
        """
        frame, paired = read_results(results, settings.digests), Differences.read(differences, settings.row_digests)
        return cls(settings, frame, paired, read_speeds(settings, speedups))

    def table(self, name: str) -> Table:
        """Build one table, see `build_table` and `published_table`."""
        settings = self.settings
        if name == PUBLISHED:
            return published_table(self.frame, settings.models, self.speeds.published)
        arrangement = Arrangement(settings.standard, settings.tables)
        return build_table(
            name,
            self.frame,
            settings.models,
            settings.runs,
            arrangement,
            self.differences,
            self.speeds,
            settings.fewshot,
        )

    def results(
        self, settings: SummarySettings, tables: Sequence[Table], records: Sequence[Record], command: str
    ) -> Results:
        """Return the contents of the summary page; ``command`` is the command that reproduces the experiment."""
        return Results(
            experiment=settings.experiment,
            run=settings.run,
            tables=tables,
            records=records,
            differences=self.differences,
            models=self.settings.models,
            expected=self.settings.runs,
            published=self.speeds.published,
            speeds=self.speeds.records,
            command=command,
            figures=settings.figures,
            explore=settings.explore,
        )
