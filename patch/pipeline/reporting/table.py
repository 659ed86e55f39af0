"""Format-independent representation of result tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from patch.pipeline.results.collect import DENSITY
from patch.pipeline.results.order import QUANTIZATIONS, tile_title
from patch.pipeline.runs.run import ModelInfo, Run

DASH = "–"
# Suffixes of the CSV columns of each heading.
PARTS = ("", "_stderr", "_spread", "_seeds", "_published", "_difference", "_best", "_noisy")
# Mark of a noisy speed.
NOISY = "†"


@dataclass(frozen=True)
class Measure:
    """Measured number and the paper's number; accuracies are in percent.

    Attributes:
        value: mean over seeds.
        stderr: standard error of ``value``, NaN if unknown.
        spread: sample standard deviation over seeds, NaN for one seed; for speeds, half the interquartile range.
        seeds: number of seeds.
        published: the paper's number, NaN if there is none.
        best: True if the number is printed in bold as the best of its sparsity or tied with it.
        noisy: first and third quartile of a noisy speed, which replace ``spread`` in print; None for all other numbers.
    """

    value: float
    stderr: float = math.nan
    spread: float = math.nan
    seeds: int = 1
    published: float = math.nan
    best: bool = False
    noisy: tuple[float, float] | None = None


@dataclass(frozen=True)
class Heading:
    """Heading of a column of measures.

    Attributes:
        metric: name of the metric, as in the tidy frame.
        model: model of the column, None if the rows name the model.
        label: printed label, None to derive it from the metric.
        parts: the ``PARTS`` that a CSV file has for the column.
    """

    metric: str
    model: ModelInfo | None = None
    label: str | None = None
    parts: tuple[str, ...] = PARTS

    @property
    def higher_is_better(self) -> bool:
        """Return whether a higher value is better, which holds for every metric but perplexity."""
        return self.metric != "perplexity"

    @property
    def text(self) -> str:
        """Printed text of the heading."""
        if self.label is not None:
            return self.label
        if self.metric.startswith(DENSITY):
            return self.metric.removeprefix(DENSITY).removesuffix("_proj")
        short = {"accuracy": "Acc. (%)" if self.model else "Mean", "perplexity": "PPL"}.get(self.metric, self.metric)
        return f"{short} {'↑' if self.higher_is_better else '↓'}"

    @property
    def key(self) -> str:
        """Prefix of the CSV columns; a derived prefix ends in `_percent` for percentages."""
        if self.label is not None:
            return self.metric
        prefix = f"{self.model.name}_" if self.model else ""
        return f"{prefix}{self.metric}" + ("_percent" if self.higher_is_better else "")


def pattern_title(run: Run) -> str:
    """Return the printed pattern of a run, with its tile size and quantization: `hybrid 16×16, AbsMax`."""
    pattern = f"{run.pattern} {tile_title(run.tile)}" if run.tile else run.pattern
    return f"{pattern}, {QUANTIZATIONS[run.quantization]}" if run.quantization else pattern


@dataclass(frozen=True)
class Row:
    """Row for one method at one sparsity.

    Attributes:
        model: title of the model, None unless the rows name the model.
        sparsity: target fraction of zeros.
        method: title of the method.
        pattern: printed pattern.
        achieved: model name -> measured fraction of zeros.
        measures: one for each heading; None is a missing value.
        setting: printed difference from the plain run, empty for the plain run.
        comparable: False if the row belongs to one model and the paper's numbers are another model's.
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
    """Table of results; ``deviation`` prints the standard deviation over seeds instead of the standard error."""

    name: str
    caption: str
    header: tuple[Heading, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    deviation: bool = False

    def comparable(self, heading: Heading) -> bool:
        """Return whether the paper's numbers in a column are those of the measured model, for a row at least."""
        return heading.model.comparable if heading.model else any(row.comparable for row in self.rows)

    @property
    def names_models(self) -> bool:
        """Return whether the rows name their model."""
        return any(row.model is not None for row in self.rows)

    @property
    def names_settings(self) -> bool:
        """Return whether a row has a setting that differs from the plain run."""
        return any(row.setting for row in self.rows)


def mark_best(
    measures: list[Measure | None],
    higher_is_better: bool,
    stderr_of_difference: Callable[[int, int], float | None] | None = None,
) -> list[bool]:
    """Return a flag for each of the measures that share a sparsity: True to print it in bold.

    The best measure is marked, and every measure whose difference from the best is within one standard error of that
    difference. Nothing is marked if fewer than two numbers compete, or if all of them tie.

    Args:
        measures: measures of one sparsity; None is a missing value.
        higher_is_better: False for perplexity.
        stderr_of_difference: function of two list positions that returns the paired standard error of the difference,
            from results on the same sequences and questions. If it is missing or returns None, the two measures count
            as independent: their errors are combined in quadrature, an unknown error as zero.

    Returns:
        One flag for each measure.
    """
    present = {i: m for i, m in enumerate(measures) if m is not None and not math.isnan(m.value)}
    if len(present) < 2:
        return [False] * len(measures)
    leader = (max if higher_is_better else min)(present, key=lambda i: present[i].value)
    best = present[leader]

    def ties(place: int, measure: Measure) -> bool:
        error = stderr_of_difference(place, leader) if stderr_of_difference and place != leader else None
        if error is None or math.isnan(error):
            error = math.hypot(*(0.0 if math.isnan(m.stderr) else m.stderr for m in (measure, best)))
        return measure.value == best.value or abs(measure.value - best.value) <= error

    tied = {place for place, measure in present.items() if ties(place, measure)}
    return [i in tied and len(tied) < len(present) for i in range(len(measures))]
