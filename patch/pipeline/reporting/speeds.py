"""Speed table, built from the speed records, the models and the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from patch.pipeline.reporting.table import DASH, NOISY, Heading, Measure, Row, Table, pattern_title
from patch.pipeline.reporting.units import count
from patch.pipeline.results.order import RunOrder, method_title, run_order
from patch.pipeline.results.published import Published
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
from patch.pipeline.runs.run import ModelInfo, Run

# Layers with fewer bytes stay in the cache of a CPU or GPU between decoding steps.
CACHED_BYTES = 50e6
MEASURED = ("", "_spread", "_noisy")
NOTHING = "The speed of no model has been measured yet."


def speed_table(speeds: Speeds, models: Sequence[ModelInfo]) -> Table:
    """Return the table of tokens per second, speedup, the paper's speedup and layer bytes of each model's runs.

    The paper's speedups have columns only if its model is measured. Noisy speeds are marked.

    Args:
        speeds: records, in any order, and the paper's numbers.
        models: models of the configuration, in its order. A model without a record has no rows.
    """
    by_name = {record.model: record for record in speeds.records}
    measured = [(model, by_name[model.name]) for model in models if model.name in by_name]
    papers = published_devices(speeds.published) if any(_is_papers(model) for model, _ in measured) else []
    header = (
        Heading("tokens_per_second", label="Tokens/s ↑", parts=MEASURED),
        Heading("speedup", label="Speedup ↑", parts=MEASURED),
        *(Heading(f"paper_{name.lower()}_speedup", label=f"Paper, {name}", parts=("",)) for name in papers),
        Heading("linears_percent_of_dense", label="Linears (% of dense) ↓", parts=("",)),
    )
    rows = [
        _row(model, record, timed, speeds, papers)
        for model, record in measured
        for timed in sorted(record.timed, key=lambda timed: (_order(timed.run), timed.new_tokens))
    ]
    notes = _notes(measured, models, speeds.published) if measured else [NOTHING]
    return Table("speedup", _caption([record for _, record in measured]), header, tuple(rows), tuple(notes), True)


def _order(run: Run) -> RunOrder:
    return run_order(run)


def _row(model: ModelInfo, record: SpeedRecord, timed: Timed, speeds: Speeds, papers: Sequence[str]) -> Row:
    run, new = timed.run, timed.new_tokens
    compared = _is_papers(model) and run.pattern in ("dense", "hybrid")
    paper = [
        published_speedup(speeds.published, model.published, name, run.sparsity, new) if compared else None
        for name in papers
    ]
    linears = 100 * timed.linear_bytes.measured / timed.linear_bytes.dense
    measures = (
        _measure(timed, "tokens_per_second"),
        Measure(1.0) if run.pattern == "dense" else _measure(timed, "speedup"),
        *(None if value is None else Measure(value) for value in paper),
        Measure(linears),
    )
    # Speed does not depend on the 2:4 method.
    method = "any" if run.pattern == "2:4" else method_title(run.method)
    achieved = {model.name: timed.achieved_sparsity}
    setting = f"{new} new tokens" if len(record.settings.new_tokens) > 1 else ""
    pattern = pattern_title(run)
    return Row(model.title, run.sparsity, method, pattern, achieved, measures, setting, comparable=model.comparable)


def _is_papers(model: ModelInfo) -> bool:
    """Return whether a model is the one of the paper's speedups, rather than another model of its family."""
    return model.published == PAPER_MODEL and model.comparable


def _measure(timed: Timed, quantity: Literal["tokens_per_second", "speedup"]) -> Measure:
    found: Quartiles = getattr(timed, quantity)
    noisy = (found.low, found.high) if quantity in timed.noisy else None
    return Measure(found.median, spread=found.spread, noisy=noisy)


def _caption(records: Sequence[SpeedRecord]) -> str:
    """Return a caption with the devices and the benchmark settings."""
    if not records:
        return "Speed of generation with the masks, relative to the dense model."
    hardware = dict.fromkeys(_hardware(record) for record in records)
    sizes = dict.fromkeys(
        f"batch {r.settings.batch_size}, prompt {r.settings.prompt}, "
        f"{' and '.join(map(str, r.settings.new_tokens))} new tokens"
        for r in records
    )
    return f"Speed of greedy generation on {' and '.join(hardware)}: {'; '.join(sizes)}."


def _hardware(record: SpeedRecord) -> str:
    threads = f", {count(record.environment.threads, 'thread')}" if record.device == "cpu" else ""
    return f"{record.hardware}{threads} ({record.dtype})"


def _notes(
    measured: Sequence[tuple[ModelInfo, SpeedRecord]], models: Sequence[ModelInfo], published: Published
) -> list[str]:
    repeats = max(record.settings.repeats for _, record in measured)
    notes = [
        f"Medians of {repeats} repeats, interleaved with the dense model in one process. ±: half the interquartile "
        "range. Speed does not depend on which weights of a group are kept, so one 2:4 mask represents all 2:4 methods."
    ]
    shown = {"tokens_per_second", "speedup"}
    noisy = [timed.rounds for _, record in measured for timed in record.timed if shown & set(timed.noisy)]
    if noisy:
        notes.append(
            f"{NOISY}: noisy in each of {count(max(noisy), 'round')} of measurement, usually because of other work on "
            "the machine. The interquartile range, in brackets, exceeds a fifth of the median. Do not compare such a "
            "value."
        )
    small = [model.title for model, record in measured if record.dense.linear_bytes.dense < CACHED_BYTES]
    if small:
        notes.append(
            f"{', '.join(small)}: demo size. The layers fit into a cache, so reading fewer bytes saves no time, and "
            "call overhead dominates. These numbers do not transfer to large models."
        )
    notes += _published_note(measured, published)
    missing = [model.title for model in models if model not in [other for other, _ in measured]]
    if missing:
        notes.append(f"Not measured: {', '.join(missing)}.")
    return notes


def _published_note(measured: Sequence[tuple[ModelInfo, SpeedRecord]], published: Published) -> list[str]:
    """Return a note on the columns of the paper, if the table has any."""
    found = [record for model, record in measured if _is_papers(model)]
    tokens = sorted({paper_new_tokens(new, published) for record in found for new in record.settings.new_tokens})
    new = " or ".join(map(str, tokens))
    return (
        [f"Paper: speedups of LLaMA-2 7B, batch 16, prompt 128, {new} new tokens. {DASH}: not published."]
        if found
        else []
    )
