"""Records -> one tidy table."""

from __future__ import annotations

from pathlib import Path

from patch.io import atomic_file
from patch.results.collect import collect
from patch.results.current import read_records
from patch.results.published import load_published
from patch.results.record import ModelInfo
from patch.specs import TabulateSpec


def run(spec: TabulateSpec, *, records: list[Path], published: Path, out: Path) -> None:
    """Write results.csv."""
    models = [ModelInfo(**model) for model in spec.models]
    frame = collect(read_records(records, spec.digests), models, load_published(published))
    with atomic_file(out) as temporary:
        frame.to_csv(temporary, index=False)
