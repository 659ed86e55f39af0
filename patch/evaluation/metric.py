"""A measured value with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One measurement.

    Attributes:
        value: perplexity, or accuracy in [0, 1].
        stderr: standard error of ``value``; None for a single sample.
        samples: windows, questions or tasks that it is the mean of.
        chance: what guessing gives, where that means something.
    """

    value: float
    stderr: float | None
    samples: int
    chance: float | None = None
