"""Schema of evaluation results, in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from patch.errors import InputError
from patch.files.schema import Count, Positive, Schema

# In nats. Standard errors need the square of the perplexity, which is still finite in fp64.
LARGEST_LOSS = 300.0

Fraction = Annotated[float, Field(ge=0, le=1)]


class Metric(Schema):
    """Perplexity or accuracy.

    Attributes:
        value: perplexity, or accuracy in [0, 1].
        stderr: standard error of ``value``; None for a single sample.
        samples: number of sequences, questions or tasks in the mean.
        chance: accuracy of random guesses; None if undefined.
        fewshot: number of solved examples before each question; None if ``value`` is not of one task.
    """

    value: float = Field(ge=0)
    stderr: float | None = Field(None, ge=0)
    samples: Positive | None = None
    chance: Fraction | None = None
    fewshot: Count | None = None


class Measurement(Metric):
    """Metric with the values of its samples.

    Attributes:
        values: value of each sample: a sequence's mean cross-entropy in nats, or 1 for a correct and 0 for a wrong
            answer; empty if ``value`` is not a function of their mean.
    """

    samples: Positive
    # In JSON it is a list.
    values: tuple[float, ...] = Field(strict=False, repr=False)


class StageCost(Schema):
    """Wall time in seconds and peak memory in MB."""

    seconds: float = Field(ge=0)
    peak_memory_mb: float = Field(ge=0)


class HeldOutLoss(Schema):
    """Mean cross-entropy in nats of a learned mask in its final form, on sequences that it was not learned on.

    Attributes:
        initial: loss of the mask that learning starts from.
        final: loss of the mask after the last step.
        best: lowest loss of all measurements.
        best_step: steps before that measurement; 0 is the initial mask.
        kept: mask that the run has returned.
        sequences: number of held-out sequences.
    """

    initial: float = Field(ge=0)
    final: float = Field(ge=0)
    best: float = Field(ge=0)
    best_step: Count
    kept: Literal["last", "best"]
    sequences: Positive

    @property
    def result(self) -> float:
        """Loss of the mask that the run has returned."""
        return self.best if self.kept == "best" else self.final

    @property
    def worse(self) -> bool:
        """Return whether the returned mask is worse than the one that learning starts from."""
        return self.result > self.initial

    @property
    def warning(self) -> str:
        """Description of a mask that is worse; empty if it is not."""
        if not self.worse:
            return ""
        return (
            f"the learned mask is worse than its initial mask (held-out loss {self.result:.3f}, initial "
            f"{self.initial:.3f}); lower `lr`, or keep the best mask (`keep: best`)"
        )


def accuracy_names(names: Iterable[str]) -> list[str]:
    """Return the metrics whose mean is `accuracy`: the `acc` of each task, which has the task's name.

    Other metrics of a task have a slash: `arc_easy/acc_norm`, `gsm8k/strict-match`.
    """
    return [name for name in names if name not in ("perplexity", "accuracy") and "/" not in name]


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


def check_loss(loss: float) -> None:
    """Check that a mean cross-entropy in nats has a finite perplexity.

    Raises:
        InputError: the loss is NaN, negative, or too large.
    """
    if not 0 <= loss <= LARGEST_LOSS:
        raise InputError(
            f"perplexity: the mean loss is {loss} nats, expected 0 to {LARGEST_LOSS:g}; the model is broken"
        )
