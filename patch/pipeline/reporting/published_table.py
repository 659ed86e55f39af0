"""Table of the paper's numbers for models that stand for another model of their family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from patch.pipeline.reporting.table import DASH, Heading, Measure, Row, Table, pattern_title
from patch.pipeline.reporting.tables import shared_run
from patch.pipeline.results.collect import run_of, summarize
from patch.pipeline.results.order import run_order, run_title, variant_title
from patch.pipeline.results.published import PAPER_TILE, Published
from patch.pipeline.results.speed import PAPER_NEW_TOKENS, published_devices, published_speedup
from patch.pipeline.runs.run import ModelInfo, Run

PUBLISHED = "published"
CAPTION = (
    "Published numbers of the models that the models of this experiment stand for. Only the order of the methods can "
    "be compared, not the values."
)


def published_table(frame: pd.DataFrame, models: Sequence[ModelInfo], published: Published) -> Table:
    """Return the paper's accuracies, perplexities and speedups for the models that are not comparable.

    Args:
        frame: tidy frame that `patch.pipeline.results.collect` returns. Its rows with a published number are the rows
            of the table.
        models: models of the configuration, in its order.
        published: the paper's numbers.
    """
    devices = {f"paper_{name.lower()}_speedup": name for name in published_devices(published)}
    labels = {"accuracy": None, "perplexity": None} | {key: f"Speedup, {name}" for key, name in devices.items()}
    stand_ins = [model for model in models if model.published and not model.comparable]
    columns: dict[tuple[str, str], Heading] = {}
    cells: dict[Run, dict[tuple[str, str], Measure]] = {}
    for model in stand_ins:
        title = published.models[model.published].title
        for run, values in _published_rows(frame, model):
            for key, device in devices.items() if _has_speed(run) else ():
                values[key] = published_speedup(published, model.published, device, run.sparsity)
            for metric, value in values.items():
                if value is not None:
                    column = model.published, metric
                    columns[column] = Heading(metric, model.model_copy(update={"title": title}), labels[metric], ("",))
                    cells.setdefault(run, {})[column] = Measure(value)
    order = [(model.published, metric) for model in stand_ins for metric in labels]
    ordered = sorted(columns, key=order.index)
    rows = [_row(run, [cells[run].get(column) for column in ordered]) for run in sorted(cells, key=run_order)]
    notes = [f"{model.title} stands for {model.published}." for model in stand_ins]
    if any(metric in devices for _, metric in columns):
        notes.append(f"Speedups: batch 16, prompt 128, {PAPER_NEW_TOKENS} new tokens. {DASH}: not published.")
    about = " ".join(notes) if rows else "The paper has none of the rows of this experiment."
    return Table(PUBLISHED, CAPTION, tuple(columns[column] for column in ordered), tuple(rows), (about,))


def _published_rows(frame: pd.DataFrame, model: ModelInfo) -> Iterator[tuple[Run, dict[str, float | None]]]:
    """Yield each row of a model that the paper has, as its run in the paper, and the published numbers by metric."""
    lines = frame[(frame["model"] == model.name) & frame["metric"].isin(["accuracy", "perplexity"])]
    found: dict[Run, dict[str, float | None]] = {}
    for line in summarize(lines).itertuples():
        values = found.setdefault(run_of(line, seed=0), {})
        if not pd.isna(line.published):
            values[line.metric] = line.published
    sizes = {(run.method, run.sparsity, run.tile) for run in found}
    for run, values in found.items():
        plain = not run.quantization and not run.variant
        compared = plain and sum((run.method, run.sparsity) == size[:2] for size in sizes) > 1
        tile = run.tile
        if tile and tile == model.tile and not compared:
            # As in `collect`, the experiment's tile stands for that of the paper unless sizes are compared.
            tile = PAPER_TILE
        if compared and tile != PAPER_TILE:
            # The paper compares sizes by perplexity alone.
            values.pop("accuracy", None)
        if values:
            yield shared_run(run, model).model_copy(update={"model": PUBLISHED, "tile": tile}), values


def _has_speed(run: Run) -> bool:
    """Return whether the paper's table of speeds has a row for a run."""
    plain = not run.quantization and not run.variant
    return plain and run.pattern in ("dense", "hybrid") and run.tile in (None, PAPER_TILE)


def _row(run: Run, measures: Sequence[Measure | None]) -> Row:
    setting = variant_title(run.variant) if run.variant else ""
    return Row(None, run.sparsity, run_title(run), pattern_title(run), {}, tuple(measures), setting)
