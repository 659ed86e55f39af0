"""Quantization of a pruned run, with optional low-rank adapters that compensate both pruning and quantization."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from patch.calibration.input_statistics import InputStatistics
from patch.calibration.walk import walk_blocks
from patch.data.sequences import load_sequences
from patch.errors import InputError
from patch.masks.packed import MaskSet, apply_masks, check_masks
from patch.models.loading import load_model, prunable_linears
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import QuantizeSettings
from patch.pipeline.stages._common import load_expected, measured, prepare_device
from patch.pipeline.stages._progress import show_blocks
from patch.pruning.weights import load_weights, read_weights
from patch.quantization.model import QuantizedLayer, compensate_block, quantize_model
from patch.quantization.quantized_files import save_layers


def run_quantize(
    settings: QuantizeSettings,
    *,
    model: Path,
    layers: Path,
    mask: Path | None = None,
    weights: Path | None = None,
    sequences: Path | None = None,
) -> None:
    """Quantize a pruned model and write its layers; `slim-lora` fits its adapters on ``sequences``."""
    device = prepare_device(settings.device)
    masks = load_expected(mask, settings.mask)
    network = load_model(model, settings.dtype)
    linears, made_by = prunable_linears(network), settings.mask.digest if settings.mask else ""
    with measured(device) as cost:
        if settings.method == "slim-lora":
            updated = read_weights(weights, linears, made_by) if weights else {}
            found = _compensated(settings, network, device, masks, updated, sequences)
        else:
            if weights:
                load_weights(weights, linears, made_by)
            if masks:
                apply_masks(network, masks)
            found = quantize_model(network, settings.quantization.bits, settings.quantization.group_size)
    save_layers(layers, found, settings_digest(settings), cost)
    print(f"{settings.method}: {len(found)} layers of {settings.quantization.bits} bits in {cost['seconds']:.1f} s")


def _compensated(
    settings: QuantizeSettings,
    network: nn.Module,
    device: str,
    masks: MaskSet | None,
    updated: dict[str, Tensor],
    sequences: Path | None,
) -> dict[str, QuantizedLayer]:
    if sequences is None:
        raise InputError("slim-lora needs calibration sequences: give --sequences")
    if masks:
        check_masks(network, masks)
    found: dict[str, QuantizedLayer] = {}

    def pruned(name: str, weight: Tensor) -> Tensor:
        value = updated[name].to(weight.device) if updated else weight
        return value * masks.masks[name].to(weight.device) if masks else value

    def visit(linears: dict[str, nn.Module], statistics: dict[str, InputStatistics]) -> None:
        found.update(compensate_block(linears, statistics, pruned, settings.quantization))

    with torch.no_grad():
        progress = show_blocks(settings.method)
        walk_blocks(network, load_sequences(sequences), visit, settings.batch_size, device=device, on_block=progress)
    return found
