"""Interactive page of an experiment: quality, density by layer and learning curves of the chosen models and methods.

The page is one file that needs no network. It contains the rounded numbers, and Vega, Vega-Lite and Vega-Embed, which
draw them as SVG.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import vl_convert
from jinja2 import Environment
from matplotlib.colors import to_hex
from matplotlib.markers import MarkerStyle

from patch.pipeline.reporting import figure_style as style
from patch.pipeline.reporting.curves import PANELS, Curve, curve_lines, moving_average, read_curve
from patch.pipeline.reporting.density import sorted_projections
from patch.pipeline.results.collect import DENSITY, mean_chance, run_of, summarize
from patch.pipeline.results.order import FINETUNED, QUANTIZATIONS, percent, variant_title
from patch.pipeline.results.published import Published
from patch.pipeline.results.record import Record, projections
from patch.pipeline.runs.run import ModelInfo, Run

TEMPLATE = Path(__file__).with_suffix(".html")
SCRIPTS = [Path(__file__).with_name(name) for name in ("explore_charts.js", "explore.js")]
# Maximum number of points of a curve in the page.
POINTS = 100
DIGITS = 5


@dataclass(frozen=True)
class Explored:
    """Inputs of the page.

    Attributes:
        experiment: name of the experiment.
        frame: tidy frame that `patch.pipeline.results.collect` returns.
        records: records of the measured runs.
        models: models of the experiment.
        published: the paper's numbers.
        curves: learned run -> path of its training curve.
    """

    experiment: str
    frame: pd.DataFrame
    records: Sequence[Record]
    models: Sequence[ModelInfo]
    published: Published
    curves: Mapping[Run, Path]


def explore_page(explored: Explored) -> str:
    """Return the page as HTML."""
    data = explore_data(explored)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        experiment=explored.experiment,
        data=data,
        # Titles may contain the end tag of a script.
        json=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        libraries=vl_convert.javascript_bundle(),
        script="\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS),
    )


def explore_data(explored: Explored) -> dict[str, Any]:
    """Return the contents of the page as a JSON object.

    ``rows`` are rows of tables with the mean over seeds, the standard error and the published number of each metric.
    They, ``maps`` and ``curves`` refer to ``models``, ``series`` and ``settings`` by index; a dense row has no series.
    Accuracies, densities and sparsities are in percent.
    """
    frame = explored.frame[~explored.frame["metric"].str.startswith(DENSITY)]
    summary = style.with_series(summarize(frame))
    sparse = summary[summary["pattern"] != "dense"]
    series = list(dict.fromkeys(sparse["series"]))
    found = list(dict.fromkeys(summary["metric"]))
    leading = [name for name in style.LABELS if name in found]
    page = _Page(explored, [model.name for model in explored.models], series)
    rows, curves = page.rows(summary), page.curves()
    return {
        "ceiling": style.CEILING,
        "models": [_model(model, explored) for model in explored.models],
        "metrics": [_metric(name) for name in dict.fromkeys([*leading, *found])],
        "series": [_series(one) for one in series],
        "settings": page.settings,
        "published": bool(summary["published"].notna().any()),
        "rows": rows,
        "maps": page.maps(),
        "curves": curves,
        "panels": {key: title for key, title in PANELS.items() if any(key in curve["values"] for curve in curves)},
    }


def _model(model: ModelInfo, explored: Explored) -> dict[str, Any]:
    records = [record for record in explored.records if record.run.model == model.name]
    chances = {name: metric.chance for record in records[:1] for name, metric in record.metrics.items()}
    percents = {name: 100 * chance for name, chance in chances.items() if chance is not None}
    mean = mean_chance(records, model.name)
    published = explored.published.models[model.published].title if model.published else None
    return {
        "title": model.title,
        # Numbers of another model have a panel of their own.
        "published": None if model.comparable else published,
        "chance": percents | ({} if mean is None else {"accuracy": mean}),
    }


def _metric(name: str) -> dict[str, Any]:
    titles = {"accuracy": style.LABELS["accuracy"], "perplexity": "Perplexity"}
    return {"name": name, "title": titles.get(name, f"{name} (%)"), "higher": name != "perplexity"}


def _series(series: style.Series) -> dict[str, Any]:
    look = style.marker(series)
    return {
        "label": series.label,
        "group": series.group,
        "friendly": series.hardware_friendly,
        "fill": to_hex(look["color"]),
        "edge": to_hex(look["markeredgecolor"]),
        "width": look["markeredgewidth"],
        "size": round(look["markersize"], 2),
        "shape": marker_path(look["marker"]),
    }


def marker_path(marker: str) -> str:
    """Return a marker of matplotlib as an SVG path in a square from -1 to 1."""
    drawn = MarkerStyle(marker)
    path = drawn.get_path().transformed(drawn.get_transform())
    commands = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    parts = []
    for points, code in path.iter_segments(simplify=False):
        pairs = [] if commands[code] == "Z" else [f"{2 * x:.3g},{-2 * y:.3g}" for x, y in points.reshape(-1, 2)]
        parts.append(commands[code] + " ".join(pairs))
    return "".join(parts)


class _Page:
    """Rows, maps and curves of the page, with the indices of their models, series and settings."""

    def __init__(self, explored: Explored, models: list[str], series: list[style.Series]) -> None:
        self._explored, self._models, self._series = explored, models, series
        self.settings: list[str] = []
        self._places: dict[tuple[str, str], dict[str, int | None]] = {}

    def rows(self, summary: pd.DataFrame) -> list[dict[str, Any]]:
        """Return the rows of all tables once."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        runs = [run_of(line, 0) for line in summary.itertuples()]
        self.settings = sorted(dict.fromkeys(map(_setting, runs)), key=bool)
        for run, line in zip(runs, summary.itertuples(), strict=True):
            if (run.model, run.row) not in rows:
                self._places[run.model, run.row] = self._place(run, line.series)
                rows[run.model, run.row] = self._places[run.model, run.row] | {
                    "name": run.row,
                    "detail": variant_title(run.variant) if run.imported else _setting(run),
                    "tile": style.format_tile(run.tile) if run.tile else None,
                    "x": _rounded(line.x),
                    "target": _rounded(100 * run.sparsity),
                    "achieved": _rounded(100 * line.achieved_sparsity),
                    "seeds": line.seeds,
                    "values": {},
                }
            numbers = (line.value, line.stderr, line.published)
            rows[run.model, run.row]["values"][line.metric] = list(map(_rounded, numbers))
        return list(rows.values())

    def _place(self, run: Run, series: style.Series) -> dict[str, int | None]:
        return {
            "model": self._models.index(run.model),
            "series": None if run.pattern == "dense" else self._series.index(series),
            "setting": self.settings.index(_setting(run)),
        }

    def maps(self) -> list[dict[str, Any]]:
        """Return the density of each layer of each hybrid row, mean over seeds."""
        records: dict[tuple[str, str], list[Record]] = {}
        for record in self._explored.records:
            if record.run.pattern == "hybrid" and not record.run.derived:
                records.setdefault((record.run.model, record.run.row), []).append(record)
        return [self._map(key, found) for key, found in records.items()]

    def _map(self, key: tuple[str, str], records: Sequence[Record]) -> dict[str, Any]:
        places = projections(records[0].density)
        names = sorted_projections({projection for projection, _ in places.values()})
        blocks = sorted({block for _, block in places.values()})
        cells = np.full((len(names), len(blocks)), math.nan)
        for layer, (projection, block) in places.items():
            mean = math.fsum(record.density[layer] for record in records) / len(records)
            cells[names.index(projection), blocks.index(block)] = 100 * mean
        run = records[0].run
        return self._places[key] | {
            "title": f"{percent(run.sparsity)} %" + (f", {variant_title(run.variant)}" if run.variant else ""),
            "target": _rounded(100 * (1 - run.sparsity)),
            "projections": [name.removesuffix("_proj") for name in names],
            "blocks": blocks,
            "cells": [[None if math.isnan(cell) else round(cell, 2) for cell in line] for line in cells],
        }

    def curves(self) -> list[dict[str, Any]]:
        """Return the training curves, thinned to ``POINTS`` points."""
        curves = []
        for model in self._models:
            files = {run: path for run, path in self._explored.curves.items() if run.model == model}
            for (run, path), line in zip(files.items(), curve_lines(list(files)), strict=True):
                curves.append(self._places[model, run.row] | _curve(Curve(read_curve(path), *line)))
        return curves


def _curve(curve: Curve) -> dict[str, Any]:
    values = {key: curve.values(key) for key in (*PANELS, "target_density")}
    values["cross_entropy"] = moving_average(values["cross_entropy"])
    initial = curve.values("initial_held_out_loss")
    return {
        "label": curve.label,
        "color": to_hex(curve.line["color"]),
        "initial": _rounded(initial.iloc[0]) if len(initial) else None,
        "values": {key: _thinned(found) for key, found in values.items() if len(found)},
    }


def _thinned(values: pd.Series) -> list[list[float | None]]:
    """Return evenly spread steps of a curve, with the first and the last one, and their values."""
    kept = np.unique(np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int))
    return [values.index[kept].tolist(), [_rounded(value) for value in values.iloc[kept]]]


def _setting(run: Run) -> str:
    """Return what distinguishes a row from that of the plain method; empty for the plain method."""
    parts = [QUANTIZATIONS[run.quantization]] if run.quantization else []
    parts += [FINETUNED[run.finetune]] if run.finetune else []
    parts += [variant_title(run.variant)] if run.variant and not run.imported else []
    return ", ".join(parts)


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
