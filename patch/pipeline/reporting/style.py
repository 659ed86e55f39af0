"""Common style of all figures, and saving of figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from patch.files.io import atomic_file

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
# Width of a figure that fills the text width, in inches.
TEXT_WIDTH = 6.75
GREY = "#666666"
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


# Okabe and Ito's palette is safe for colour-blind readers. The markers distinguish methods in greyscale print.
LOOKS: dict[str, Look] = {
    "dense": Look("o", "#000000"),
    "magnitude": Look("v", "#CC79A7"),
    "wanda": Look("s", "#E69F00", 4.6),
    "sparsegpt": Look("D", "#56B4E9", 4.4),
    "thanos": Look("^", "#009E73"),
    "proxsparse": Look("p", "#F0E442", 5.6),
    "maskllm": Look("o", "#0072B2"),
    "patch-joint": Look("*", "#D55E00", 8.5),
    "patch-tile": Look("P", "#D55E00", 6.0),
}
OTHER_LOOKS = [Look("X", "#444444", 5.6), Look("h", "#777777", 5.8), Look("<", "#999999"), Look(">", "#BBBBBB")]
SEQUENCE = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Return a look for each method; methods without a look in ``LOOKS`` cycle through ``OTHER_LOOKS``."""
    names = list(dict.fromkeys(methods))
    others = [name for name in names if name not in LOOKS]
    spare = {name: OTHER_LOOKS[index % len(OTHER_LOOKS)] for index, name in enumerate(others)}
    return {name: LOOKS.get(name) or spare[name] for name in names}


def muted(color: str) -> tuple[float, ...]:
    """Return a paler version of a colour."""
    return tuple(0.45 + 0.55 * part for part in to_rgb(color))


def save(figure: Figure, stem: Path | str) -> list[Path]:
    """Write ``stem`` with `.svg`, `.pdf` and `.png`, atomically and without a date, and return the three paths."""
    paths = [Path(f"{stem}{suffix}") for suffix in FORMATS]
    with matplotlib.rc_context(STYLE):
        for path, metadata in zip(paths, FORMATS.values(), strict=True):
            with atomic_file(path) as temporary:
                figure.savefig(temporary, metadata=metadata, bbox_inches="tight", pad_inches=0.03)
    return paths
