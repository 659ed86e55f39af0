"""A measured value with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metric:
    """One measurement.

    Attributes:
        value: perplexity, or accuracy in [0, 1].
        stderr: standard error of ``value``; None for a single sample.
        samples: windows, questions or tasks that it is the mean of.
        chance: what guessing gives, where that means something.
        values: of each sample: a window's mean cross-entropy in nats, or 1 for a question that was answered right
            and 0 for another; empty where ``value`` is no function of their mean.
    """

    value: float
    stderr: float | None
    samples: int
    chance: float | None = None
    values: tuple[float, ...] = field(default=(), repr=False)
