"""Per-sample results of a run, stored in a file beside its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from patch.evaluation.metric import check_loss
from patch.files.schema import Name
from patch.pipeline.results.result_files import RunFile
from patch.pipeline.runs.run import Run


def _array(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float64)


class Samples(RunFile):
    """Per-sample results of one run.

    In ``samples``, `perplexity` maps to the mean cross-entropy of each sequence in nats. Every other name is a metric
    of a task and maps to 1 for every question that was answered correctly and 0 for the others. The order of samples
    is the same for all runs. The array is empty for a metric that is not the mean over its questions.
    """

    what = "the samples of a run"
    # Indentation would triple the size of a file with 14,000 questions.
    indent = None

    samples: dict[Name, Annotated[list[Annotated[float, Field(ge=0)]], AfterValidator(_array)]]

    @model_validator(mode="after")
    def _in_range(self) -> Samples:
        """Check that no question scores more than 1 and that the mean loss gives a finite perplexity."""
        if not len(self.samples.get("perplexity", ())):
            raise ValueError("`samples.perplexity` is missing or empty")
        for name, values in self.samples.items():
            if name != "perplexity" and max(values, default=0) > 1:
                raise ValueError(f"`samples.{name}` has {max(values)}; expected 0 to 1")
        check_loss(float(np.mean(self.samples["perplexity"])))
        return self


def write_samples(
    path: Path, experiment: str, run: Run, samples: Mapping[str, Sequence[float]], config_digest: str
) -> None:
    """Write the rounded samples of one run, see `Samples.write`."""
    content = {
        "schema": 1,
        "experiment": experiment,
        "run": run.model_dump(),
        "samples": {name: [_short(value) for value in values] for name, values in samples.items()},
        "config_digest": config_digest,
    }
    Samples.write(path, content)


def _short(value: float) -> float | int:
    """Round to seven significant digits, which suffice for fp32 losses; return an int for a whole number."""
    rounded = float(f"{value:.7g}")
    return int(rounded) if rounded.is_integer() else rounded
