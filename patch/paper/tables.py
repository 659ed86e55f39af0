"""The tables: functions of the tidy frame, the models and the cells that should exist, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from patch.cell import Cell
from patch.errors import InputError
from patch.paper.render import write_table
from patch.paper.table import Heading, Measure, Row, Table, mark_best
from patch.paper.text import to_text
from patch.results.order import QUANTIZATIONS, cell_order, method_title, tile_title
from patch.results.record import ModelInfo
from patch.results.statistics import summarize

__all__ = ["TABLES", "Table", "build_table", "to_text", "write_table"]

NAMED_MISSING = 6
BOLD_NOTE = "Bold: the best of its sparsity and what ties with it within the standard error of the difference."


@dataclass(frozen=True)
class _Key:
    """A row: the cells of all models and seeds that stand in it; ``method`` is `patch` for a model's own variant."""

    method: str
    pattern: str
    sparsity: float
    tile: int | None
    quantization: str | None


@dataclass(frozen=True)
class _Selection:
    """Which models and rows a table shows, and whether its columns are tasks instead of models."""

    caption: str
    models: Callable[[ModelInfo], bool]
    rows: Callable[[_Key, set[float]], bool]
    by_task: bool = False


def _structured(key: _Key, unstructured: set[float]) -> bool:
    return key.pattern != "unstructured" and not key.quantization


def _beside_unstructured(key: _Key, unstructured: set[float]) -> bool:
    beside = key.pattern == "unstructured" or key.method.startswith("patch")
    return key.sparsity in unstructured and beside and not key.quantization


TABLES: dict[str, _Selection] = {
    "joint": _Selection(
        "Accuracy and perplexity: 2:4 methods and PATCH with learned patterns (joint).",
        lambda model: model.variant == "joint",
        _structured,
    ),
    "tile": _Selection(
        "Accuracy and perplexity: 2:4 methods and PATCH over a frozen 2:4 mask (tile).",
        lambda model: model.variant == "tile",
        _structured,
    ),
    "unstructured": _Selection(
        "Unstructured pruning beside PATCH at equal sparsity.", lambda model: True, _beside_unstructured
    ),
    "quantized": _Selection(
        "Quantised weights (group AbsMax) after pruning, without and with low-rank compensation (SLiM-LoRA).",
        lambda model: True,
        lambda key, unstructured: key.quantization is not None,
    ),
    "tasks": _Selection("Accuracy (%) of each task.", lambda model: True, lambda key, unstructured: True, by_task=True),
}


def build_table(name: str, frame: pd.DataFrame, models: Sequence[ModelInfo], expected: Sequence[Cell]) -> Table:
    """Make one of ``TABLES``.

    Args:
        name: key of ``TABLES``.
        frame: as `patch.results.collect` makes it.
        models: of the configuration, in its order.
        expected: cells of the grid; those without a record are dashes and are counted in a note.

    Raises:
        InputError: there is no such table.
    """
    if name not in TABLES:
        raise InputError(f"unknown table `{name}`; known: {', '.join(TABLES)}")
    selection = TABLES[name]
    shown = {model.name: model for model in models if selection.models(model)}
    summary = summarize(frame[frame["model"].isin(list(shown))])
    found = {(r.model, _key(r, shown[r.model]), r.metric): r for r in summary.itertuples()}
    wanted = {(cell.model, _key(cell, shown[cell.model])): cell for cell in expected if cell.model in shown}
    placed = dict.fromkeys([*wanted, *((model, key) for model, key, _ in found)])
    unstructured = {key.sparsity for _, key in placed if key.pattern == "unstructured"}
    placed = [(model, key) for model, key in placed if selection.rows(key, unstructured)]
    if selection.by_task:
        header, rows = _task_rows(found, placed, shown)
    else:
        header, rows = _model_rows(found, placed, shown)
    missing = _missing(frame, [cell for cell in expected if cell.model in shown], shown, set(placed))
    notes = _notes(rows, [model for model in shown.values() if any(model.name == place for place, _ in placed)])
    return Table(name, selection.caption, header, tuple(_bold(rows, header)), (*notes, *missing))


def _key(cell: Cell | tuple, model: ModelInfo) -> _Key:
    method = "patch" if cell.method == f"patch-{model.variant}" else cell.method
    tile, quantization = (None if pd.isna(value) else value for value in (cell.tile, cell.quantization))
    return _Key(method, cell.pattern, cell.sparsity, None if tile is None else int(tile), quantization)


def _order(key: _Key) -> tuple:
    return cell_order(key.method, key.pattern, key.sparsity, key.tile, key.quantization)


def _model_rows(
    found: dict, placed: list[tuple[str, _Key]], shown: dict[str, ModelInfo]
) -> tuple[tuple[Heading, ...], list[Row]]:
    present = [model for model in shown.values() if any(model.name == name for name, _ in placed)]
    header = tuple(Heading(metric, model) for model in present for metric in ("accuracy", "perplexity"))
    rows = []
    for key in sorted({key for _, key in placed}, key=_order):
        measures = tuple(_measure(found.get((h.model.name, key, h.metric))) for h in header)
        rows.append(_row(None, key, found, [model.name for model in present], measures))
    return header, rows


def _task_rows(
    found: dict, placed: list[tuple[str, _Key]], shown: dict[str, ModelInfo]
) -> tuple[tuple[Heading, ...], list[Row]]:
    tasks = [m for m in dict.fromkeys(metric for *_, metric in found) if m not in ("accuracy", "perplexity")]
    header = tuple(Heading(metric) for metric in [*tasks, "accuracy"])
    rows = []
    for name, model in shown.items():
        for key in sorted({key for place, key in placed if place == name}, key=_order):
            measures = tuple(_measure(found.get((name, key, h.metric))) for h in header)
            rows.append(_row(model.title, key, found, [name], measures))
    return header, rows


def _row(title: str | None, key: _Key, found: dict, models: list[str], measures: tuple[Measure | None, ...]) -> Row:
    achieved = {}
    for name in models:
        hit = next((found[name, key, m] for m in ("accuracy", "perplexity") if (name, key, m) in found), None)
        if hit is not None:
            achieved[name] = hit.achieved_sparsity
    pattern = f"{key.pattern} {tile_title(key.tile)}" if key.tile else key.pattern
    if key.quantization:
        pattern = f"{pattern}, {QUANTIZATIONS[key.quantization]}"
    return Row(title, key.sparsity, method_title(key.method), pattern, achieved, measures)


def _measure(hit: tuple | None) -> Measure | None:
    if hit is None or math.isnan(hit.value):
        return None
    return Measure(hit.value, hit.stderr, hit.spread, hit.seeds, hit.published)


def _bold(rows: list[Row], header: tuple[Heading, ...]) -> list[Row]:
    marks = [[False] * len(header) for _ in rows]
    for level in {(row.model, row.sparsity) for row in rows}:
        members = [index for index, row in enumerate(rows) if (row.model, row.sparsity) == level]
        for column, heading in enumerate(header):
            best = mark_best([rows[index].measures[column] for index in members], heading.higher_is_better)
            for index, mark in zip(members, best, strict=True):
                marks[index][column] = mark
    return [
        replace(row, measures=tuple(m and replace(m, best=b) for m, b in zip(row.measures, line, strict=True)))
        for row, line in zip(rows, marks, strict=True)
    ]


def _notes(rows: list[Row], models: list[ModelInfo]) -> list[str]:
    measures = [measure for row in rows for measure in row.measures if measure]
    if not rows:
        return ["No cell of this experiment belongs in this table."]
    seeds = max((measure.seeds for measure in measures), default=1)
    over = f"; means over up to {seeds} seeds, whose scatter it includes" if seeds > 1 else ""
    notes = [f"±: standard error{over}.", BOLD_NOTE]
    others = [f"{model.title}: {model.published}" for model in models if model.published and not model.comparable]
    if others and any(not math.isnan(measure.published) for measure in measures):
        notes.append(
            f"Published numbers are those of another, larger model of the family ({'; '.join(others)}): "
            "the order of the methods can be compared, the values cannot."
        )
    return notes


def _missing(
    frame: pd.DataFrame, expected: list[Cell], shown: dict[str, ModelInfo], placed: set[tuple[str, _Key]]
) -> list[str]:
    present = {(r.model, _key(r, shown[r.model]), r.seed) for r in frame.itertuples() if r.model in shown}
    keyed = [(cell, _key(cell, shown[cell.model])) for cell in expected]
    names = [
        f"{cell.model}/{cell.id}"
        for cell, key in keyed
        if (cell.model, key) in placed and (cell.model, key, cell.seed) not in present
    ]
    if not names:
        return []
    more = f" and {len(names) - NAMED_MISSING} more" if len(names) > NAMED_MISSING else ""
    return [f"{len(names)} cell{'s' * (len(names) > 1)} missing: {', '.join(names[:NAMED_MISSING])}{more}."]
