"""Figure of measured speed beside accuracy and perplexity."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from patch.pipeline.reporting import figure_style as style
from patch.pipeline.results.order import percent
from patch.pipeline.results.speed import SpeedRecord, Timed
from patch.pipeline.runs.run import ModelInfo

# Heights in inches: title and axis labels, and each row.
FRAME, ROW = 0.95, 0.19
# Patterns from top to bottom.
PATTERNS = ("dense", "hybrid", "2:4")
# Minimum range of the speed axis, so that noise does not fill it.
NARROWEST = 0.1
TICKS = {"nbins": 5, "steps": [1, 2, 5, 10]}
BARS = {"elinewidth": 0.8, "capsize": 0, "zorder": 3}
BAND = {"color": "0.9", "linewidth": 0, "zorder": 1}
RULE = {"color": "0.7", "linewidth": 0.6, "zorder": 1}
DENSE_LINE = style.DENSE_LINE | {"zorder": 1.5}


@matplotlib.rc_context(style.STYLE)
def speedup(frame: pd.DataFrame, record: SpeedRecord, model: ModelInfo) -> Figure:
    """Return a dot plot with a row for each method and sparsity: measured speedup (dense = 1), accuracy, perplexity.

    Each number of new tokens has a panel of speed. All 2:4 methods share one measured speed, whose quartiles are a band
    behind their rows. Noisy speeds have hollow markers. Rows without a measured speed, such as unstructured ones, are
    left out. A model that is measured on no tasks has no panel of accuracy.

    Args:
        frame: tidy frame that `patch.pipeline.results.collect` returns.
        record: speed record of the model.
        model: model to draw.
    """
    summary = style.quality(frame, model)
    metrics, sizes = style.measured(summary), record.settings
    data = _with_rows(summary, record.timed)
    rows = data.drop_duplicates("row").sort_values("row")
    figure = Figure(figsize=(style.TEXT_WIDTH, FRAME + ROW * max(4, len(rows))), layout="constrained")
    axes = figure.subplots(1, len(sizes.new_tokens) + len(metrics), sharey=True, squeeze=False)[0]
    for axis, new in zip(axes, sizes.new_tokens, strict=False):
        _speeds(axis, rows, record.timed_with(new))
        axis.set_xlabel(f"Speedup, {new} new tokens")
    beyond = [
        _quality(axis, data[data["metric"] == metric], metric)
        for axis, metric in zip(axes[len(sizes.new_tokens) :], metrics, strict=True)
    ]
    for axis in axes:
        _dress(axis, rows)
    title = f"{model.title} on {record.hardware}: batch {sizes.batch_size}, prompt {sizes.prompt}"
    figure.suptitle(textwrap.fill(title, 100), x=0.01, ha="left", fontsize=matplotlib.rcParams["axes.titlesize"])
    handles = []
    if any("speedup" in one.noisy for one in record.timed):
        hollow = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black"}
        handles.append(Line2D([], [], linestyle="none", label="Hollow: noisy speed", **hollow))
    if any(beyond):
        handles.append(Line2D([], [], linestyle="none", label="On the right edge: beyond the axis"))
    if handles:
        style.add_legend(figure, handles)
    return figure


def _with_rows(summary: pd.DataFrame, candidates: Sequence[Timed]) -> pd.DataFrame:
    """Return the lines of a summary that have a measured speed, with their series and their ``row`` from the top."""
    timed = np.array([_timed(line, candidates) is not None for line in summary.itertuples()], dtype=bool)
    data = style.with_series(summary[timed].reset_index(drop=True))
    keys = [(PATTERNS.index(line.pattern), line.sparsity, line.series) for line in data.itertuples()]
    # The sort is stable, so the methods of a sparsity keep the paper's order.
    order = sorted(dict.fromkeys(keys), key=lambda key: key[:2])
    return data.assign(row=[order.index(key) for key in keys])


def _timed(line: tuple, candidates: Sequence[Timed]) -> Timed | None:
    """Return the timing of a line of a summary, or None if it was not measured; all 2:4 methods share one."""
    tile, variant = (None if pd.isna(value) else value for value in (line.tile, line.variant))
    for timed in candidates:
        run = timed.run
        own = (run.method, run.sparsity, run.tile, run.variant) == (line.method, line.sparsity, tile, variant)
        if run.pattern == line.pattern and (own or run.pattern in ("2:4", "dense")):
            return timed
    return None


def _speeds(axis: Axes, rows: pd.DataFrame, candidates: Sequence[Timed]) -> None:
    """Draw the speedup of each row, with its quartiles."""
    timings = [(line, timed) for line in rows.itertuples() if (timed := _timed(line, candidates))]
    for line, timed in timings:
        speed = timed.speedup
        across = None if line.pattern == "2:4" else [[speed.median - speed.low], [speed.high - speed.median]]
        axis.errorbar(speed.median, line.row, xerr=across, **_point(line.series, "speedup" in timed.noisy))
    together = [(line.row, timed.speedup) for line, timed in timings if line.pattern == "2:4"]
    for row, speed in together[:1]:
        axis.fill_betweenx([row - 0.5, together[-1][0] + 0.5], speed.low, speed.high, **BAND)
    ends = [1.0, *(end for _, timed in timings for end in (timed.speedup.low, timed.speedup.high))]
    axis.axvline(1.0, **DENSE_LINE)
    room = 0.08 * max(NARROWEST, max(ends) - min(ends))
    axis.set_xlim(min(ends) - room, max(ends) + room)
    axis.xaxis.set_major_locator(MaxNLocator(**TICKS))


def _quality(axis: Axes, data: pd.DataFrame, metric: str) -> bool:
    """Draw a metric of each row, with its standard error, and return whether a value lies beyond the axis."""
    highest = style.ceiling(data["value"], metric)
    for line in data.itertuples():
        inside = line.value <= highest
        error = line.stderr if inside and not np.isnan(line.stderr) else 0.0
        axis.errorbar(min(line.value, highest), line.row, xerr=error, clip_on=False, **_point(line.series))
    for value in data.loc[data["pattern"] == "dense", "value"]:
        axis.axvline(value, **DENSE_LINE)
    axis.set_xlabel(style.LABELS[metric])
    axis.xaxis.set_major_locator(MaxNLocator(**TICKS))
    if metric == "perplexity":
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 6 * low else MaxNLocator(**TICKS))
        axis.xaxis.set_minor_locator(NullLocator())
    beyond = bool((data["value"] > highest).any())
    if beyond:
        axis.set_xlim(right=highest)
    return beyond


def _point(series: style.Series, noisy: bool = False) -> dict[str, Any]:
    """Return the style of a marker and its error bars; that of a noisy speed is hollow."""
    style_of = style.marker(series) | BARS | {"ecolor": series.look.color}
    hollow = {"markerfacecolor": "white", "markeredgecolor": series.look.color, "markeredgewidth": 1.0}
    return style_of | hollow if noisy else style_of


def _dress(axis: Axes, rows: pd.DataFrame) -> None:
    """Label the rows, and separate the patterns by rules."""
    axis.set_yticks(rows["row"], [_label(line) for line in rows.itertuples()])
    axis.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    patterns = list(rows["pattern"])
    for row in range(1, len(patterns)):
        if patterns[row] != patterns[row - 1]:
            axis.axhline(row - 0.5, **RULE)


def _label(line: tuple) -> str:
    if line.pattern == "dense":
        return "Dense"
    return f"{line.series.label}, {percent(line.sparsity)} %" if line.pattern == "hybrid" else line.series.label
