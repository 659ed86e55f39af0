"""What a cell gave on each window and each question, in a file beside its record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from patch.cell import Cell
from patch.errors import InputError
from patch.io import atomic_file, read_json
from patch.results.record import RecordCell, first_fault


@dataclass(frozen=True)
class Samples:
    """Results of one cell, sample by sample.

    Attributes:
        experiment: its name.
        cell: of the grid.
        samples: `perplexity` -> mean cross-entropy in nats of each window; task -> 1 for each question that was
            answered right and 0 for each other; both in one order for all cells. Empty for a task whose accuracy
            is not the mean over its questions.
    """

    experiment: str
    cell: Cell
    samples: dict[str, np.ndarray]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(alias="schema")
    experiment: str
    cell: RecordCell
    samples: dict[str, list[float]]


def write_samples(path: Path, experiment: str, cell: dict[str, Any], samples: Mapping[str, Sequence[float]]) -> None:
    """Write the samples of one cell, atomically; ``cell`` is as in its record, ``samples`` as in `Samples`."""
    content = {
        "schema": 1,
        "experiment": experiment,
        "cell": cell,
        "samples": {name: [_short(value) for value in values] for name, values in samples.items()},
    }
    with atomic_file(path) as temporary:
        # Not indented: a line for each of 14,000 questions would be three times the size.
        temporary.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def _short(value: float) -> float | int:
    """Seven digits are more than fp32 losses have; what is whole is written as such."""
    rounded = float(f"{value:.7g}")
    return int(rounded) if rounded.is_integer() else rounded


def read_samples(path: Path | str) -> Samples:
    """Read and check the samples of one cell.

    Raises:
        InputError: the file is missing, is not JSON, or does not hold samples; one line that names the key.
    """
    try:
        file = _File.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: not the samples of a cell: {first_fault(error)}") from None
    cell = Cell.of(file.cell)
    if cell.id != file.cell.id:
        raise InputError(f"{path}: not the samples of a cell: `cell.id` is {file.cell.id!r}; expected {cell.id!r}")
    arrays = {name: np.array(values, dtype=np.float64) for name, values in file.samples.items()}
    return Samples(file.experiment, cell, arrays)
