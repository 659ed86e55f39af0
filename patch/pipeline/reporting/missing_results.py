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
from patch.pipeline.runs.run import ModelInfo, Run

LEVELS = (0.45, 0.35, 0.25)
# Settings varied by the paper's ablations -> their values, starting with the plain run's value.
VARIED = {
    ("patch-joint", "tile_prior"): ["sparsegpt", *TILE_PRIORS],
    ("patch-joint", "target"): list(TARGETS),
    ("patch-tile", "frozen_mask"): list(FROZEN_MASKS),
}
# Fields: method, pattern, sparsity, tile (None for the paper's tile size), quantization, variant.
Row = tuple[str, str, float, int | None, str | None, str | None]


def missing_results(
    published: Published, runs: Sequence[Run], models: Sequence[ModelInfo], speed: bool = False
) -> list[str]:
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
            present = {_paper_row(run, model) for run in runs if run.model == model.name and not run.finetune}
            missing = [row for row in _paper_rows(published, model.published) if not _covered(row, present)]
            if missing:
                lines.append(f"Published rows of {model.published} that {model.title} lacks: {_listed(missing)}.")
    represented = {model.published for model in models}
    others = [model.title for name, model in published.models.items() if name not in represented]
    if others:
        lines.append(f"Models of the paper without a counterpart in this experiment: {', '.join(others)}.")
    if published.throughput_tok_s_bs16_prompt128 and not speed:
        lines.append("The paper's table of tokens per second: this experiment does not measure speed.")
    return lines


def _paper_rows(published: Published, model: str) -> Iterator[Row]:
    """Yield the rows for which the paper has a perplexity of the model."""
    sizes = {int(tile) for values in published.tile_size_ppl_qwen_joint.values() for tile in values}
    for row in _possible_rows(published.models[model].variant, sorted(sizes - {PAPER_TILE}, reverse=True)):
        method, pattern, sparsity, *options = row
        if published_value(published, model, method, pattern, sparsity, "perplexity", *options) is not None:
            yield row


def _possible_rows(variant: str, tiles: list[int]) -> Iterator[Row]:
    names = [name for name in PAPER_METHODS if not name.startswith("patch")]
    patch = f"patch-{variant}"
    for name in names:
        pattern, sparsity = ("dense", 0.0) if name == "dense" else ("2:4", 0.5)
        yield from ((name, pattern, sparsity, None, quantization, None) for quantization in (None, *QUANTIZATIONS))
    at_levels = [(patch, "hybrid", None, quantization, None) for quantization in (None, *QUANTIZATIONS)]
    at_levels += [(name, "unstructured", None, None, None) for name in names]
    at_levels += [(patch, "hybrid", tile, None, None) for tile in tiles]
    for (method, key), values in VARIED.items():
        at_levels += [(method, "hybrid", None, None, f"{key}={value}") for value in dict.fromkeys(values)]
    yield from ((method, pattern, level, *options) for method, pattern, *options in at_levels for level in LEVELS)


def _paper_row(run: Run, model: ModelInfo) -> Row:
    standard = {PAPER_TILE} if model.comparable else {PAPER_TILE, model.tile}
    # An imported mask is compared with the method that made it.
    variant = None if run.imported else run.variant
    tile = None if run.tile in standard else run.tile
    return run.method, run.pattern, run.sparsity, tile, run.quantization, variant


def _covered(row: Row, present: set[Row]) -> bool:
    """Return whether a row is present; the plain run covers the first value of each varied setting."""
    method, *_, variant = row
    key, _, value = (variant or "").partition("=")
    plain = variant is not None and VARIED[method, key][0] == value and (*row[:5], None) in present
    return plain or row in present


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
    parts = [(f"{name} {', '.join(names)}".rstrip(), found) for (name, found), names in values.items()]
    return "; ".join(f"{name} at {found} %" for name, found in parts)
