"""Conversion of a table to formatted text, before it is rendered in a format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from patch.pipeline.reporting.table import DASH, NOISY, Measure, Row, Table
from patch.pipeline.reporting.units import metric_value
from patch.pipeline.results.order import percent


@dataclass(frozen=True)
class Layout:
    """Formatted text of a table.

    Attributes:
        texts: one string for each cell. Each column has two titles: its group, such as a model, and its name.
        bold: flags of the shape of ``texts``.
        numeric: one flag for each column; numeric columns are right-aligned.
        ruled: positions of the rows with a rule above them.
    """

    texts: pd.DataFrame
    bold: np.ndarray
    numeric: list[bool]
    ruled: list[int]

    @classmethod
    def plain(
        cls, titles: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], labels: int, ruled: list[int]
    ) -> Self:
        """Return the layout of rows without bold text.

        Args:
            titles: group and name of each column.
            rows: one string for each column.
            labels: number of leading text columns. The others are numeric.
            ruled: positions of the rows with a rule above them.
        """
        texts = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(titles))
        return cls(texts, np.zeros(texts.shape, bool), [index >= labels for index in range(len(titles))], ruled)

    @classmethod
    def of(cls, table: Table, published: bool = True) -> Self:
        """Return the layout of a table of results.

        ``published`` adds the paper's numbers of comparable models to headings that have any.
        """
        rows = table.rows
        labels = {
            "Model": [row.model or "" for row in rows],
            "Sparsity (%)": [percent(row.sparsity) for row in rows],
            "Method": [row.method for row in rows],
            "Pattern": [row.pattern for row in rows],
            "Setting": [row.setting for row in rows],
            "Achieved (%)": [_achieved(row) for row in rows],
        }
        measured = any(row.achieved for row in rows)
        optional = {"Model": table.names_models, "Setting": table.names_settings, "Achieved (%)": measured}
        names = [name for name in labels if optional.get(name, True)]
        titles, columns = [("", name) for name in names], [labels[name] for name in names]
        bold = [[False] * len(rows) for _ in columns]
        for index, heading in enumerate(table.header):
            measures = [row.measures[index] for row in rows]
            group = heading.model.title if heading.model else ""
            titles.append((group, heading.text))
            columns.append([_measured(measure, heading.metric, table.deviation) for measure in measures])
            bold.append([measure is not None and measure.best for measure in measures])
            measures = [m if row.comparable else None for m, row in zip(measures, rows, strict=True)]
            known = any(m and not math.isnan(m.published) for m in measures)
            if published and known and table.comparable(heading):
                titles.append((group, "Paper (Δ)"))
                columns.append([_published(measure, heading.metric) for measure in measures])
                bold.append([False] * len(rows))
        texts = pd.DataFrame(list(zip(*columns, strict=True)), columns=pd.MultiIndex.from_tuples(titles))
        numeric = [i >= len(names) or name.endswith(" (%)") for i, (_, name) in enumerate(titles)]
        ruled = starts([(row.model, row.sparsity) for row in rows])[1:]
        return cls(texts, np.array(bold, dtype=bool).T, numeric, ruled)

    @property
    def groups(self) -> list[tuple[str, int, int]]:
        """Return the title, the first and the last position of each group of adjacent columns."""
        titles = [group for group, _ in self.texts.columns]
        firsts = starts(titles)
        return [(titles[i], i, end - 1) for i, end in zip(firsts, [*firsts[1:], len(titles)], strict=True)]

    def marked(self, escape: Callable[[str], str], bold: str) -> pd.DataFrame:
        """Return the escaped texts and titles; ``bold`` is the markup of bold text, such as `**{}**`.

        Tables without groups have one level of titles.
        """
        plain = self.texts.map(escape)
        titles = [(escape(group), escape(name)) for group, name in self.texts.columns]
        columns = pd.MultiIndex.from_tuples(titles) if any(group for group, _ in titles) else [n for _, n in titles]
        return pd.DataFrame(np.where(self.bold, plain.map(bold.format), plain), columns=columns)


def starts(values: Sequence[object]) -> list[int]:
    """Return the positions of the values that differ from the one before them, beginning with the first position."""
    return [index for index, value in enumerate(values) if index == 0 or value != values[index - 1]]


def _achieved(row: Row) -> str:
    values = [100 * value for value in row.achieved.values()]
    if not values:
        return DASH
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}{DASH}{high}"


def _measured(measure: Measure | None, metric: str, deviation: bool) -> str:
    if measure is None:
        return DASH
    value, error = metric_value(measure.value, metric), measure.spread if deviation else measure.stderr
    decimals = len(value.partition(".")[2])
    if measure.noisy:
        low, high = (f"{quartile:.{decimals}f}" for quartile in measure.noisy)
        return f"{value} [{low}, {high}] {NOISY}"
    return value if math.isnan(error) else f"{value} ± {error:.{decimals}f}"


def _published(measure: Measure | None, metric: str) -> str:
    if measure is None or math.isnan(measure.published):
        return DASH
    published = metric_value(measure.published, metric)
    gap = measure.value - measure.published
    return f"{published} ({'−' if gap < 0 else '+'}{metric_value(abs(gap), metric)})"
