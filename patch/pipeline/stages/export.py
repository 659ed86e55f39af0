"""Export of a run to a folder that transformers loads without this package."""

from __future__ import annotations

from pathlib import Path

from patch.inference.export import export_model
from patch.models.loading import load_model, load_tokenizer
from patch.pipeline.runs.stage_settings import ExportSettings
from patch.pipeline.stages._common import load_expected, load_updated, prepare_device


def run_export(settings: ExportSettings, *, model: Path, mask: Path, out: Path, weights: Path | None = None) -> None:
    """Save the sparse model of a run and its `mask.npz`; ``weights`` are updated or fine-tuned."""
    prepare_device("cpu")
    masks, network = load_expected(mask, settings.mask), load_model(model, settings.dtype)
    if weights:
        load_updated(weights, network, masks, settings.mask, settings.finetuned)
    meta = {key: masks.header[key] for key in ("settings", "digest")}
    export_model(network, load_tokenizer(model), masks, out, meta)
    print(f"sparsity {masks.sparsity:.4f} in {len(masks.masks)} layers: {out}")
