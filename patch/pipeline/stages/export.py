"""Export of a run to a folder that transformers and vLLM load, with a model card."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from patch.inference.export import export_model
from patch.models.loading import load_model, load_tokenizer
from patch.pipeline.reporting.model_card import model_card, run_facts
from patch.pipeline.results.record import Record
from patch.pipeline.runs.stage_settings import ExportSettings
from patch.pipeline.stages._common import load_expected, load_updated, prepare_device
from patch.quantization.quantized_files import load_layers


def run_export(
    settings: ExportSettings,
    *,
    model: Path,
    out: Path,
    mask: Path | None = None,
    weights: Path | None = None,
    quantized: Path | None = None,
    record: Path | None = None,
    name: str | None = None,
) -> None:
    """Save the model of a run; ``weights`` are updated or fine-tuned.

    The model card has the metrics of the file ``record`` if it exists and was measured with the same settings. It
    calls the model ``name``, by default the path of the folder.
    """
    prepare_device("cpu")
    masks, network = load_expected(mask, settings.mask), load_model(model, settings.dtype)
    if weights:
        load_updated(weights, network, masks, settings.mask, settings.finetuned)
    layers = load_layers(quantized, settings.quantized)[0] if quantized else None
    evaluation = _evaluation(record, settings.record)
    facts = run_facts(settings, name or str(out), model, masks, layers, evaluation)
    meta = {key: masks.header[key] for key in ("settings", "digest")} if masks else {}
    tokenizer = load_tokenizer(model)
    export_model(network, tokenizer, masks, out, settings.form, layers, partial(model_card, facts), meta)
    without = "" if evaluation else "; not evaluated with these settings, so that its model card has no metrics"
    print(f"{settings.form}, sparsity {facts.sparsity:.4f}: {out}{without}")


def _evaluation(path: Path | None, digest: str) -> Record | None:
    """Read the record of a run; None if it does not exist or was measured with other settings."""
    if path is None or not path.exists():
        return None
    record = Record.read(path)
    return record if record.config_digest == digest else None
