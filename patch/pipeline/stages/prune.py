"""One-shot pruning, which makes a mask and caches the updated weights of methods that change them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from patch.data.sequences import load_sequences
from patch.masks.nm import parse_pattern
from patch.masks.packed import MaskSet, save_masks
from patch.models.loading import load_model, prunable_linears
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import PruneSettings
from patch.pipeline.stages._common import measured, prepare_device
from patch.pipeline.stages._progress import show_blocks
from patch.pruning.prune import prune
from patch.pruning.weights import save_weights


def run(
    settings: PruneSettings,
    *,
    model: Path,
    mask: Path,
    sequences: Path | None = None,
    statistics: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Prune a model by one method and write its mask; save the updated weights in ``cache`` for the stage `update`.

    Methods that need the layers' inputs use ``sequences``, or ``statistics`` of the dense model.
    """
    network, masks = prune_model(settings, model, sequences, statistics)
    if cache:
        save_weights(cache, prunable_linears(network), masks.header["digest"])
    save_masks(mask, masks)
    seconds = masks.header["cost"]["seconds"]
    print(f"{settings.method} {settings.pattern}: sparsity {masks.sparsity:.4f} in {seconds:.1f} s")


def prune_model(
    settings: PruneSettings, model: Path, sequences: Path | None, statistics: Path | None = None
) -> tuple[nn.Module, MaskSet]:
    """Load and prune a model, and return it with its masks, whose header has their settings, digest and cost."""
    device = prepare_device(settings.device)
    # The model stays in host memory; pruning moves its blocks to the device one by one.
    network = load_model(model, settings.dtype)
    calibration = load_sequences(sequences) if sequences else None
    pattern = parse_pattern(settings.pattern, settings.sparsity)
    cost: dict[str, float] = {}
    with measured(cost, device):
        progress = show_blocks(settings.method)
        masks = prune(
            network,
            settings.method,
            pattern,
            calibration,
            settings.batch_size,
            settings.pruning,
            progress,
            statistics=statistics,
            device=device,
        )
    masks.header = {"settings": settings.model_dump(mode="json"), "digest": settings_digest(settings), "cost": cost}
    return network, masks
