"""Results of each sample -> differences between rows with their errors."""

from __future__ import annotations

from pathlib import Path

from patch.errors import InputError
from patch.io import atomic_file
from patch.results.differences import paired_differences
from patch.results.samples import Samples, read_samples
from patch.specs import CompareSpec


def run(spec: CompareSpec, *, samples: list[Path], out: Path) -> None:
    """Write differences.csv."""
    expected = {(cell.model, cell.id) for cell in spec.cells}
    frame = paired_differences([_read(path, expected) for path in samples])
    with atomic_file(out) as temporary:
        frame.to_csv(temporary, index=False)


def _read(path: Path, expected: set[tuple[str, str]]) -> Samples:
    found = read_samples(path)
    if (found.cell.model, found.cell.id) not in expected:
        raise InputError(
            f"{path}: samples of cell `{found.cell.id}` of model `{found.cell.model}`, which is not among the "
            f"{len(expected)} cells to compare"
        )
    return found
