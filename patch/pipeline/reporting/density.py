"""Density figure: kept fraction of the weights by layer and projection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from patch.pipeline.reporting.figure_style import STYLE, TEXT_WIDTH
from patch.pipeline.results.order import method_title, percent
from patch.pipeline.results.record import Record, projections
from patch.pipeline.runs.run import ModelInfo, format_tile

ORDER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Width of a printed value such as `.75`, in inches.
VALUE_WIDTH = 0.24
ROW_HEIGHT = 0.2
MARGIN = 1.35  # Room for labels and the colour bar, in inches.
WIDE = 12  # Number of layers from which maps are stacked vertically.


@matplotlib.rc_context(STYLE)
def density(records: Iterable[Record], model: ModelInfo) -> Figure:
    """Return a figure with a heat map of the kept fraction for each hybrid run, averaged over seeds.

    Columns are layers and rows are projections. Values are printed in the map if they fit.
    """
    hybrid = [record for record in records if record.run.model == model.name and record.run.pattern == "hybrid"]
    frame = _densities(hybrid)
    titles, layers = frame["title"].unique(), sorted(frame["layer"].unique())
    names = sorted(frame["projection"].unique(), key=_projection_order)
    stacked = len(layers) >= WIDE
    rows, columns = (max(1, len(titles)), 1) if stacked else (1, max(1, len(titles)))
    cell_width = (TEXT_WIDTH - MARGIN) / max(1, columns * len(layers))
    figure = Figure(figsize=(TEXT_WIDTH, rows * (ROW_HEIGHT * max(1, len(names)) + 0.6)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    if frame.empty:
        axes[0].set_axis_off()
        axes[0].set_title(f"{model.title}: no hybrid run", loc="left")
        return figure
    means = frame.groupby(["title", "projection", "layer"])["density"].agg(lambda d: math.fsum(d) / len(d))
    low = math.floor(10 * means.min()) / 10
    for axis, title in zip(axes, titles, strict=True):
        grid = means[title].unstack("layer").reindex(index=names, columns=layers).to_numpy()
        image = _heat_map(axis, grid, layers, names, low, cell_width >= VALUE_WIDTH)
        axis.set_title(title, loc="left")
    for axis in axes[-columns:]:
        axis.set_xlabel("Layer")
    figure.suptitle(model.title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"])
    bar = figure.colorbar(image, ax=list(axes), pad=0.01, aspect=30 if stacked else 18, label="Density (kept fraction)")
    bar.outline.set_linewidth(0.4)
    return figure


def _densities(records: Sequence[Record]) -> pd.DataFrame:
    """Return the density of each layer of each run, highest sparsity first."""
    several_tiles = len({record.run.tile for record in records}) > 1
    rows = []
    for record in sorted(records, key=lambda r: (-r.run.sparsity, r.run.method, r.run.tile or 0, r.run.seed)):
        run = record.run
        tile = f", tile {format_tile(run.tile)}" if several_tiles else ""
        imported = " (imported)" if run.variant else ""
        title = f"{method_title(run.method)}{imported}, {percent(run.sparsity)} %{tile}"
        rows += [(title, *place, record.density[name]) for name, place in projections(record.density).items()]
    return pd.DataFrame(rows, columns=["title", "projection", "layer", "density"])


def _projection_order(name: str) -> tuple[int, str]:
    return ORDER.index(name) if name in ORDER else len(ORDER), name


def _heat_map(
    axis: Axes, grid: np.ndarray, layers: Sequence[int], projections: Sequence[str], low: float, print_values: bool
) -> AxesImage:
    # The brightness of cividis rises evenly, so it also works in greyscale and for colour-blind readers.
    image = axis.imshow(grid, vmin=low, vmax=1.0, cmap="cividis", aspect="auto", interpolation="nearest")
    step = max(1, math.ceil(len(layers) / 16))
    axis.set_xticks(range(0, len(layers), step), layers[::step])
    axis.set_yticks(range(len(projections)), [name.removesuffix("_proj") for name in projections])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    if print_values:
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                color = "white" if value < (low + 1) / 2 else "black"
                text = f"{value:.2f}".removeprefix("0")
                axis.text(column, row, text, ha="center", va="center", color=color, fontsize=6.5)
    return image
