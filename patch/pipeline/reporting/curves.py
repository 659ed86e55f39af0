"""Figure of the training curves of learned methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patch.errors import InputError
from patch.learning.curve import read_lines
from patch.pipeline.reporting import figure_style as style
from patch.pipeline.results.order import percent, variant_title
from patch.pipeline.runs.run import ModelInfo, Run

# Fraction of a run's steps that the moving average of the cross-entropy covers.
SMOOTHING = 0.1
# Number of markers on a curve with a value for each step.
MARKERS = 5
# Height of a row of panels, in inches.
PANEL_HEIGHT = 1.9
# Fractions of black in the colour of the first of several runs of a method, and of white in that of the last.
DARKEST, PALEST = 0.4, 0.4
INITIAL = {"linewidth": 0.8, "linestyle": (0, (4, 2))}
# Key of a curve -> label of its panel, in the order of the panels.
PANELS = {
    "cross_entropy": "Cross-entropy (nats)",
    "held_out_loss": "Held-out loss (nats)",
    "density": "Density",
    "kept_norm": "Kept norm",
}


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


@dataclass(frozen=True)
class Curve:
    """Training curve of a run, its label in the legend and the style of its line."""

    frame: pd.DataFrame
    label: str
    line: dict[str, Any]

    def values(self, key: str) -> pd.Series:
        """Return a column without missing values, indexed by step; it is empty if the curve lacks it."""
        if key == "cross_entropy" and key not in self.frame:
            # ProxSparse has no other term in its loss.
            key = "loss"
        return self.frame.set_index("step")[key].dropna() if key in self.frame else pd.Series(dtype=float)


@matplotlib.rc_context(style.STYLE)
def curves(files: Mapping[Run, Path | str], model: ModelInfo) -> Figure:
    """Return a figure of the learning of masks over the steps.

    Panels: cross-entropy of the training batches (moving average), held-out loss of the final-form mask, density with
    its target, and kept norm. A panel for which no curve has values is left out.

    Args:
        files: learned run -> path of its JSON lines, in the order of the legend.
        model: model named in the title.

    Raises:
        InputError: see `read_curve`.
    """
    lines = curve_lines(list(files))
    drawn = [Curve(read_curve(path), *line) for path, line in zip(files.values(), lines, strict=True)]
    keys = [key for key in PANELS if key == "cross_entropy" or any(len(curve.values(key)) for curve in drawn)]
    if not any(len(curve.values("target_density")) for curve in drawn):
        keys = [key for key in keys if key != "density"]
    columns = len(keys) if len(keys) < 4 else 2
    rows = len(keys) // columns
    figure = Figure(figsize=(style.figure_width(columns), PANEL_HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    draw = {"cross_entropy": _cross_entropy, "held_out_loss": _held_out, "density": _density, "kept_norm": _kept_norm}
    for axis, key in zip(axes.ravel(), keys, strict=True):
        draw[key](axis, drawn)
        axis.set_ylabel(PANELS[key])
        axis.set_xlabel("Step")
    style.set_title(figure, axes[0, 0], model.title)
    figure.align_ylabels()
    handles = [Line2D([], [], label=curve.label, **curve.line) for curve in drawn]
    if "held_out_loss" in keys:
        handles.append(Line2D([], [], label="Initial mask", color=style.GREY, **INITIAL))
    if "density" in keys:
        handles.append(Line2D([], [], label="Target density", **style.DOTTED_LINE))
    style.add_grouped_legend(figure, {"": handles}, 4 if columns > 1 else 2)
    return figure


def curve_lines(runs: Sequence[Run]) -> list[tuple[str, dict[str, Any]]]:
    """Return the label and the line style of each run: marker and colour of its method, in a shade of its own."""
    looks = style.looks(run.method for run in runs)
    several_tiles = len({run.tile for run in runs if run.tile}) > 1
    same = {run: [other for other in runs if looks[other.method].color == looks[run.method].color] for run in runs}
    lines = []
    for run in runs:
        look = looks[run.method]
        series = style.Series(run.method, run.pattern, run.tile if several_tiles else None, False, look)
        label = series.label + (f", {percent(run.sparsity)} %" if run.pattern == "hybrid" else "")
        label += f", {variant_title(run.variant)}" if run.variant else ""
        color = _shade(look.color, same[run].index(run), len(same[run]))
        marker = style.marker(replace(series, look=replace(look, color=color, size=0.8 * look.size)))
        lines.append((label, marker | {"linestyle": "-", "markeredgewidth": 0.5}))
    return lines


def _shade(color: str, index: int, count: int) -> Any:
    """Return one of several shades of a colour, from dark to pale."""
    if count == 1:
        return color
    white = (DARKEST + PALEST) * index / (count - 1) - DARKEST
    return style.mixed(color, "white" if white > 0 else "black", abs(white))


def _plot(axis: Axes, drawn: Sequence[Curve], values: Sequence[pd.Series]) -> None:
    """Draw a value for each step, with a few markers."""
    for index, (curve, of_curve) in enumerate(zip(drawn, values, strict=True)):
        step = max(1, len(of_curve) // MARKERS)
        # Curves of equal batches rise and fall together, so their markers must not coincide.
        axis.plot(of_curve.index, of_curve, markevery=(step * index // len(drawn), step), **curve.line)


def _cross_entropy(axis: Axes, drawn: Sequence[Curve]) -> None:
    _plot(axis, drawn, [moving_average(curve.values("cross_entropy")) for curve in drawn])


def moving_average(values: pd.Series) -> pd.Series:
    """Return the mean of the values in a window of ``SMOOTHING`` of the steps around each step."""
    return values.rolling(max(1, round(SMOOTHING * len(values))), center=True, min_periods=1).mean()


def _held_out(axis: Axes, drawn: Sequence[Curve]) -> None:
    for curve in drawn:
        values, initial = curve.values("held_out_loss"), curve.values("initial_held_out_loss")
        axis.plot(values.index, values, **curve.line)
        if len(initial):
            ends = [0, curve.frame["step"].max()]
            axis.plot(ends, [initial.iloc[0]] * 2, color=curve.line["color"], zorder=1.5, **INITIAL)


def _density(axis: Axes, drawn: Sequence[Curve]) -> None:
    targeted = [curve for curve in drawn if len(curve.values("target_density"))]
    _plot(axis, targeted, [curve.values("density") for curve in targeted])
    for curve in targeted:
        target = curve.values("target_density")
        axis.plot(target.index, target, **style.DOTTED_LINE)


def _kept_norm(axis: Axes, drawn: Sequence[Curve]) -> None:
    _plot(axis, drawn, [curve.values("kept_norm") for curve in drawn])
