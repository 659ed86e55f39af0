"""Conversion of a masked model to a packed one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.freezing import freeze
from patch.inference.integrations.transformers_quantizer import describe_packed, replace_module
from patch.inference.linear import HybridLinear
from patch.inference.packed import PackedWeight, pack
from patch.masks.packed import MaskSet, check_layers, check_masks
from patch.masks.tile import tile_grid
from patch.models.loading import weight_matrix
from patch.quantization.model import QuantizedLayer

# Tile sides for packing a mask without tiles, 2:4 everywhere; one tile covers the layer if none divides it.
TILES = (128, 64, 32, 16, 8, 4)


def convert(
    model: nn.Module, masks: MaskSet | None, quantized: Mapping[str, QuantizedLayer] | None = None
) -> nn.Module:
    """Replace every linear layer that has a sparse tile, or is quantized, by a `HybridLinear`; all others stay dense.

    `save_pretrained` and `push_to_hub` of the result write the packed layers.

    Args:
        model: the model of the masks; changed in place and frozen, since packed weights have no gradients.
        masks: masks of the pattern `2:4` or `hybrid`; None if ``quantized`` are layers of a dense model.
        quantized: layer name -> the quantized layer that replaces the masked weight, of four bits at most; None to pack
            the weights of the model.

    Returns:
        The same model.

    Raises:
        InputError: the masks or the quantized layers are of another model, the masks are not made of 2:4 and dense
            tiles, or a quantized layer has other zeros or more bits; nothing is changed.
    """
    if masks is None and quantized is None:
        raise InputError("nothing to pack: give masks, quantized layers, or both")
    if masks is not None:
        if masks.pattern not in ("2:4", "hybrid"):
            raise InputError(f"masks of the pattern {masks.pattern} have no faster form; give masks of 2:4 or hybrid")
        masks.verify()
        linears = check_masks(model, masks)
    if quantized is not None:
        shapes = {name: layer.weight.codes.shape for name, layer in quantized.items()}
        linears = check_layers(model, shapes, "the quantized layers", "codes")
    packed = {}
    for name, linear in linears.items():
        dense, tile = _tiles(tuple(weight_matrix(linear).shape), name, masks)
        if quantized is not None:
            packed[name] = _pack_quantized(name, quantized[name], masks and masks.masks[name], dense, tile)
        elif not dense.all():  # else the verified mask drops nothing
            packed[name] = pack(weight_matrix(linear), masks.masks[name], dense, tile)
    for name, weight in packed.items():
        linear = linears[name]
        adapter = quantized[name].adapter if quantized is not None else None
        if adapter is not None:
            adapter = adapter.to(linear.weight.dtype).to(linear.weight.device)
        layer = HybridLinear(weight.to(linear.weight.device), linear.bias, adapter=adapter)
        replace_module(model, name, layer)
    if packed and hasattr(model, "save_pretrained"):
        describe_packed(model)
    return freeze(model)


def _pack_quantized(name: str, layer: QuantizedLayer, mask: Tensor | None, dense: Tensor, tile: int) -> PackedWeight:
    """Pack a quantized layer; without a mask its tiles are dense."""
    codes = layer.weight.codes
    if mask is None:
        mask = torch.ones_like(codes, dtype=torch.bool)
    if wrong := int(codes[~mask].count_nonzero()):
        raise InputError(f"the quantized layers are of other masks: {name} has {wrong} codes where its mask has zeros")
    try:
        return pack(layer.weight, mask, dense, tile)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _tiles(shape: tuple[int, int], name: str, masks: MaskSet | None) -> tuple[Tensor, int]:
    """Return the map of a layer's dense tiles, and the side of a tile."""
    if masks is not None and masks.pattern == "hybrid":
        return masks.tiles[name], masks.tile
    tile = next((tile for tile in TILES if all(side % min(side, tile) == 0 for side in shape)), max(shape))
    return torch.full(tile_grid(shape, tile), masks is None), tile
