"""Density figure: deviation of each layer's density from the target, by block and projection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from patch.pipeline.reporting import figure_style as style
from patch.pipeline.results.order import method_title, percent
from patch.pipeline.results.record import Record, projections
from patch.pipeline.runs.run import ModelInfo, format_tile

ORDER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# In inches: height of a row of a map, of its title, and of the axis label; room for labels and the colour bar.
ROW_HEIGHT, TITLE_HEIGHT, LABEL_HEIGHT, MARGIN = 0.2, 0.3, 0.35, 1.05
# Widths in inches of a cell with a value such as `−12`, and of one with `−12.3`.
CELL, WIDE_CELL = 0.165, 0.32
# Maximum number of maps side by side.
COLUMNS = 3


@matplotlib.rc_context(style.STYLE)
def density(records: Iterable[Record], model: ModelInfo) -> Figure:
    """Return a figure with a heat map for each hybrid run: density minus target density in points, mean over seeds.

    Columns are decoder blocks and rows are projections. Zero is white, and all maps share one scale. Values are printed
    in the cells if they fit.
    """
    hybrid = [record for record in records if record.run.model == model.name and record.run.pattern == "hybrid"]
    frame = _deviations(hybrid)
    titles, blocks = list(frame["title"].unique()), sorted(frame["block"].unique())
    if frame.empty:
        figure = Figure(figsize=(style.COLUMN_WIDTH, 1), layout="constrained")
        axis = figure.subplots()
        axis.set_axis_off()
        style.set_title(figure, axis, f"{model.title}: no hybrid run")
        return figure
    names = sorted_projections(frame["projection"].unique())
    columns = min(len(titles), COLUMNS, max(1, int((style.TEXT_WIDTH - MARGIN) / (CELL * len(blocks)))))
    narrow = columns == 1 and WIDE_CELL * len(blocks) <= style.COLUMN_WIDTH - MARGIN
    width = style.COLUMN_WIDTH if narrow else style.TEXT_WIDTH
    rows = math.ceil(len(titles) / columns)
    height = rows * (ROW_HEIGHT * len(names) + TITLE_HEIGHT) + TITLE_HEIGHT + LABEL_HEIGHT
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    means = frame.groupby(["title", "projection", "block"])["deviation"].agg(lambda d: math.fsum(d) / len(d))
    limit = max(5, 5 * math.ceil(means.abs().max() / 5))
    map_width = (width - MARGIN) / columns
    for axis, title in zip(axes, titles, strict=False):
        grid = means[title].unstack("block").reindex(index=names, columns=blocks).to_numpy()
        image = _heat_map(axis, grid, limit, map_width / len(blocks))
        axis.set_title(style.wrapped(title, map_width), loc="left")
        axis.set_yticks(range(len(names)), [name.removesuffix("_proj") for name in names])
        step = math.ceil(CELL * len(blocks) / map_width)
        axis.set_xticks(range(0, len(blocks), step), blocks[::step])
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    for axis in axes[: len(titles)][-columns:]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("Block")
    title = style.wrapped(model.title, width)
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.STYLE["axes.titlesize"])
    bar = figure.colorbar(image, ax=list(axes), pad=0.01, aspect=10 * rows, label="Density − target (points)")
    bar.outline.set_linewidth(0.4)
    return figure


def _deviations(records: Sequence[Record]) -> pd.DataFrame:
    """Return the density minus the target density of each layer of each run in points, highest sparsity first."""
    several_tiles = len({record.run.tile for record in records}) > 1
    rows = []
    for record in sorted(records, key=lambda r: (-r.run.sparsity, r.run.method, r.run.tile or 0, r.run.seed)):
        run = record.run
        tile = f", tile {format_tile(run.tile)}" if several_tiles else ""
        imported = " (imported)" if run.variant else ""
        title = f"{method_title(run.method)}{imported}, {percent(run.sparsity)} %{tile}"
        for name, place in projections(record.density).items():
            rows.append((title, *place, 100 * (record.density[name] - (1 - run.sparsity))))
    return pd.DataFrame(rows, columns=["title", "projection", "block", "deviation"])


def sorted_projections(names: Iterable[str]) -> list[str]:
    """Return projections in the order of a decoder block, unknown ones last and by name."""
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _heat_map(axis: Axes, grid: np.ndarray, limit: float, cell_width: float) -> AxesImage:
    # ColorBrewer's red-white-blue is safe for colour-blind readers. Layers that are not pruned stay grey.
    cmap = matplotlib.colormaps["RdBu"].with_extremes(bad="0.85")
    image = axis.imshow(grid, vmin=-limit, vmax=limit, cmap=cmap, aspect="auto", interpolation="nearest")
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    if cell_width >= CELL:
        decimals = 1 if cell_width >= WIDE_CELL else 0
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                color = text_color(image.cmap(image.norm(value)))
                axis.text(column, row, _number(value, decimals), ha="center", va="center", color=color, fontsize=7)
    return image


def _number(value: float, decimals: int) -> str:
    """Return a number without a sign if it is positive or rounded to zero."""
    text = f"{abs(value):.{decimals}f}"
    return f"−{text}" if value < 0 and float(text) else text


def text_color(background: Sequence[float]) -> str:
    """Return black or white, whichever has the higher contrast with an sRGB colour (WCAG 2.1); it is at least 4.5."""
    rgb = np.asarray(background[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "black" if (luminance + 0.05) ** 2 >= 0.05 * 1.05 else "white"
