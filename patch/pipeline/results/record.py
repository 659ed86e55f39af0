"""Schema of the JSON record that the evaluation of a run writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from patch.evaluation.metric import Fraction, Metric, StageCost, check_metrics
from patch.files.io import read_checked_json, write_checked_json
from patch.files.schema import Name, Positive, Schema, check
from patch.pipeline.runs.run import Run

StageName = Literal["prune", "learn", "import", "quantize", "evaluate"]
# Fractions computed from fp64 sums differ in their last digits.
_ROUNDING = 1e-9


class Environment(Schema):
    """Software and hardware environment of a measurement; ``time`` is in ISO 8601 format."""

    git_commit: str | None
    python: str
    packages: dict[str, str]
    device: str
    threads: Positive
    time: str


class Record(Schema):
    """Results of one run.

    ``achieved_sparsity`` is counted on the evaluated model. ``density`` is the kept fraction of each linear layer.
    Kept weights that quantization rounds to zero count as kept.
    """

    schema_version: Literal[1] = Field(alias="schema")
    experiment: Name
    run: Run
    metrics: dict[Name, Metric]
    achieved_sparsity: Fraction
    density: dict[Name, Fraction]
    config_digest: Name
    stages: dict[StageName, StageCost]
    environment: Environment

    @model_validator(mode="after")
    def _agrees(self) -> Record:
        """Check the ranges of the metrics, and that the achieved sparsity lies within the range of the densities."""
        check_metrics(self.metrics)
        for name in ("perplexity", "accuracy"):
            if name not in self.metrics:
                raise ValueError(f"`metrics` has no {name}")
        if self.density:
            found, (low, high) = self.achieved_sparsity, (1 - bound(self.density.values()) for bound in (max, min))
            if not low - _ROUNDING <= found <= high + _ROUNDING:
                raise ValueError(f"`achieved_sparsity` is {found}; `density` gives {low:.6g} to {high:.6g}")
        return self


def write_record(path: Path | str, record: dict[str, Any]) -> None:
    """Check a record and write it atomically, with a checksum.

    Raises:
        InputError: ``record`` does not match the schema. Nothing is written.
    """
    check(Record, record, f"{path}: not a record")
    write_checked_json(path, record)


def read_record(path: Path | str) -> Record:
    """Read and check one record.

    Raises:
        InputError: the file is missing or damaged, or is not a record. The one-line message names the key.
    """
    return check(Record, read_checked_json(path), f"{path}: not a record")
