"""Figure of accuracy and perplexity against sparsity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from patch.pipeline.reporting import figure_style as style
from patch.pipeline.runs.run import ModelInfo

PUBLISHED_DENSE_LINE = style.DENSE_LINE | {"color": "0.6"}
# Fraction of a panel's height below the axis break, used if chance is far below all points.
BREAK_HEIGHT = 0.17
# Margin beside the outermost sparsities, in percentage points.
ROOM = 2.0
# Height of a row of panels, in inches.
PANEL_HEIGHT = 2.3
FRONT_LINE = {"color": "0.35", "linewidth": 1.0, "alpha": 0.8}


@matplotlib.rc_context(style.STYLE)
def pareto(
    frame: pd.DataFrame, model: ModelInfo, chance: float | None = None, published_title: str | None = None
) -> Figure:
    """Return a figure of accuracy (left) and perplexity (right, logarithmic) against target sparsity.

    Points of one sparsity are drawn side by side, at most ``style.REACH`` points from it. The Pareto front covers the
    measured points of hardware-friendly patterns: dense, N:M and hybrid. The paper's numbers have hollow markers.
    Published numbers of another model are drawn in separate panels. A model that is measured on no tasks has panels of
    perplexity alone.

    Args:
        frame: tidy frame that `patch.pipeline.results.collect` returns.
        model: model to draw.
        chance: mean chance accuracy in percent, see `patch.pipeline.results.collect.mean_chance`.
        published_title: the paper's name of the corresponding model; by default its id.
    """
    summary = style.with_series(style.quality(frame, model))
    published = bool(summary["published"].notna().any())
    panels = [["value", "published"]] if published and model.comparable else [["value"]]
    panels += [["published"]] if published and not model.comparable else []
    metrics = style.measured(summary)
    figure = Figure(figsize=(style.figure_width(len(metrics)), PANEL_HEIGHT * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(metrics), squeeze=False)
    beyond = False
    for row, columns in enumerate(panels):
        for axis, metric in zip(axes[row], metrics, strict=True):
            data = summary[summary["metric"] == metric]
            beyond |= _panel(axis, data, metric, columns)
            _dress(axis, summary, metric)
    if chance is not None:
        _chance(axes[0, 0], chance)
    style.set_title(figure, axes[0, 0], f"{model.title}, measured" if len(panels) == 2 else model.title)
    if len(panels) == 2:
        name = published_title or model.published
        style.set_title(figure, axes[1, 0], f"{name}, as published (another model: only the order compares)")
    figure.align_ylabels()
    columns = 2 if len(metrics) == 1 else 4
    style.add_grouped_legend(figure, _legend(summary, panels, chance is not None, beyond), columns)
    return figure


def _panel(axis: Axes, data: pd.DataFrame, metric: str, columns: list[str]) -> bool:
    """Draw one panel and return whether a point lies above it."""
    values = data[columns].to_numpy()
    highest = style.ceiling(values.flat, metric)
    if metric == "perplexity":
        axis.set_yscale("log")
    for column in columns:
        overlaid = len(columns) == 2 and column == "published"
        for value in data.loc[data["pattern"] == "dense", column].dropna():
            axis.axhline(value, **(PUBLISHED_DENSE_LINE if overlaid else style.DENSE_LINE), zorder=1)
        for series, points in data[data["pattern"] != "dense"].groupby("series", sort=False):
            height = points[column].clip(upper=highest)
            above = {"clip_on": False, "zorder": 3 if column == "value" else 2.5}
            if column == "value":
                errors = points["stderr"].fillna(0).where(points[column] <= highest, 0)
                bars = {"ecolor": "0.45", "elinewidth": 0.7, "capsize": 0}
                axis.errorbar(points["x"], height, errors, **bars, **style.marker(series), **above)
            else:
                axis.plot(points["x"], height, **style.hollow_marker(series), **above)
    if "value" in columns:
        _front(axis, data, higher_is_better=metric == "accuracy")
    beyond = bool((values > highest).any())
    if beyond:
        axis.set_ylim(top=highest)
    return beyond


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Return the indices of the non-dominated points, by rising sparsity.

    A point is dominated by one that is at least as good in both coordinates and better in one. All of several equal
    points stay.

    Args:
        points: (sparsity, value); more sparsity is better. Values that are not finite never belong to the front.
        higher_is_better: True if a larger value is better.
    """
    sign = 1 if higher_is_better else -1
    finite = {i: (sparsity, sign * value) for i, (sparsity, value) in enumerate(points) if math.isfinite(value)}

    def dominated(a: tuple[float, float]) -> bool:
        return any(b[0] >= a[0] and b[1] >= a[1] and a != b for b in finite.values())

    return sorted((i for i, point in finite.items() if not dominated(point)), key=lambda i: (finite[i][0], -i))


def _front(axis: Axes, data: pd.DataFrame, higher_is_better: bool) -> None:
    friendly = data[np.array([series.hardware_friendly for series in data["series"]], dtype=bool)]
    points = list(zip(friendly["sparsity"], friendly["value"], strict=True))
    front = friendly.iloc[pareto_front(points, higher_is_better)]
    # A point's quality is available at every lower sparsity, so each step ends at its point.
    axis.step(100 * front["sparsity"], front["value"], where="pre", **FRONT_LINE, zorder=1.5)


def _dress(axis: Axes, summary: pd.DataFrame, metric: str) -> None:
    sparse = summary[summary["pattern"] != "dense"]
    if len(sparse):
        # Dense is drawn as a line, so the axis needs no room for a point at 0 %.
        levels = sorted({round(100 * level, 4) for level in sparse["sparsity"]})
        axis.set_xlim(levels[0] - ROOM, levels[-1] + ROOM)
        axis.set_xticks(levels)
    axis.set_xlabel("Target sparsity (%)")
    axis.set_ylabel(style.LABELS[metric])
    low, high = axis.get_ylim()
    wide = metric == "perplexity" and high > 6 * low
    steps = (1, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5)
    axis.yaxis.set_major_locator(LogLocator(subs=steps, numticks=9) if wide else MaxNLocator(6, steps=(1, 2, 5, 10)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _chance(axis: Axes, chance: float) -> None:
    """Draw chance as a line, below an axis break if it is far below all points."""
    low, high = axis.get_ylim()
    if low - chance <= high - low:
        axis.axhline(chance, **style.DOTTED_LINE)
        return
    # Only the part above the break has ticks because the scale differs below it.
    ticks = [tick for tick in axis.get_yticks() if low <= tick <= high]
    foot = BREAK_HEIGHT / (1 - BREAK_HEIGHT) * (high - low)
    axis.set_ylim(low - foot, high)
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    across = axis.get_yaxis_transform()
    axis.plot([0, 1], [low - 0.75 * foot] * 2, transform=across, **style.DOTTED_LINE)
    note = {"color": style.GREY, "fontsize": "small", "va": "bottom"}
    axis.text(0.03, low - 0.7 * foot, f"chance {chance:.1f} %", transform=across, **note)
    ends = [low - 0.55 * foot, low - 0.25 * foot]
    above = {"transform": across, "clip_on": False}
    axis.plot([0, 0], ends, color="white", linewidth=2.5, solid_capstyle="butt", **above, zorder=4)
    stroke = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 7, "markeredgewidth": 0.6}
    axis.plot([0, 0], ends, color="black", linestyle="none", **stroke, **above, zorder=5)


def _legend(summary: pd.DataFrame, panels: list[list[str]], chance: bool, beyond: bool) -> dict[str, list[Line2D]]:
    groups: dict[str, list[Line2D]] = {"One-shot": [], "Unstructured": [], "Learned": []}
    for series in summary.loc[summary["pattern"] != "dense", "series"].unique():
        handle = Line2D([], [], label=series.label, **style.marker(series))
        groups[series.group].append(handle)
    lines = [Line2D([], [], label="Dense", **style.DENSE_LINE)]
    if len(panels[0]) == 2:
        lines.append(Line2D([], [], label="Dense, published", **PUBLISHED_DENSE_LINE))
    lines.append(Line2D([], [], label="Pareto front", **FRONT_LINE))
    if chance:
        lines.append(Line2D([], [], label="Chance", **style.DOTTED_LINE))
    if any("published" in columns for columns in panels):
        any_series = style.Series("", "", None, False, style.Look("o", "black"))
        lines.append(Line2D([], [], label="Hollow: published", **style.hollow_marker(any_series)))
    if beyond:
        lines.append(Line2D([], [], linestyle="none", label="Upper edge: beyond the axis"))
    return groups | {"": lines}
