"""A measured value with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field

from patch.errors import InputError

# In nats. The square of its perplexity, which standard errors need, is still a number in fp64.
LARGEST_LOSS = 300.0


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


def check_loss(loss: float) -> None:
    """Check that a mean cross-entropy in nats has a perplexity.

    Raises:
        InputError: it is not a number, negative, or too large.
    """
    if not 0 <= loss <= LARGEST_LOSS:
        raise InputError(
            f"perplexity: the mean loss is {loss} nats, expected 0 to {LARGEST_LOSS:g}; the model is broken"
        )
