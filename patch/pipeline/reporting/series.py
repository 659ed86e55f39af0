"""Legend entries of figures: label, marker and point positions of a series."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from patch.pipeline.reporting.style import Look, looks, muted
from patch.pipeline.results.order import method_title
from patch.pipeline.runs.run import format_tile

# Maximum distance between neighbouring points of one sparsity, in percentage points.
SPREAD = 0.95


@dataclass(frozen=True)
class Series:
    """Method and pattern of a legend entry; ``tile`` is set only if a figure shows several tile sizes."""

    method: str
    pattern: str
    tile: int | None
    imported: bool = False

    @property
    def hardware_friendly(self) -> bool:
        """Return whether hardware such as sparse tensor cores accelerates the pattern."""
        return self.pattern != "unstructured"

    @property
    def label(self) -> str:
        """Label in the legend."""
        title = method_title(self.method) + (" (imported)" if self.imported else "")
        if self.pattern == "hybrid":
            return f"{title}, tile {format_tile(self.tile)}" if self.tile else title
        return f"{title}, {self.pattern}"


def with_series(summary: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``series`` and ``x``, the target sparsity in percent with an offset for each series."""
    several = summary["tile"].dropna().nunique() > 1
    series = [
        Series(
            row.method,
            row.pattern,
            int(row.tile) if several and not pd.isna(row.tile) else None,
            not pd.isna(row.variant),
        )
        for row in summary.itertuples()
    ]
    summary = summary.assign(series=series)
    levels = {level: list(dict.fromkeys(group["series"])) for level, group in summary.groupby("sparsity")}
    # Neighbouring levels must not overlap: half of each and one step between them must fit into their distance.
    neighbours = itertools.pairwise(levels.items())
    step = min([SPREAD, *(200 * (b - a) / (len(left) + len(right)) for (a, left), (b, right) in neighbours)])

    def place(level: float, member: Series) -> float:
        members = levels[level]
        return 100 * level + step * (members.index(member) - (len(members) - 1) / 2)

    return summary.assign(x=[place(row.sparsity, row.series) for row in summary.itertuples()])


def series_looks(summary: pd.DataFrame) -> dict[Series, Look]:
    """Return a look for each series; tile sizes of one method differ in marker size."""
    found = looks(summary["method"])
    series = dict.fromkeys(summary["series"])
    tiles = sorted({member.tile for member in series if member.tile})
    scales = {tile: 0.7 + 0.6 * index / max(1, len(tiles) - 1) for index, tile in enumerate(tiles)}
    return {s: replace(found[s.method], size=found[s.method].size * scales.get(s.tile, 1.0)) for s in series}


def marker(series: Series, look: Look) -> dict[str, Any]:
    """Return the style of a filled marker; patterns without hardware support are paler and smaller."""
    style = {"marker": look.marker, "linestyle": "none"}
    if series.hardware_friendly:
        edge = {"markeredgecolor": "black", "markeredgewidth": 0.4}
        return style | edge | {"color": look.color, "markersize": look.size}
    edge = {"markeredgecolor": look.color, "markeredgewidth": 0.4}
    return style | edge | {"color": muted(look.color), "markersize": 0.8 * look.size}


def hollow_marker(series: Series, look: Look) -> dict[str, Any]:
    """Return the hollow marker style of published numbers, larger than the filled one so that both stay visible."""
    color = look.color if series.hardware_friendly else muted(look.color)
    edge = {"markeredgecolor": color, "markeredgewidth": 0.9, "markerfacecolor": "none"}
    return {"marker": look.marker, "linestyle": "none", "markersize": 1.25 * look.size} | edge
