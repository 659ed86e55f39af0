"""Figure of accuracy and perplexity against measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from patch.pipeline.reporting import figure_style as style
from patch.pipeline.results.order import percent
from patch.pipeline.results.speed import Quartiles, SpeedRecord, Timed
from patch.pipeline.runs.run import ModelInfo

# Height in inches of the first row of panels with the legend, and of each other row.
FIRST_ROW, ROW = 3.1, 2.4
# Distance between points that share a speed, and margin beside the outermost points, as fractions of the speed range.
STEP, ROOM = 0.028, 0.1
# Minimum speed range of a panel, so that noise does not fill it.
NARROWEST = 0.1
# Fraction of white in the colour of the lowest of several sparsities.
PALEST = 0.75
BARS = {"ecolor": "0.55", "elinewidth": 0.7}
LINE = {"linewidth": 0.8, "alpha": 0.6, "zorder": 1.5}
NO_SPEEDUP = style.DOTTED_LINE | {"zorder": 1}
# Position of the 2:4 quartile bracket and the room for it below all points, as fractions of a panel's height.
BRACKET, FOOT = 0.03, 0.07


@matplotlib.rc_context(style.STYLE)
def speedup(frame: pd.DataFrame, record: SpeedRecord, model: ModelInfo) -> Figure:
    """Return a figure of accuracy (left) and perplexity (right) against measured speedup, with dense = 1.

    Each number of new tokens has a row of panels. All 2:4 methods share one measured speed. They are drawn side by
    side, with the quartiles of the speed below them. Rows without a measured speed, such as unstructured ones, are left
    out. A model that is measured on no tasks has panels of perplexity alone.

    Args:
        frame: tidy frame that `patch.pipeline.results.collect` returns.
        record: speed record of the model.
        model: model to draw.
    """
    summary, sizes = style.quality(frame, model), record.settings
    metrics = style.measured(summary)
    figure = Figure(figsize=(style.TEXT_WIDTH, FIRST_ROW + ROW * (len(sizes.new_tokens) - 1)), layout="constrained")
    panels = figure.subplots(len(sizes.new_tokens), len(metrics), squeeze=False)
    for axes, new in zip(panels, sizes.new_tokens, strict=True):
        data = _with_speeds(summary, record.timed_with(new))
        low = min([1.0, *(speed.low for speed in data["speed"])])
        high = max([1.0, *(speed.high for speed in data["speed"])])
        width = max(NARROWEST, high - low)
        for axis, metric in zip(axes, metrics, strict=True):
            _panel(axis, data[data["metric"] == metric], metric, width)
            axis.set_xlim(low - ROOM * width, high + ROOM * width)
        title = f"{model.title} on {record.hardware}: batch {sizes.batch_size}, {new} new tokens"
        axes[0].set_title(title, loc="left")
    style.add_legend(figure, _legend(data))
    return figure


def _with_speeds(summary: pd.DataFrame, timed: Sequence[Timed]) -> pd.DataFrame:
    """Return the rows that have a measured speed, with the speed and the series that they are drawn in."""
    speeds = [_speed(row, timed) for row in summary.itertuples()]
    summary = summary.assign(speed=speeds)[np.array([speed is not None for speed in speeds], dtype=bool)]
    return style.with_series(summary.reset_index(drop=True))


def _speed(row: tuple, candidates: Sequence[Timed]) -> Quartiles | None:
    """Return the speedup of a summary row, or None if it was not measured; all 2:4 rows share one speedup."""
    tile, variant = (None if pd.isna(value) else value for value in (row.tile, row.variant))
    for timed in candidates:
        run = timed.run
        own = (run.method, run.sparsity, run.tile, run.variant) == (row.method, row.sparsity, tile, variant)
        if run.pattern == row.pattern and (own or run.pattern in ("2:4", "dense")):
            return timed.speedup
    return None


def _panel(axis: Axes, data: pd.DataFrame, metric: str, width: float) -> None:
    highest = style.ceiling(data["value"], metric)
    axis.axvline(1.0, **NO_SPEEDUP)
    for value in data.loc[data["pattern"] == "dense", "value"].clip(upper=highest):
        axis.axhline(value, **style.DENSE_LINE, zorder=1)
    data = data.assign(height=data["value"].clip(upper=highest), stderr=data["stderr"].fillna(0.0))
    together = data[data["pattern"] == "2:4"]
    middle = (len(together) - 1) / 2
    for place, row in enumerate(together.itertuples()):
        x = row.speed.median + STEP * width * (place - middle)
        axis.errorbar(x, row.height, yerr=row.stderr, **style.marker(row.series), **BARS, zorder=2.5)
    for series, points in data[data["pattern"] == "hybrid"].groupby("series", sort=False):
        shades = _shades(points, series)
        axis.plot([speed.median for speed in points["speed"]], points["height"], color=series.look.color, **LINE)
        for row in points.itertuples():
            speed = row.speed
            across = [[speed.median - speed.low], [speed.high - speed.median]]
            bars = style.marker(shades[row.sparsity]) | BARS
            axis.errorbar(speed.median, row.height, xerr=across, yerr=row.stderr, **bars, zorder=3)
    for speed in together["speed"].head(1):
        _bracket(axis, speed)
    axis.set_xlabel("Measured speedup (dense = 1)")
    axis.set_ylabel(style.LABELS[metric].removesuffix(" (log scale)"))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.yaxis.set_major_locator(MaxNLocator(6))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _bracket(axis: Axes, speed: Quartiles) -> None:
    """Draw the quartiles of the speed that all 2:4 methods share."""
    low, high = axis.get_ylim()
    axis.set_ylim(low - FOOT * (high - low), high)
    across = axis.get_xaxis_transform()
    axis.plot([speed.low, speed.high], [BRACKET] * 2, "|-", transform=across, color="0.55", linewidth=0.8)
    axis.text(speed.high, BRACKET, "  2:4", transform=across, fontsize="small", color="0.4", va="center")


def _shades(points: pd.DataFrame, series: style.Series) -> dict[float, style.Series]:
    """Return the series in a shade of its colour for each sparsity; lower sparsities are paler."""
    levels = sorted(set(points["sparsity"]), reverse=True)
    shades = {}
    for index, level in enumerate(levels):
        white = PALEST * index / max(1, len(levels) - 1)
        color = tuple(part + white * (1 - part) for part in to_rgb(series.look.color))
        shades[level] = replace(series, look=replace(series.look, color=color))
    return shades


def _legend(data: pd.DataFrame) -> list[Line2D]:
    handles = []
    for series, points in data[data["pattern"] != "dense"].groupby("series", sort=False):
        if series.pattern != "hybrid":
            handles.append(Line2D([], [], label=series.label, **style.marker(series)))
            continue
        for level, shaded in _shades(points, series).items():
            handles.append(Line2D([], [], label=f"{series.label}, {percent(level)} %", **style.marker(shaded)))
    handles.append(Line2D([], [], label="Dense", **style.DENSE_LINE))
    return [*handles, Line2D([], [], label="Speed of dense", **NO_SPEEDUP)]
