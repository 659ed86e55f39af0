"""Paired differences between rows, with their errors, from the results of each sample."""

from __future__ import annotations

from pathlib import Path

from patch.files.io import atomic_file
from patch.pipeline.results.current import read_all_samples
from patch.pipeline.results.differences import paired_differences
from patch.pipeline.runs.stage_settings import CompareSettings


def run(settings: CompareSettings, *, samples: list[Path], out: Path) -> None:
    """Write differences.csv."""
    frame = paired_differences(read_all_samples(samples, settings.digests))
    with atomic_file(out) as temporary:
        frame.to_csv(temporary, index=False)
