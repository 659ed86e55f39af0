"""Learned masks that are worse than the masks that learning started from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from patch.pipeline.results.order import percent, run_title, variant_title
from patch.pipeline.results.record import Record
from patch.pipeline.runs.run import ModelInfo, format_tile


def worse_than_initial(records: Iterable[Record], models: Sequence[ModelInfo]) -> list[str]:
    """Return a sentence for each learned run whose held-out loss is above that of its initial mask."""
    titles = {model.name: model.title for model in models}
    sentences = []
    for record in records:
        if record.held_out and record.held_out.warning:
            run = record.run
            parts = [titles[run.model], f"{run_title(run)} {percent(run.sparsity)} %"]
            parts += [f"tile {format_tile(run.tile)}"] if run.tile else []
            parts += [variant_title(run.variant)] if run.variant else []
            sentences.append(f"{', '.join(parts)}, seed {run.seed}: {record.held_out.warning}.")
    return sentences
