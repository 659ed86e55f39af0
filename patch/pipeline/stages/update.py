"""Updated weights of a pruned run, for its evaluation.

The stage `prune` caches the weights in a file, and this stage moves that file. Snakemake removes the weights after the
evaluation. If the evaluation runs again, this stage therefore prunes again. It does not change the mask, so that jobs
that depend on the mask do not rerun.
"""

from __future__ import annotations

from pathlib import Path

from patch.errors import InputError
from patch.masks.packed import check_masks, load_masks
from patch.models.loading import prunable_linears
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import PruneSettings
from patch.pipeline.stages.prune import prune_model
from patch.pruning.weights import save_weights, weights_digest


def run(
    settings: PruneSettings,
    *,
    model: Path,
    mask: Path,
    cache: Path,
    weights: Path,
    sequences: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Move the cached updated weights from ``cache`` to ``weights``, or compute them again.

    Raises:
        InputError: The mask has other settings, or pruning again gives another mask.
    """
    wanted = settings_digest(settings)
    if weights_digest(cache) == wanted:
        weights.parent.mkdir(parents=True, exist_ok=True)
        cache.replace(weights)
        return
    stored = load_masks(mask)
    if stored.header.get("digest") != wanted:
        raise InputError(f"mask {mask} was made with other settings or for another model; remove it to make it again")
    network, masks = prune_model(settings, model, sequences, statistics)
    check_masks(network, stored)
    if any(not stored.masks[name].equal(made) for name, made in masks.masks.items()):
        raise InputError(f"{mask}: pruning again gives another mask; remove it, so that all that depends on it follows")
    save_weights(weights, prunable_linears(network), wanted)
