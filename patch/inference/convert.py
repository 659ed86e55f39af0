"""Conversion of a masked model to a packed one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.integrations.transformers_quantizer import describe_packed, replace_module
from patch.inference.linear import HybridLinear
from patch.inference.packed import pack
from patch.masks.packed import MaskSet, check_masks
from patch.masks.tile import tile_grid
from patch.models.loading import weight_matrix

# Tile sides for packing a mask without tiles, 2:4 everywhere; one tile covers the layer if none divides it.
TILES = (128, 64, 32, 16, 8, 4)


def convert(model: nn.Module, masks: MaskSet) -> nn.Module:
    """Replace every linear layer that has a sparse tile by a `HybridLinear`; all other layers stay dense.

    `save_pretrained` and `push_to_hub` of the result write the packed layers.

    Args:
        model: the model of the masks; changed in place and frozen, since packed weights have no gradients.
        masks: masks of the pattern `2:4` or `hybrid`.

    Returns:
        The same model.

    Raises:
        InputError: the masks are of another model, or not made of 2:4 and dense tiles; nothing is changed.
    """
    if masks.pattern not in ("2:4", "hybrid"):
        raise InputError(f"masks of the pattern {masks.pattern} have no faster form; give masks of 2:4 or hybrid")
    masks.verify()
    linears = check_masks(model, masks)
    packed = {}
    for name, linear in linears.items():
        dense, tile = _tiles(name, masks)
        if not dense.all():  # else the verified mask drops nothing
            packed[name] = pack(weight_matrix(linear), masks.masks[name], dense, tile)
    for name, weight in packed.items():
        replace_module(model, name, HybridLinear(weight, linears[name].bias))
    if packed and hasattr(model, "save_pretrained"):
        describe_packed(model)
    return model.requires_grad_(False)


def _tiles(name: str, masks: MaskSet) -> tuple[Tensor, int]:
    """Return the map of a layer's dense tiles, and the side of a tile."""
    if masks.pattern == "hybrid":
        return masks.tiles[name], masks.tile
    shape = masks.masks[name].shape
    tile = next((tile for tile in TILES if all(side % min(side, tile) == 0 for side in shape)), max(shape))
    return torch.zeros(tile_grid(shape, tile), dtype=torch.bool), tile
