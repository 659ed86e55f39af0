"""Published results missing from this experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from patch.pipeline.results.order import QUANTIZATIONS, method_title, percent, tile_title, variant_title
from patch.pipeline.results.published import (
    FROZEN_MASKS,
    PAPER_METHODS,
    PAPER_TILE,
    TARGETS,
    TILE_PRIORS,
    Published,
    published_value,
)
from patch.pipeline.results.record import ModelInfo
from patch.pipeline.runs.run import Run

LEVELS = (0.45, 0.35, 0.25)
# Settings varied by the paper's ablations -> their values, starting with the plain run's value.
VARIED = {
    ("patch-joint", "tile_prior"): ["sparsegpt", *TILE_PRIORS],
    ("patch-joint", "target"): list(TARGETS),
    ("patch-tile", "frozen_mask"): list(FROZEN_MASKS),
}
# Fields: method, pattern, sparsity, tile (None for the paper's tile size), quantization, variant.
Row = tuple[str, str, float, int | None, str | None, str | None]


def not_here(published: Published, runs: Sequence[Run], models: Sequence[ModelInfo], speed: bool = False) -> list[str]:
    """Return lines that list the paper's rows, models and speed results missing from the experiment.

    Args:
        published: the paper's numbers.
        runs: runs of the experiment.
        models: models of the experiment.
        speed: True if the experiment measured speed.
    """
    lines = []
    for model in models:
        if model.published is not None:
            here = {_row(run, model) for run in runs if run.model == model.name}
            missing = [row for row in _rows_of_paper(published, model.published) if not _is_here(row, here)]
            if missing:
                lines.append(f"Rows of the paper for {model.published} that {model.title} lacks: {_listed(missing)}.")
    stood_for = {model.published for model in models}
    others = [model.title for name, model in published.models.items() if name not in stood_for]
    if others:
        lines.append(f"Models of the paper that no model here stands for: {', '.join(others)}.")
    if published.throughput_tok_s_bs16_prompt128 and not speed:
        lines.append("The paper's table of tokens per second: speed is not measured here.")
    return lines


def _rows_of_paper(published: Published, model: str) -> Iterator[Row]:
    """Yield the rows for which the paper has a perplexity of the model."""
    sizes = {int(tile) for values in published.tile_size_ppl_qwen_joint.values() for tile in values}
    for row in _possible_rows(published.models[model].variant, sorted(sizes - {PAPER_TILE}, reverse=True)):
        method, pattern, sparsity, tile, quantization, variant = row
        arguments = (method, pattern, sparsity, "perplexity", tile, quantization, variant)
        if published_value(published, model, *arguments) is not None:
            yield row


def _possible_rows(variant: str, tiles: list[int]) -> Iterator[Row]:
    names = [name for name in PAPER_METHODS if not name.startswith("patch")]
    patch = f"patch-{variant}"
    for name in names:
        pattern, sparsity = ("dense", 0.0) if name == "dense" else ("2:4", 0.5)
        yield from ((name, pattern, sparsity, None, quantization, None) for quantization in (None, *QUANTIZATIONS))
    for quantization in (None, *QUANTIZATIONS):
        yield from ((patch, "hybrid", level, None, quantization, None) for level in LEVELS)
    yield from ((name, "unstructured", level, None, None, None) for name in names for level in LEVELS)
    yield from ((patch, "hybrid", level, tile, None, None) for tile in tiles for level in LEVELS)
    for (method, key), values in VARIED.items():
        for value in dict.fromkeys(values):
            yield from ((method, "hybrid", level, None, None, f"{key}={value}") for level in LEVELS)


def _row(run: Run, model: ModelInfo) -> Row:
    papers = {PAPER_TILE} if model.comparable else {PAPER_TILE, model.tile}
    # An imported mask is compared with the method that made it.
    variant = None if run.imported else run.variant
    tile = None if run.tile in papers else run.tile
    return run.method, run.pattern, run.sparsity, tile, run.quantization, variant


def _is_here(row: Row, here: set[Row]) -> bool:
    method, _, _, _, _, variant = row
    if variant:
        key, _, value = variant.partition("=")
        if VARIED[method, key][0] == value and (*row[:5], None) in here:
            return True
    return row in here


def _listed(rows: list[Row]) -> str:
    """Return rows as text, joining those that differ only in sparsity or in the value of the varied setting."""
    levels: dict[tuple[str, str], list[str]] = defaultdict(list)
    for method, pattern, sparsity, tile, quantization, variant in rows:
        name, value = f"{method_title(method)} {pattern}", ""
        if tile:
            name, value = "tile", tile_title(tile)
        elif variant:
            name, _, value = variant_title(variant).partition(": ")
        elif quantization:
            name = f"{name}, {QUANTIZATIONS[quantization]}"
        levels[name, value].append(percent(sparsity))
    values: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (name, value), found in levels.items():
        values[name, ", ".join(found)].append(value)
    parts = [(name, [value for value in names if value], found) for (name, found), names in values.items()]
    return "; ".join(f"{name}{' ' * bool(names)}{', '.join(names)} at {found} %" for name, names, found in parts)
