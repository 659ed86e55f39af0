"""Result tables, built from the tidy frame, the models and the expected runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from patch.errors import InputError
from patch.pipeline.reporting.render import write_table
from patch.pipeline.reporting.selection import TABLES, Key, Selection, selection
from patch.pipeline.reporting.speeds import speed_table
from patch.pipeline.reporting.table import Heading, Measure, Row, Table, mark_best
from patch.pipeline.reporting.text import to_text
from patch.pipeline.results.collect import DENSITY
from patch.pipeline.results.differences import Differences
from patch.pipeline.results.order import QUANTIZATIONS, method_title, tile_title, variant_title
from patch.pipeline.results.record import ModelInfo
from patch.pipeline.results.speed import Speeds
from patch.pipeline.results.statistics import summarize
from patch.pipeline.runs.run import Run

__all__ = ["TABLES", "Arrangement", "Table", "build_table", "to_text", "write_table"]

SPEEDUP = "speedup"
NAMED_MISSING = 6
BOLD_NOTE = (
    "Bold: the best of its sparsity and what ties with it within the standard error of the difference, "
    "taken on the same sequences and questions."
)
Found = dict[tuple[str, Key, str], tuple]


@dataclass(frozen=True)
class Arrangement:
    """Assignment of rows, named `model/row`, to tables.

    Attributes:
        standard: rows of the standard tables; None for all.
        own: name of a table that the grid defines -> its rows, in order.
    """

    standard: Sequence[str] | None = None
    own: Mapping[str, Sequence[str]] | None = None

    def rows(self, table: str) -> dict[str, int] | None:
        """Return the position of each row in a table, or None for all rows in the paper's order."""
        names = self.standard if table in TABLES else (self.own or {}).get(table)
        return None if names is None else {name: position for position, name in enumerate(names)}


@dataclass
class _Line:
    """Key and models of a row before its measures are filled in."""

    key: Key
    models: list[ModelInfo]
    title: str | None = None


def build_table(
    name: str,
    frame: pd.DataFrame,
    models: Sequence[ModelInfo],
    expected: Sequence[Run],
    arrangement: Arrangement = Arrangement(),  # noqa: B008 - frozen
    differences: Differences | None = None,
    speeds: Speeds | None = None,
) -> Table:
    """Build one of the standard ``TABLES``, the speed table, or a table that the grid defines.

    Args:
        name: name of the table.
        frame: tidy frame that `patch.pipeline.results.collect` returns.
        models: models of the configuration, in its order.
        expected: runs of the grid. Runs without a record are printed as dashes and listed in a note.
        arrangement: assignment of rows to tables.
        differences: paired errors that decide which rows tie with the best. The default is the rows' own errors.
        speeds: speed records, used only for the table `speedup`.

    Raises:
        InputError: the table is unknown.
    """
    if name == SPEEDUP and speeds is not None:
        return speed_table(speeds, models)
    known = [*TABLES, *(arrangement.own or {})]
    if name not in known:
        raise InputError(f"unknown table `{name}`; known: {', '.join(known)}")
    chosen, rows = selection(name), arrangement.rows(name)
    shown = {model.name: model for model in models if chosen.models(model)}
    summary = summarize(frame[frame["model"].isin(list(shown))])
    found: Found = {(r.model, Key.of(r, shown[r.model]), r.metric): r for r in summary.itertuples()}
    placed = _placed(chosen, found, [run for run in expected if run.model in shown], shown, rows)
    header, lines = _lines(chosen, found, placed, shown, rows if name not in TABLES else None)
    table_rows = [_row(line, header, found) for line in lines]
    if chosen.deviation:
        table_rows = [row for row in table_rows if any(m and m.seeds > 1 for m in row.measures)]
    if chosen.compared:
        table_rows = _bold(lines, table_rows, header, differences)
    missing = _missing(frame, [run for run in expected if run.model in shown], shown, set(placed))
    present = [model for model in shown.values() if any(model.name == place for place, _ in placed)]
    notes = _notes(chosen, table_rows, present)
    return Table(name, chosen.caption, header, tuple(table_rows), (*notes, *missing), chosen.deviation)


def _placed(
    chosen: Selection, found: Found, expected: list[Run], shown: dict[str, ModelInfo], rows: dict[str, int] | None
) -> list[tuple[str, Key]]:
    """Return the distinct (model, row) pairs of a table."""
    wanted = [(run.model, Key.of(run, shown[run.model])) for run in expected]
    placed = dict.fromkeys([*wanted, *((model, key) for model, key, _ in found)])
    if rows is not None:
        placed = [(model, key) for model, key in placed if f"{model}/{key.row(shown[model])}" in rows]
    unstructured = {key.sparsity for _, key in placed if key.pattern == "unstructured"}
    return [(model, key) for model, key in placed if chosen.rows(key, unstructured)]


def _lines(
    chosen: Selection,
    found: Found,
    placed: list[tuple[str, Key]],
    shown: dict[str, ModelInfo],
    positions: dict[str, int] | None,
) -> tuple[tuple[Heading, ...], list[_Line]]:
    """Return the columns and the ordered rows: in the paper's order, or by ``positions`` within each sparsity."""

    def order(key: Key) -> tuple:
        if positions is None:
            return key.order
        places = [positions[f"{model}/{key.row(shown[model])}"] for model, other in placed if other == key]
        return (*key.order[:2], min(places))

    present = [model for model in shown.values() if any(model.name == name for name, _ in placed)]
    if chosen.columns == "models":
        header = [Heading(metric, model) for model in present for metric in ("accuracy", "perplexity")]
        return tuple(header), [_Line(key, present) for key in sorted({key for _, key in placed}, key=order)]
    lines = [
        _Line(key, [model], model.title)
        for model in present
        for key in sorted({key for place, key in placed if place == model.name}, key=order)
    ]
    metrics = dict.fromkeys(metric for model, key, metric in found if (model, key) in set(placed))
    if chosen.columns == "projections":
        return tuple(Heading(metric) for metric in metrics if metric.startswith(DENSITY)), lines
    tasks = [m for m in metrics if m not in ("accuracy", "perplexity") and not m.startswith(DENSITY)]
    return tuple(Heading(metric) for metric in [*tasks, "accuracy"]), lines


def _row(line: _Line, header: tuple[Heading, ...], found: Found) -> Row:
    key, achieved = line.key, {}
    for model in line.models:
        hits = (found.get((model.name, key, metric)) for metric in ("accuracy", "perplexity"))
        hit = next((hit for hit in hits if hit is not None), None)
        if hit is not None:
            achieved[model.name] = hit.achieved_sparsity
    pattern = f"{key.pattern} {tile_title(key.tile)}" if key.tile else key.pattern
    if key.quantization:
        pattern = f"{pattern}, {QUANTIZATIONS[key.quantization]}"
    measures = tuple(_measure(found.get((_model(h, line).name, key, h.metric))) for h in header)
    setting = variant_title(key.variant) if key.variant else ""
    comparable = line.title is None or line.models[0].comparable
    return Row(line.title, key.sparsity, method_title(key.method), pattern, achieved, measures, setting, comparable)


def _model(heading: Heading, line: _Line) -> ModelInfo:
    return heading.model or line.models[0]


def _measure(hit: tuple | None) -> Measure | None:
    if hit is None or math.isnan(hit.value):
        return None
    return Measure(hit.value, hit.stderr, hit.spread, hit.seeds, hit.published)


def _bold(
    lines: list[_Line], rows: list[Row], header: tuple[Heading, ...], differences: Differences | None
) -> list[Row]:
    marks = [[False] * len(header) for _ in rows]
    for level in dict.fromkeys((row.model, row.sparsity) for row in rows):
        members = [index for index, row in enumerate(rows) if (row.model, row.sparsity) == level]
        for column, heading in enumerate(header):

            def error(a: int, b: int, members: list[int] = members, heading: Heading = heading) -> float | None:
                one, other = lines[members[a]], lines[members[b]]
                model = _model(heading, one)
                return differences.stderr(model.name, heading.metric, one.key.row(model), other.key.row(model))

            measures = [rows[index].measures[column] for index in members]
            best = mark_best(measures, heading.higher_is_better, error if differences else None)
            for index, mark in zip(members, best, strict=True):
                marks[index][column] = mark
    return [
        replace(row, measures=tuple(m and replace(m, best=b) for m, b in zip(row.measures, line, strict=True)))
        for row, line in zip(rows, marks, strict=True)
    ]


def _notes(chosen: Selection, rows: list[Row], models: list[ModelInfo]) -> list[str]:
    measures = [measure for row in rows for measure in row.measures if measure]
    if not rows:
        return ["No run of this experiment belongs in this table."]
    seeds = max((measure.seeds for measure in measures), default=1)
    over = f"; means over up to {seeds} seeds, whose scatter it includes" if seeds > 1 else ""
    notes = [f"±: sample standard deviation over up to {seeds} seeds."] if chosen.deviation else []
    if chosen.compared:
        notes += [f"±: standard error{over}.", BOLD_NOTE]
    others = [f"{model.title}: {model.published}" for model in models if model.published and not model.comparable]
    if others and any(not math.isnan(measure.published) for measure in measures):
        notes.append(
            f"Published numbers are those of another, larger model of the family ({'; '.join(others)}): "
            "the order of the methods can be compared, the values cannot."
        )
    return notes


def _missing(
    frame: pd.DataFrame, expected: list[Run], shown: dict[str, ModelInfo], placed: set[tuple[str, Key]]
) -> list[str]:
    present = {(r.model, Key.of(r, shown[r.model]), r.seed) for r in frame.itertuples() if r.model in shown}
    keyed = [(run, Key.of(run, shown[run.model])) for run in expected]
    names = [
        f"{run.model}/{run.id}"
        for run, key in keyed
        if (run.model, key) in placed and (run.model, key, run.seed) not in present
    ]
    if not names:
        return []
    more = f" and {len(names) - NAMED_MISSING} more" if len(names) > NAMED_MISSING else ""
    return [f"{len(names)} run{'s' * (len(names) > 1)} missing: {', '.join(names[:NAMED_MISSING])}{more}."]
