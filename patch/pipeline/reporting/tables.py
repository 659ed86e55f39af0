"""Result tables, built from the tidy frame, the models and the expected runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from patch.errors import InputError
from patch.evaluation.metric import accuracy_names
from patch.pipeline.reporting.selection import TABLES, Selection, selection
from patch.pipeline.reporting.speeds import speed_table
from patch.pipeline.reporting.table import Heading, Measure, Row, Table, mark_best, pattern_title
from patch.pipeline.reporting.units import count
from patch.pipeline.results.collect import DENSITY, RUN_COLUMNS, run_of, summarize
from patch.pipeline.results.differences import Differences
from patch.pipeline.results.order import RunOrder, percent, run_order, run_title, variant_title
from patch.pipeline.results.speed import Speeds
from patch.pipeline.runs.run import ModelInfo, Run

SPEEDUP = "speedup"
NAMED_MISSING = 6
BOLD_NOTE = (
    "Bold: the best value of each sparsity, and every value whose difference from it is within one standard error of "
    "the difference. Differences are measured on the same sequences and questions."
)
# (`model/row`, metric) -> line of the summary.
Found = dict[tuple[str, str], tuple]


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
    """Runs of a row, one for each model that has it; ``title`` is that of the model if rows name models."""

    runs: dict[str, Run]
    title: str | None = None

    def run(self, heading: Heading) -> Run | None:
        """Return the run of the model of a column, or of the only model of the row."""
        return self.runs.get(heading.model.name) if heading.model else next(iter(self.runs.values()))


def build_table(
    name: str,
    frame: pd.DataFrame,
    models: Sequence[ModelInfo],
    expected: Sequence[Run],
    arrangement: Arrangement = Arrangement(),  # noqa: B008 - frozen
    differences: Differences | None = None,
    speeds: Speeds | None = None,
    fewshot: Mapping[str, int] | None = None,
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
        fewshot: number of few-shot examples of the tasks that have some.

    Raises:
        InputError: the table is unknown.
    """
    if name == SPEEDUP and speeds is not None:
        return speed_table(speeds, models)
    known = [*TABLES, *(arrangement.own or {})]
    if name not in known:
        raise InputError(f"unknown table `{name}`; known: {', '.join(known)}")
    chosen, positions = selection(name), arrangement.rows(name)
    shown = {model.name: model for model in models if chosen.models(model)}
    expected = [run for run in expected if run.model in shown]
    frame = frame[frame["model"].isin(list(shown))]
    found: Found = {}
    runs = {_name(run): run for run in expected}
    for line in summarize(frame).itertuples():
        run = run_of(line, seed=0)
        found[_name(run), line.metric] = line
        runs.setdefault(_name(run), run)
    if positions is not None:
        runs = {row: run for row, run in runs.items() if row in positions}
    unstructured = {run.sparsity for run in runs.values() if run.pattern == "unstructured"}
    runs = {row: run for row, run in runs.items() if chosen.rows(run, unstructured)}

    present = [model for model in shown.values() if any(run.model == model.name for run in runs.values())]
    lines = _lines(chosen, present, runs, positions if name not in TABLES else None)
    header = _header(chosen, present, [metric for row, metric in found if row in runs])
    measures = [[_measure(found, line.run(heading), heading.metric) for heading in header] for line in lines]
    if chosen.compared:
        _mark_best(lines, measures, header, differences)
    rows = [_row(line, tuple(cells), shown, found) for line, cells in zip(lines, measures, strict=True)]
    if chosen.deviation:
        rows = [row for row in rows if any(m and m.seeds > 1 for m in row.measures)]
    lines_of_runs = frame[RUN_COLUMNS].drop_duplicates().itertuples()
    measured = {f"{line.model}/{run_of(line, line.seed).id}" for line in lines_of_runs}
    missing = [f"{run.model}/{run.id}" for run in expected if _name(run) in runs]
    notes = _notes(chosen, rows)
    if fewshot and chosen.columns != "projections" and any(heading.metric != "perplexity" for heading in header):
        notes.append(f"Few-shot examples: {', '.join(f'{task} {number}' for task, number in fewshot.items())}.")
    if chosen.columns == "models" and not chosen.deviation:
        notes += _held_out(lines, shown, found)
    notes += _missing([run for run in missing if run not in measured])
    return Table(name, chosen.caption, header, tuple(rows), tuple(notes), chosen.deviation)


def _name(run: Run) -> str:
    return f"{run.model}/{run.row}"


def shared_run(run: Run, model: ModelInfo) -> Run:
    """Return the run of a row that all models share: each model's own variant of PATCH is `patch`."""
    return run.model_copy(update={"method": "patch"}) if run.method == f"patch-{model.variant}" else run


def _lines(
    chosen: Selection, present: Sequence[ModelInfo], runs: Mapping[str, Run], positions: dict[str, int] | None
) -> list[_Line]:
    """Return the ordered rows: in the paper's order, or by ``positions`` within each sparsity."""
    lines: dict[tuple, _Line] = {}
    for index, model in enumerate(present):
        for run in runs.values():
            if run.model == model.name:
                place, title = (0, None) if chosen.columns == "models" else (index, model.title)
                key = place, run_order(shared_run(run, model))
                lines.setdefault(key, _Line({}, title)).runs[run.model] = run

    def position(key: tuple[int, RunOrder]) -> tuple:
        place, order = key
        if positions is None:
            return key
        return (place, *order[:2], min(positions[_name(run)] for run in lines[key].runs.values()))

    return [lines[key] for key in sorted(lines, key=position)]


def _header(chosen: Selection, present: Sequence[ModelInfo], metrics: Sequence[str]) -> tuple[Heading, ...]:
    if chosen.columns == "models":
        # Without any record the metrics are unknown.
        absent = {"accuracy"} if metrics and "accuracy" not in metrics else set()
        shown = [metric for metric in ("accuracy", "perplexity") if metric not in absent]
        return tuple(Heading(metric, model) for model in present for metric in shown)
    densities = [metric for metric in dict.fromkeys(metrics) if metric.startswith(DENSITY)]
    if chosen.columns == "projections":
        return tuple(map(Heading, densities))
    tasks = accuracy_names(dict.fromkeys(metrics))
    others = [metric for metric in dict.fromkeys(metrics) if metric not in ("accuracy", "perplexity", *tasks)]
    mean = ["accuracy"] if "accuracy" in metrics or not others else []
    return tuple(map(Heading, [*tasks, *mean, *(metric for metric in others if metric not in densities)]))


def _row(line: _Line, measures: tuple[Measure | None, ...], models: Mapping[str, ModelInfo], found: Found) -> Row:
    hits = {name: found.get((_name(run), "perplexity")) for name, run in line.runs.items()}
    achieved = {name: hit.achieved_sparsity for name, hit in hits.items() if hit}
    name, run = next(iter(line.runs.items()))
    model = models[name]
    setting = variant_title(run.variant) if run.variant else ""
    comparable = line.title is None or model.comparable
    method = run_title(shared_run(run, model))
    return Row(line.title, run.sparsity, method, pattern_title(run), achieved, measures, setting, comparable)


def _measure(found: Found, run: Run | None, metric: str) -> Measure | None:
    hit = found.get((_name(run), metric)) if run else None
    if hit is None or math.isnan(hit.value):
        return None
    return Measure(hit.value, hit.stderr, hit.spread, hit.seeds, hit.published)


def _mark_best(
    lines: Sequence[_Line],
    measures: list[list[Measure | None]],
    header: Sequence[Heading],
    differences: Differences | None,
) -> None:
    """Mark the best measures of each model and sparsity in place."""
    levels: dict[tuple[str | None, float], list[int]] = {}
    for index, line in enumerate(lines):
        levels.setdefault((line.title, next(iter(line.runs.values())).sparsity), []).append(index)
    for members, (column, heading) in itertools.product(levels.values(), enumerate(header)):

        def error(a: int, b: int, members: list[int] = members, heading: Heading = heading) -> float | None:
            one, other = (lines[members[place]].run(heading) for place in (a, b))
            return differences.stderr(one.model, heading.metric, one.row, other.row)

        cells = [measures[index][column] for index in members]
        best = mark_best(cells, heading.higher_is_better, error if differences else None)
        for index in itertools.compress(members, best):
            measures[index][column] = replace(measures[index][column], best=True)


def _notes(chosen: Selection, rows: list[Row]) -> list[str]:
    measures = [measure for row in rows for measure in row.measures if measure]
    if not rows:
        return ["No run of this experiment belongs to this table."]
    seeds = max((measure.seeds for measure in measures), default=1)
    over = f" of the mean over up to {seeds} seeds, including the variance between seeds" if seeds > 1 else ""
    notes = [f"±: sample standard deviation over up to {seeds} seeds."] if chosen.deviation else []
    if chosen.compared:
        notes += [f"±: standard error{over}.", BOLD_NOTE]
    return notes


def _held_out(lines: Sequence[_Line], models: Mapping[str, ModelInfo], found: Found) -> list[str]:
    """Return a note with the held-out losses of the learned rows, or none without such rows."""
    parts = []
    for name, model in models.items():
        losses = []
        for run in (line.runs[name] for line in lines if name in line.runs):
            hit = found.get((_name(run), "perplexity"))
            if hit is None or math.isnan(hit.held_out_loss):
                continue
            title = f"{run_title(shared_run(run, model))} {percent(run.sparsity)} %"
            setting = f" ({variant_title(run.variant)})" if run.variant else ""
            worse = ", worse" if hit.held_out_loss > hit.initial_held_out_loss else ""
            losses.append(f"{title}{setting} {hit.held_out_loss:.3f} ({hit.initial_held_out_loss:.3f}{worse})")
        if losses:
            parts.append(f"{model.title}: {', '.join(losses)}")
    about = "Held-out loss of learned masks in nats, in parentheses that of their initial masks."
    return [f"{about} {'; '.join(parts)}."] if parts else []


def _missing(names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - NAMED_MISSING} more" if len(names) > NAMED_MISSING else ""
    return [f"{count(len(names), 'run')} missing: {', '.join(names[:NAMED_MISSING])}{more}."] if names else []
