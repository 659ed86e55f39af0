"""Per-sample results of a run, stored in a file beside its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from patch.evaluation.metric import check_loss
from patch.files.io import read_checked_json, write_checked_json
from patch.files.schema import Name, Schema, check
from patch.pipeline.runs.run import Run


@dataclass(frozen=True)
class Samples:
    """Per-sample results of one run.

    Attributes:
        experiment: name of the experiment.
        run: run of the grid.
        samples: `perplexity` maps to the mean cross-entropy of each sequence in nats. Each task maps to 1 for every
            question that was answered correctly and 0 for the others. The order of samples is the same for all runs.
            The array is empty for a task whose accuracy is not the mean over its questions.
        config_digest: digest of the evaluation settings.
    """

    experiment: str
    run: Run
    samples: dict[str, np.ndarray]
    config_digest: str


class _File(Schema):
    schema_version: Literal[1] = Field(alias="schema")
    experiment: Name
    run: Run
    samples: dict[Name, list[Annotated[float, Field(ge=0)]]]
    config_digest: Name

    @model_validator(mode="after")
    def _in_range(self) -> _File:
        """Check that no question scores more than 1 and that the mean loss gives a finite perplexity."""
        if not self.samples.get("perplexity"):
            raise ValueError("`samples.perplexity` is missing or empty")
        for name, values in self.samples.items():
            if name != "perplexity" and max(values, default=0) > 1:
                raise ValueError(f"`samples.{name}` has {max(values)}; expected 0 to 1")
        check_loss(float(np.mean(self.samples["perplexity"])))
        return self


def write_samples(
    path: Path, experiment: str, run: Run, samples: Mapping[str, Sequence[float]], config_digest: str
) -> None:
    """Check the samples of one run and write them atomically, with a checksum.

    Args:
        path: path of the file.
        experiment: name of the experiment.
        run: run of the grid.
        samples: per-sample results, as in `Samples`.
        config_digest: digest of the evaluation settings, as in the record.

    Raises:
        InputError: a sample is not finite or is out of range. Nothing is written.
    """
    content = {
        "schema": 1,
        "experiment": experiment,
        "run": run.model_dump(),
        "samples": {name: [_short(value) for value in values] for name, values in samples.items()},
        "config_digest": config_digest,
    }
    check(_File, content, f"{path}: not the samples of a run")
    # Indentation would triple the size of a file with 14,000 questions.
    write_checked_json(path, content, indent=None)


def _short(value: float) -> float | int:
    """Round to seven significant digits, which suffice for fp32 losses; return an int for a whole number."""
    rounded = float(f"{value:.7g}")
    return int(rounded) if rounded.is_integer() else rounded


def read_samples(path: Path | str) -> Samples:
    """Read and check the samples of one run.

    Raises:
        InputError: the file is missing or damaged, or does not hold samples. The one-line message names the key.
    """
    file = check(_File, read_checked_json(path), f"{path}: not the samples of a run")
    arrays = {name: np.array(values, dtype=np.float64) for name, values in file.samples.items()}
    return Samples(file.experiment, file.run, arrays, file.config_digest)
