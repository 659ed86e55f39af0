"""Blocks of packed weights for tensor parallelism, and joint packed weights of layers with the same inputs.

Tiles are stored row by row, so a block of whole tiles is copied from the packed weight without unpacking it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.packed import PackedWeight, pack
from patch.masks.tile import tile_grid, tile_shape


def check_block(shape: tuple[int, int], tile: int, rows: range, columns: range) -> None:
    """Check that a block of a weight of ``shape`` consists of whole tiles.

    Args:
        shape: `(out, in)` of the whole weight.
        tile: side of its tiles.
        rows: outputs of the block.
        columns: inputs of the block.

    Raises:
        InputError: the block would cut tiles.
    """
    for what, block, side in zip(("outputs", "inputs"), (rows, columns), tile_shape(shape, tile), strict=True):
        if block.start % side or block.stop % side:
            raise InputError(f"{what} {block.start} to {block.stop} would cut tiles of {side} {what}")


def block_of(packed: PackedWeight, rows: range, columns: range) -> PackedWeight:
    """Return a copy of a block of a packed weight, of shape `[len(rows), len(columns)]`.

    Raises:
        InputError: the block would cut tiles.
    """
    check_block(packed.shape, packed.tile, rows, columns)
    parts = packed.checked
    top, bottom = rows.start // parts.height, rows.stop // parts.height
    left, right = columns.start // parts.width, columns.stop // parts.width
    # The tiles of a row of the block are stored one after the other.
    across = parts.dense.shape[1]
    runs = [(row * across + left, row * across + right) for row in range(top, bottom)]
    values, bits = (
        torch.cat([part[starts[first] : starts[last]] for first, last in runs])
        for part, offsets in ((parts.values, parts.offsets[0]), (parts.bits, parts.offsets[1]))
        for starts in ([*offsets.tolist(), len(part)],)
    )
    dense = parts.dense[top:bottom, left:right].clone()
    return PackedWeight((len(rows), len(columns)), packed.tile, dense, values, bits)


def all_dense(weight: Tensor, tile: int) -> PackedWeight:
    """Return a weight `[out, in]` packed in dense tiles: of side ``tile`` if they divide it, else one tile."""
    shape = (weight.shape[0], weight.shape[1])
    if any(size % side for size, side in zip(shape, tile_shape(shape, tile), strict=True)):
        tile = max(shape)
    dense = torch.ones(tile_grid(shape, tile), dtype=torch.bool)
    return pack(weight, torch.ones(shape, dtype=torch.bool), dense, tile)


def joined(weights: Sequence[PackedWeight]) -> list[PackedWeight]:
    """Concatenate weights along their outputs where neighbours have tiles of equal height and width.

    Args:
        weights: one or more weights with the same inputs.

    Returns:
        As few weights as possible, with the outputs in the same order.
    """
    groups: list[list[PackedWeight]] = []
    for weight in weights:
        if groups and _have_equal_tiles([*groups[-1], weight]):
            groups[-1].append(weight)
        else:
            groups.append([weight])
    return [_concatenated(group) for group in groups]


def _have_equal_tiles(weights: Sequence[PackedWeight]) -> bool:
    """Return whether the tiles of weights, and those of their concatenation, have the same sides."""
    shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])
    sides = tile_shape(shape, weights[0].tile)
    return all((weight.checked.height, weight.checked.width) == sides for weight in weights)


def _concatenated(weights: Sequence[PackedWeight]) -> PackedWeight:
    if len(weights) == 1:
        return weights[0]
    shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])
    dense, values, bits = (torch.cat([getattr(w, name) for w in weights]) for name in ("dense", "values", "bits"))
    return PackedWeight(shape, weights[0].tile, dense, values, bits)
