"""Measured value with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field

from patch.errors import InputError

# In nats. Standard errors need the square of the perplexity, which is still finite in fp64.
LARGEST_LOSS = 300.0


@dataclass(frozen=True)
class Metric:
    """One measurement.

    Attributes:
        value: perplexity, or accuracy in [0, 1].
        stderr: standard error of ``value``; None for a single sample.
        samples: number of sequences, questions or tasks in the mean.
        chance: accuracy of random guesses; None if undefined.
        values: value of each sample: a sequence's mean cross-entropy in nats, or 1 for a correct and 0 for a wrong
            answer; empty if ``value`` is not a function of their mean.
    """

    value: float
    stderr: float | None
    samples: int
    chance: float | None = None
    values: tuple[float, ...] = field(default=(), repr=False)


def check_loss(loss: float) -> None:
    """Check that a mean cross-entropy in nats has a finite perplexity.

    Raises:
        InputError: the loss is NaN, negative, or too large.
    """
    if not 0 <= loss <= LARGEST_LOSS:
        raise InputError(
            f"perplexity: the mean loss is {loss} nats, expected 0 to {LARGEST_LOSS:g}; the model is broken"
        )
