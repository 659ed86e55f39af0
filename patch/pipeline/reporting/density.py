"""Density figure: kept fraction of the weights by layer and projection."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from patch.pipeline.reporting.figure_style import STYLE, TEXT_WIDTH
from patch.pipeline.results.order import method_title, percent
from patch.pipeline.results.projections import projections
from patch.pipeline.results.record import ModelInfo, Record
from patch.pipeline.runs.run import format_tile

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
    maps = _maps(record for record in records if record.run.model == model.name and record.run.pattern == "hybrid")
    projections = sorted({p for values in maps.values() for p, _ in values}, key=_projection_order)
    layers = sorted({layer for values in maps.values() for _, layer in values})
    stacked = len(layers) >= WIDE
    rows, columns = (max(1, len(maps)), 1) if stacked else (1, max(1, len(maps)))
    cell_width = (TEXT_WIDTH - MARGIN) / max(1, columns * len(layers))
    figure = Figure(figsize=(TEXT_WIDTH, rows * (ROW_HEIGHT * max(1, len(projections)) + 0.6)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    low = math.floor(10 * min((v for values in maps.values() for v in values.values()), default=0.5)) / 10
    image = None
    for axis, (title, values) in zip(axes, maps.items(), strict=False):
        grid = np.array([[values.get((p, layer), np.nan) for layer in layers] for p in projections])
        image = _heat_map(axis, grid, layers, projections, low, cell_width >= VALUE_WIDTH)
        axis.set_title(title, loc="left")
    if image is None:
        axes[0].set_axis_off()
        axes[0].set_title(f"{model.title}: no hybrid run", loc="left")
        return figure
    for axis in axes[-columns:]:
        axis.set_xlabel("Layer")
    figure.suptitle(model.title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"])
    bar = figure.colorbar(image, ax=list(axes), pad=0.01, aspect=30 if stacked else 18, label="Density (kept share)")
    bar.outline.set_linewidth(0.4)
    return figure


def _maps(records: Iterable[Record]) -> dict[str, dict[tuple[str, int], float]]:
    """Return title -> (projection, layer) -> mean density over seeds, highest sparsity first."""
    chosen = sorted(records, key=lambda r: (-r.run.sparsity, r.run.method, r.run.tile or 0, r.run.seed))
    several_tiles = len({record.run.tile for record in chosen}) > 1
    values: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in chosen:
        run = record.run
        tile = f", tile {format_tile(run.tile)}" if several_tiles else ""
        imported = " (imported)" if run.variant else ""
        title = f"{method_title(run.method)}{imported}, {percent(run.sparsity)} %{tile}"
        for name, place in projections(record.density).items():
            values[title][place].append(record.density[name])
    return {
        title: {place: math.fsum(densities) / len(densities) for place, densities in places.items()}
        for title, places in values.items()
    }


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
