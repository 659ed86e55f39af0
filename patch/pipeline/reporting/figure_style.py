"""Common style of all figures, their series of points, and saving of figures."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from patch.files.io import atomic_file
from patch.methods import METHODS
from patch.pipeline.results.collect import summarize
from patch.pipeline.results.order import method_title
from patch.pipeline.runs.run import IMPORT, ModelInfo, format_tile

matplotlib.use("Agg")

# STIX resembles the Times font of the venues and ships with matplotlib, so figures look the same on every machine.
STYLE: dict[str, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    # No figure has formulas, so text is printed literally.
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "svg.hashsalt": "patch",
    "pdf.fonttype": 42,
}
# Widths of a figure that fills the text width or one of two columns, and height of a row of the legend, in inches.
TEXT_WIDTH, COLUMN_WIDTH, LEGEND_ROW = 6.75, 3.25, 0.165
# Distance between neighbouring points of one sparsity, and maximum distance of a point from its sparsity, in
# percentage points.
STEP, REACH = 0.25, 0.6
GREY = "#666666"
DENSE_LINE = {"color": "black", "linewidth": 0.8, "linestyle": (0, (5, 2))}
DOTTED_LINE = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (1, 1.5))}
LABELS = {"accuracy": "Mean accuracy (%)", "perplexity": "Perplexity (log scale)"}
# Perplexities beyond this multiple of the lowest one are drawn on the upper edge, so that one broken model does not
# flatten the differences between the others.
CEILING = 8.0
FORMATS: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "ModDate": None},
    ".png": {"Software": None},
}


@dataclass(frozen=True)
class Look:
    """Marker and colour of a method."""

    marker: str
    color: str
    size: float = 5.0


# Okabe and Ito's palette is safe for colour-blind readers; Tol's wine replaces its yellow, which is faint on white. The
# markers distinguish methods in greyscale print.
LOOKS: dict[str, Look] = {
    "dense": Look("o", "#000000"),
    "magnitude": Look("v", "#CC79A7"),
    "wanda": Look("s", "#E69F00", 4.6),
    "sparsegpt": Look("D", "#56B4E9", 4.4),
    "thanos": Look("^", "#009E73"),
    "proxsparse": Look("p", "#882255", 5.6),
    "maskllm": Look("o", "#0072B2"),
    "patch-joint": Look("*", "#D55E00", 8.5),
    "patch-tile": Look("P", "#D55E00", 6.0),
}
OTHER_LOOKS = [Look("X", "#444444", 5.6), Look("h", "#777777", 5.8), Look("<", "#999999"), Look(">", "#BBBBBB")]


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Return a look for each method; methods without a look in ``LOOKS`` cycle through ``OTHER_LOOKS``."""
    others = itertools.cycle(OTHER_LOOKS)
    return {name: LOOKS.get(name) or next(others) for name in dict.fromkeys(methods)}


def mixed(color: Any, other: str, fraction: float) -> tuple[float, ...]:
    """Return a colour with a fraction of another one."""
    pairs = zip(to_rgb(color), to_rgb(other), strict=True)
    return tuple((1 - fraction) * part + fraction * added for part, added in pairs)


def muted(color: str) -> tuple[float, ...]:
    """Return a paler version of a colour."""
    return mixed(color, "white", 0.45)


@dataclass(frozen=True)
class Series:
    """Method, pattern and look of a legend entry; ``tile`` is set only if a figure shows several tile sizes."""

    method: str
    pattern: str
    tile: int | None
    imported: bool
    look: Look

    @property
    def hardware_friendly(self) -> bool:
        """Return whether hardware such as sparse tensor cores accelerates the pattern."""
        return self.pattern != "unstructured"

    @property
    def learned(self) -> bool:
        """Return whether the mask is learned with gradients, by this project or by the authors of an imported mask."""
        return self.method in METHODS and METHODS[self.method].stage == "learn"

    @property
    def group(self) -> str:
        """Heading in the legend."""
        return "Learned" if self.learned else "One-shot" if self.hardware_friendly else "Unstructured"

    @property
    def label(self) -> str:
        """Label in the legend."""
        title = method_title(self.method) + (" (imported)" if self.imported else "")
        if self.pattern == "hybrid":
            return f"{title}, tile {format_tile(self.tile)}" if self.tile else title
        return f"{title}, {self.pattern}"


def quality(frame: pd.DataFrame, model: ModelInfo) -> pd.DataFrame:
    """Return means over seeds of a model's accuracy and perplexity, without derived runs and without ablations.

    Their points would look like those of the plain method.
    """
    shown = (frame["model"] == model.name) & frame["metric"].isin(list(LABELS))
    shown &= frame["quantization"].isna() & frame["finetune"].isna()
    return summarize(frame[shown & (frame["variant"].isna() | frame["variant"].str.startswith(IMPORT))])


def measured(summary: pd.DataFrame) -> list[str]:
    """Return the metrics of a summary that have a panel; a model that is measured on no task has no accuracy."""
    found = set(summary["metric"])
    return [metric for metric in LABELS if metric in found] or list(LABELS)


def ceiling(values: Iterable[float], metric: str) -> float:
    """Return the highest value that a panel draws at its place; it is infinite for all metrics but perplexity."""
    finite = [value for value in values if math.isfinite(value)]
    return CEILING * min(finite) if metric == "perplexity" and finite else math.inf


def with_series(summary: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``series`` and ``x``, the target sparsity in percent with an offset for each series.

    The tile sizes of one method differ in marker size.
    """
    found, sizes = looks(summary["method"]), sorted(summary["tile"].dropna().unique())
    tiles = [int(tile) if len(sizes) > 1 and not pd.isna(tile) else None for tile in summary["tile"]]
    scales = {size: 0.7 + 0.6 * index / max(1, len(sizes) - 1) for index, size in enumerate(sizes)}
    series = []
    imports = summary["variant"].str.startswith(IMPORT, na=False)
    for method, pattern, tile, imported in zip(summary["method"], summary["pattern"], tiles, imports, strict=True):
        look = replace(found[method], size=found[method].size * (scales[tile] if tile else 1.0))
        series.append(Series(method, pattern, tile, imported, look))
    summary = summary.assign(series=series)
    levels = {level: list(dict.fromkeys(group["series"])) for level, group in summary.groupby("sparsity")}
    # Neighbouring levels must not overlap: half of each and one step between them must fit into their distance.
    neighbours = itertools.pairwise(levels.items())
    widest = max(map(len, levels.values()), default=0)
    steps = [STEP, 2 * REACH / max(1, widest - 1)]
    step = min([*steps, *(200 * (b - a) / (len(left) + len(right)) for (a, left), (b, right) in neighbours)])

    def place(level: float, member: Series) -> float:
        members = levels[level]
        return 100 * level + step * (members.index(member) - (len(members) - 1) / 2)

    return summary.assign(x=[place(row.sparsity, row.series) for row in summary.itertuples()])


def marker(series: Series) -> dict[str, Any]:
    """Return the style of a filled marker.

    Learned masks have a black outline. Patterns without hardware support are paler and smaller.
    """
    look = series.look
    style = {"marker": look.marker, "linestyle": "none", "markersize": look.size, "color": look.color}
    if series.learned:
        return style | {"markeredgecolor": "black", "markeredgewidth": 0.7}
    if series.hardware_friendly:
        return style | {"markeredgecolor": mixed(look.color, "black", 0.3), "markeredgewidth": 0.4}
    pale = {"color": muted(look.color), "markersize": 0.8 * look.size}
    return style | pale | {"markeredgecolor": look.color, "markeredgewidth": 0.4}


def hollow_marker(series: Series) -> dict[str, Any]:
    """Return the hollow marker style of published numbers, larger than the filled one so that both stay visible."""
    look = series.look
    color = look.color if series.hardware_friendly else muted(look.color)
    edge = {"markeredgecolor": color, "markeredgewidth": 0.9, "markerfacecolor": "none"}
    return {"marker": look.marker, "linestyle": "none", "markersize": 1.25 * look.size} | edge


def figure_width(panels: int) -> float:
    """Return the width of a figure with a number of panels side by side, in inches."""
    return COLUMN_WIDTH if panels == 1 else TEXT_WIDTH


def wrapped(title: str, width: float) -> str:
    """Return a title in lines of at most a width in inches."""
    character = 0.46 * STYLE["axes.titlesize"] / 72
    return "\n".join(textwrap.wrap(title, int(width / character), break_on_hyphens=False))


def set_title(figure: Figure, axis: Axes, title: str) -> None:
    """Set the title of a row of panels at the left of its first panel."""
    axis.set_title(wrapped(title, figure.get_figwidth()), loc="left")


def add_legend(figure: Figure, handles: Sequence[Line2D], columns: int = 4) -> Legend:
    """Add a legend below the panels."""
    spaces = {"columnspacing": 1.4, "handletextpad": 0.5, "labelspacing": 0.35}
    return figure.legend(handles=handles, loc="outside lower center", ncols=columns, **spaces)


def add_grouped_legend(figure: Figure, groups: Mapping[str, Sequence[Line2D]], columns: int) -> None:
    """Add a legend with a heading above each named group below the panels, and make the figure higher by its height.

    A group that does not fit below the group before it starts a column. The legend has as few rows as possible.
    """
    lists = [[*map(_text, filter(None, [name])), *handles] for name, handles in groups.items() if handles]
    packed = (_packed(lists, rows) for rows in itertools.count(1))
    filled = next(found for found in packed if len(found) <= columns)
    # Matplotlib fills the columns of a legend one after another.
    rows = max(map(len, filled))
    handles = [handle for column in filled for handle in (*column, *(_text("") for _ in range(rows - len(column))))]
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * rows)
    for text in add_legend(figure, handles, len(filled)).get_texts():
        if text.get_text() in groups:
            text.set_weight("bold")


def _packed(groups: Sequence[list[Line2D]], rows: int) -> list[list[Line2D]]:
    """Return the columns of a legend with at most a number of rows."""
    columns: list[list[Line2D]] = [[]]
    for group in groups:
        if len(columns[-1]) + len(group) <= rows:
            columns[-1] += group
        else:
            columns += [group[start : start + rows] for start in range(0, len(group), rows)]
    return [column for column in columns if column]


def _text(label: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=label)


def save(figure: Figure, stem: Path | str) -> list[Path]:
    """Write ``stem`` with `.svg`, `.pdf` and `.png`, atomically and without a date, and return the three paths."""
    paths = [Path(f"{stem}{suffix}") for suffix in FORMATS]
    with matplotlib.rc_context(STYLE):
        for path, metadata in zip(paths, FORMATS.values(), strict=True):
            with atomic_file(path) as temporary:
                figure.savefig(temporary, metadata=metadata, bbox_inches="tight", pad_inches=0.03)
    return paths
