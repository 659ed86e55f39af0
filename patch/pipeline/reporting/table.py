"""What a table is, before it is written as text of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from patch.pipeline.results.collect import DENSITY
from patch.pipeline.results.record import ModelInfo

DASH = "–"
# Endings of the columns of a CSV file, of each column of measures.
PARTS = ("", "_stderr", "_spread", "_seeds", "_published", "_difference", "_best")


@dataclass(frozen=True)
class Measure:
    """One measured number beside the paper's; accuracies in percent.

    Attributes:
        value: mean over seeds.
        stderr: its standard error, NaN where unknown.
        spread: sample standard deviation over seeds, NaN for one seed.
        seeds: how many were averaged.
        published: the paper's number, NaN where it has none.
        best: whether it is the best of its sparsity.
    """

    value: float
    stderr: float
    spread: float
    seeds: int
    published: float
    best: bool = False


@dataclass(frozen=True)
class Heading:
    """A column of measures.

    Attributes:
        metric: as in results.
        model: None where the rows name the model.
        label: as printed, where the metric does not say it.
        parts: those of ``PARTS`` that a CSV file has of it.
    """

    metric: str
    model: ModelInfo | None = None
    label: str | None = None
    parts: tuple[str, ...] = PARTS

    @property
    def higher_is_better(self) -> bool:
        """Everything but perplexity is an accuracy."""
        return self.metric != "perplexity"

    @property
    def text(self) -> str:
        """As printed."""
        if self.label is not None:
            return self.label
        if self.metric.startswith(DENSITY):
            return self.metric.removeprefix(DENSITY).removesuffix("_proj")
        short = {"accuracy": "Acc. (%)" if self.model else "Mean", "perplexity": "PPL"}.get(self.metric, self.metric)
        return f"{short} {'↑' if self.higher_is_better else '↓'}"

    @property
    def key(self) -> str:
        """Prefix of the columns of a CSV file; says the unit."""
        if self.label is not None:
            return self.metric
        prefix = f"{self.model.name}_" if self.model else ""
        return f"{prefix}{self.metric}" + ("_percent" if self.higher_is_better else "")


@dataclass(frozen=True)
class Row:
    """One method at one sparsity.

    Attributes:
        model: title, only where the rows name the model.
        sparsity: target share of zeros.
        method: title.
        pattern: as printed.
        achieved: model name -> share of zeros that was counted.
        measures: one for each heading; None is a missing cell.
        setting: what sets it apart from the plain run, as printed.
        comparable: False where the row is one model's and the paper's numbers are another's.
    """

    model: str | None
    sparsity: float
    method: str
    pattern: str
    achieved: dict[str, float]
    measures: tuple[Measure | None, ...]
    setting: str = ""
    comparable: bool = True


@dataclass(frozen=True)
class Table:
    """A table of results; with ``deviation`` the scatter over seeds is printed, not the standard error."""

    name: str
    caption: str
    header: tuple[Heading, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())
    deviation: bool = False

    @property
    def names_models(self) -> bool:
        """Whether each row belongs to one model."""
        return any(row.model is not None for row in self.rows)

    @property
    def names_settings(self) -> bool:
        """Whether a row differs from the plain run."""
        return any(row.setting for row in self.rows)


def mark_best(
    measures: list[Measure | None],
    higher_is_better: bool,
    stderr_of_difference: Callable[[int, int], float | None] | None = None,
) -> list[bool]:
    """Which of the measures that share a sparsity are printed in bold.

    The best one, and with it every one whose difference from the best is within one standard error of
    that difference. Nothing is marked where fewer than two numbers compete, or where all of them tie.

    Args:
        measures: None is a missing cell.
        higher_is_better: False for perplexity.
        stderr_of_difference: the error of the difference of two of the measures, by their places in the
            list, from results on the same windows and questions. Where it is not given, or gives None, the
            two measures count as independent: their errors in quadrature, an unknown one as zero.

    Returns:
        For each measure whether it is bold.
    """
    present = {i: m for i, m in enumerate(measures) if m is not None and not math.isnan(m.value)}
    if len(present) < 2:
        return [False] * len(measures)
    leader = (max if higher_is_better else min)(present, key=lambda i: present[i].value)
    tied = set()
    for place, measure in present.items():
        error = stderr_of_difference(place, leader) if stderr_of_difference and place != leader else None
        if _ties(measure, present[leader], error):
            tied.add(place)
    return [i in tied and len(tied) < len(present) for i in range(len(measures))]


def _ties(measure: Measure, leader: Measure, error: float | None) -> bool:
    if error is None or math.isnan(error):
        error = math.hypot(*(0.0 if math.isnan(m.stderr) else m.stderr for m in (measure, leader)))
    return measure.value == leader.value or abs(measure.value - leader.value) <= error
