"""Speed table, built from the speed records, the models and the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from patch.pipeline.reporting.table import DASH, Heading, Measure, Row, Table
from patch.pipeline.results.order import method_title, run_order, tile_title
from patch.pipeline.results.published import Published
from patch.pipeline.results.record import ModelInfo
from patch.pipeline.results.speed import (
    PAPER_MODEL,
    Quartiles,
    SpeedRecord,
    Speeds,
    Timed,
    paper_new_tokens,
    published_devices,
    published_speedup,
)

# Layers with fewer bytes stay in the cache of a CPU or GPU between decoding steps.
CACHED_BYTES = 50e6
MEASURED = ("", "_spread")
NOTHING = "No model has been measured yet."


def speed_table(speeds: Speeds, models: Sequence[ModelInfo]) -> Table:
    """Return the table of tokens per second, speedup, the paper's speedup and layer bytes of each model's runs.

    Args:
        speeds: records, in any order, and the paper's numbers.
        models: models of the configuration, in its order. A model without a record has no rows.
    """
    by_name = {record.model: record for record in speeds.records}
    measured = [(model, by_name[model.name]) for model in models if model.name in by_name]
    papers = published_devices(speeds.published)
    header = (
        Heading("tokens_per_second", label="Tokens/s ↑", parts=MEASURED),
        Heading("speedup", label="Speedup ↑", parts=MEASURED),
        *(Heading(f"paper_{name.lower()}_speedup", label=f"Paper, {name}", parts=("",)) for name in papers),
        Heading("linears_percent_of_dense", label="Linears (% of dense) ↓", parts=("",)),
    )
    rows = [
        _row(model, record, timed, speeds, papers)
        for model, record in measured
        for timed in sorted(record.timed, key=_order)
    ]
    notes = _notes(measured, speeds.published) + _missing(models, by_name) if measured else [NOTHING]
    return Table("speedup", _caption([record for _, record in measured]), header, tuple(rows), tuple(notes), True)


def _order(timed: Timed) -> tuple:
    return run_order(timed.run)


def _row(model: ModelInfo, record: SpeedRecord, timed: Timed, speeds: Speeds, papers: Sequence[str]) -> Row:
    run, new = timed.run, record.settings.new_tokens
    compared = run.pattern in ("dense", "hybrid")
    paper = [
        published_speedup(speeds.published, model.published, name, run.sparsity, new) if compared else None
        for name in papers
    ]
    share = 100 * timed.linear_bytes.measured / timed.linear_bytes.dense
    measures = (
        _quartiles(timed.tokens_per_second),
        _number(1.0) if run.pattern == "dense" else _quartiles(timed.speedup),
        *(None if value is None else _number(value) for value in paper),
        _number(share),
    )
    # Speed does not depend on the 2:4 method.
    method = "any" if run.pattern == "2:4" else method_title(run.method)
    pattern = f"{run.pattern} {tile_title(run.tile)}" if run.tile else run.pattern
    achieved = {model.name: timed.achieved_sparsity}
    return Row(model.title, run.sparsity, method, pattern, achieved, measures, comparable=model.comparable)


def _quartiles(values: Quartiles) -> Measure:
    return Measure(values.median, math.nan, values.spread, 1, math.nan)


def _number(value: float) -> Measure:
    return Measure(value, math.nan, math.nan, 1, math.nan)


def _caption(records: Sequence[SpeedRecord]) -> str:
    """Return a caption with the devices and the benchmark settings."""
    if not records:
        return "Speed of generation with the masks, beside the dense model."
    where = dict.fromkeys(_where(record) for record in records)
    sizes = dict.fromkeys(
        f"batch {r.settings.batch_size}, prompt {r.settings.prompt}, {r.settings.new_tokens} new tokens"
        for r in records
    )
    return f"Speed of greedy generation on {' and '.join(where)}: {'; '.join(sizes)}."


def _where(record: SpeedRecord) -> str:
    threads = record.environment.threads
    cores = f", {threads} thread{'s' * (threads > 1)}" if record.device == "cpu" else ""
    return f"{record.hardware}{cores} ({record.dtype})"


def _notes(measured: Sequence[tuple[ModelInfo, SpeedRecord]], published: Published) -> list[str]:
    repeats = max(record.settings.repeats for _, record in measured)
    notes = [
        f"Medians of {repeats} runs, in turn with the dense model in one process; ±: half the range between quartiles. "
        "Speed does not depend on which weights of a group stay: one 2:4 mask stands for all."
    ]
    small = [model.title for model, record in measured if record.dense.linear_bytes.dense < CACHED_BYTES]
    if small:
        notes.append(
            f"{', '.join(small)}: of demo size. Their layers fit a cache, where fewer bytes gain nothing, and calls "
            "dominate; such numbers say nothing of large models."
        )
    beside = {paper_new_tokens(r.settings.new_tokens, published) for m, r in measured if m.published == PAPER_MODEL}
    if beside:
        new = " or ".join(map(str, sorted(beside)))
        notes.append(f"Paper: speedups of LLaMA-2 7B, batch 16, prompt 128, {new} new tokens; {DASH}: it has none.")
    others = [model.title for model, _ in measured if model.published == PAPER_MODEL and not model.comparable]
    if others:
        notes.append(f"{', '.join(others)}: another model of the paper's family; the values cannot be compared.")
    return notes


def _missing(models: Sequence[ModelInfo], by_name: Mapping[str, SpeedRecord]) -> list[str]:
    missing = [model.title for model in models if model.name not in by_name]
    return [f"Not measured: {', '.join(missing)}."] if missing else []
