"""Schema of evaluation results, in records and in unfinished evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from patch.files.schema import Positive, Schema

Share = Annotated[float, Field(ge=0, le=1)]


class Metric(Schema):
    """Perplexity, or accuracy in [0, 1]; ``samples`` counts sequences or questions."""

    value: float = Field(ge=0)
    stderr: float | None = Field(None, ge=0)
    chance: Share | None = None
    samples: Positive | None = None


def check_metrics(metrics: Mapping[str, Metric]) -> None:
    """Check the ranges of perplexities, which are 1 or more, and of accuracies, which are 0 to 1.

    Raises:
        ValueError: a metric is out of range; the message names it.
    """
    for name, metric in metrics.items():
        if name == "perplexity" and metric.value < 1:
            raise ValueError(f"`{name}` is {metric.value}; expected 1 or more")
        if name != "perplexity" and metric.value > 1:
            raise ValueError(f"`{name}` is {metric.value}; expected 0 to 1")


class StageCost(Schema):
    """Wall time in seconds and peak memory in MB."""

    seconds: float = Field(ge=0)
    peak_memory_mb: float = Field(ge=0)
