"""Figure of the training curves of learned methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patch.errors import InputError
from patch.learning.curve import read_lines
from patch.pipeline.reporting.figure_style import DOTTED_LINE, SEQUENCE, STYLE, TEXT_WIDTH
from patch.pipeline.runs.run import ModelInfo

# Fraction of a run's points that the moving average covers.
SMOOTHING = 0.05
DASHES: list[str | tuple[int, tuple[float, ...]]] = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1))]
TEMPERATURES = {"pattern_temperature": ("2:4 pattern", "-"), "tile_temperature": ("tile", (0, (4, 1.5)))}


def read_curve(path: Path | str) -> pd.DataFrame:
    """Read a training curve with one JSON object per line; null and absent keys become NaN.

    Raises:
        InputError: the file is missing or empty, or a line is not a JSON object of numbers with an increasing `step`.
    """
    lines, fault = read_lines(path)
    if fault:
        raise InputError(f"{fault}; a curve has one JSON object of numbers for each step")
    if not lines:
        raise InputError(f"{path}: no such file, or it is empty; expected one JSON object for each step")
    return pd.DataFrame([line.values for line in lines]).apply(pd.to_numeric)


@matplotlib.rc_context(STYLE)
def curves(files: Mapping[str, Path | str], model: ModelInfo) -> Figure:
    """Return a figure of loss, cross-entropy, density with its target, and temperature over the learning steps.

    Args:
        files: label -> path of a run's JSON lines, in the order of the legend.
        model: model named in the title.

    Raises:
        InputError: see `read_curve`.
    """
    runs = {label: read_curve(path) for label, path in files.items()}
    looks = {
        label: {"color": SEQUENCE[i % len(SEQUENCE)], "linestyle": DASHES[i % len(DASHES)]}
        for i, label in enumerate(runs)
    }
    figure = Figure(figsize=(TEXT_WIDTH, 4.1), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for axis, key, label in ((axes[0, 0], "loss", "Loss"), (axes[0, 1], "cross_entropy", "Cross-entropy (nats)")):
        _smoothed(axis, runs, looks, key)
        axis.set_ylabel(label)
    _densities(axes[1, 0], runs, looks)
    _temperatures(axes[1, 1], runs, looks)
    for axis in axes[1]:
        axis.set_xlabel("Step")
    axes[0, 0].set_title(model.title, loc="left")
    figure.align_ylabels()
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, max(1, len(handles))))
    return figure


def _values(run: pd.DataFrame, key: str) -> pd.Series | None:
    """Return a column without missing values, indexed by step, or None if the run does not have it."""
    if key not in run or run[key].isna().all():
        return None
    return run.set_index("step")[key].dropna()


def _smoothed(axis: Axes, runs: dict[str, pd.DataFrame], looks: dict[str, dict], key: str) -> None:
    bounds = []
    for label, run in runs.items():
        values = _values(run, key)
        if values is None:
            continue
        sequence = max(1, round(SMOOTHING * len(values)))
        smooth = values.rolling(sequence, center=True, min_periods=1).mean()
        axis.plot(values.index, values, color=looks[label]["color"], linewidth=0.5, alpha=0.25)
        axis.plot(smooth.index, smooth, **looks[label])
        bounds += list(np.nanpercentile(values, [0.5, 99.5]))
    if bounds:
        # The limits exclude outliers of the raw curves, which would flatten the smoothed ones.
        margin = 0.05 * (max(bounds) - min(bounds)) or 0.05
        axis.set_ylim(min(bounds) - margin, max(bounds) + margin)


def _densities(axis: Axes, runs: dict[str, pd.DataFrame], looks: dict[str, dict]) -> None:
    for label, run in runs.items():
        values, target = _values(run, "density"), _values(run, "target_density")
        if values is None or target is None:
            continue
        axis.plot(target.index, target, **DOTTED_LINE)
        axis.plot(values.index, values, **looks[label])
    axis.set_ylabel("Density")
    # Leave room for the legend above the highest line.
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.2 * (high - low))
    axis.legend(handles=[Line2D([], [], **DOTTED_LINE, label="target")], loc="upper right")


def _temperatures(axis: Axes, runs: dict[str, pd.DataFrame], looks: dict[str, dict]) -> None:
    """Draw the temperature schedules; a shared schedule is drawn once, in black, so that no run hides another."""
    handles = []
    for key, (title, dash) in TEMPERATURES.items():
        schedules: dict[tuple, list[str]] = {}
        for label, run in runs.items():
            values = _values(run, key)
            if values is not None:
                schedules.setdefault(tuple(values.items()), []).append(label)
        for points, labels in schedules.items():
            color = looks[labels[0]]["color"] if len(schedules) > 1 and len(labels) == 1 else "black"
            axis.plot(*zip(*points, strict=True), color=color, linestyle=dash)
        if schedules:
            handles.append(Line2D([], [], color="black", linestyle=dash, label=title))
    axis.set_ylabel("Temperature")
    if handles:
        axis.legend(handles=handles, loc="upper right")
