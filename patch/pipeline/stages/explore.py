"""Interactive page of an experiment. Its library is loaded by no other stage."""

from __future__ import annotations

from pathlib import Path

from patch.files.io import atomic_file
from patch.pipeline.reporting.explore import Explored, explore_page
from patch.pipeline.results.collect import read_results
from patch.pipeline.results.published import load_published
from patch.pipeline.results.record import Record
from patch.pipeline.runs.stage_settings import ExploreSettings


def run_explore(
    settings: ExploreSettings,
    *,
    results: Path,
    records: list[Path],
    published: Path,
    out: Path,
    curves_of: list[Path] | None = None,
) -> None:
    """Write the interactive page; ``curves_of`` are the curve files in the order of ``settings.curves``."""
    explored = Explored(
        experiment=settings.experiment,
        frame=read_results(results, settings.digests),
        records=Record.read_current(records, settings.digests),
        models=settings.models,
        published=load_published(published),
        curves=dict(zip(settings.curves, curves_of or [], strict=True)),
    )
    with atomic_file(out) as temporary:
        temporary.write_text(explore_page(explored), encoding="utf-8")
