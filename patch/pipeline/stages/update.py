"""The updated weights of a pruned cell, for its evaluation.

Pruning leaves them in a spare file, and this stage takes that. They are removed after the
evaluation, so a record that has to be made again finds none: then this stage prunes again, and the
mask, from which others learn, stays as it is.
"""

from __future__ import annotations

from pathlib import Path

from patch.errors import InputError
from patch.masks.packed import check_masks, load_masks
from patch.models.loading import prunable_linears
from patch.pipeline.runs.layout import spec_digest
from patch.pipeline.runs.specs import PruneSpec
from patch.pipeline.stages.prune import prune_model
from patch.pruning.weights import save_weights, weights_digest


def run(
    spec: PruneSpec,
    *,
    model: Path,
    mask: Path,
    spare: Path,
    weights: Path,
    windows: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Move the spare weights to ``weights``, or make them again."""
    wanted = spec_digest(spec)
    if weights_digest(spare) == wanted:
        weights.parent.mkdir(parents=True, exist_ok=True)
        spare.replace(weights)
        return
    stored = load_masks(mask)
    if stored.header.get("digest") != wanted:
        raise InputError(f"mask {mask} was made with other settings or for another model; remove it to make it again")
    network, masks = prune_model(spec, model, windows, statistics)
    check_masks(network, stored)
    if any(not stored.masks[name].equal(made) for name, made in masks.masks.items()):
        raise InputError(f"{mask}: pruning again gives another mask; remove it, so that all that depends on it follows")
    save_weights(weights, prunable_linears(network), wanted)
