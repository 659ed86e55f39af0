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


def check_block(shape: tuple[int, int], tile: int, rows: range, columns: range, group_size: int | None = None) -> None:
    """Check that a block of a weight of ``shape`` consists of whole tiles, and of whole groups of equal scale.

    Args:
        shape: `(out, in)` of the whole weight.
        tile: side of its tiles.
        rows: outputs of the block.
        columns: inputs of the block.
        group_size: number of inputs that share a scale; None if the weight has no scales.

    Raises:
        InputError: the block would cut tiles or groups.
    """
    for what, block, side in zip(("outputs", "inputs"), (rows, columns), tile_shape(shape, tile), strict=True):
        if block.start % side or block.stop % side:
            raise InputError(f"{what} {block.start} to {block.stop} would cut tiles of {side} {what}")
    if group_size and any(at % group_size and at != shape[1] for at in (columns.start, columns.stop)):
        raise InputError(
            f"inputs {columns.start} to {columns.stop} would cut groups of {group_size} inputs, which share a scale"
        )


def block_of(packed: PackedWeight, rows: range, columns: range) -> PackedWeight:
    """Return a copy of a block of a packed weight, of shape `[len(rows), len(columns)]`.

    Raises:
        InputError: the block would cut tiles, or groups of equal scale.
    """
    check_block(packed.shape, packed.tile, rows, columns, packed.group_size)
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
    found = {"dense": parts.dense[top:bottom, left:right].clone(), "values": values, "bits": bits}
    if parts.scales is not None:
        groups = slice(columns.start // parts.group_size, -(-columns.stop // parts.group_size))
        found["scales"] = parts.scales[rows.start : rows.stop, groups].clone(memory_format=torch.contiguous_format)
    return PackedWeight((len(rows), len(columns)), packed.tile, **found, group_size=parts.group_size)


def all_dense(weight: Tensor, tile: int) -> PackedWeight:
    """Return a weight `[out, in]` packed in dense tiles: of side ``tile`` if they divide it, else one tile."""
    shape = (weight.shape[0], weight.shape[1])
    if any(size % side for size, side in zip(shape, tile_shape(shape, tile), strict=True)):
        tile = max(shape)
    dense = torch.ones(tile_grid(shape, tile), dtype=torch.bool)
    return pack(weight, torch.ones(shape, dtype=torch.bool), dense, tile)


def joined(weights: Sequence[PackedWeight]) -> list[PackedWeight]:
    """Concatenate weights along their outputs where neighbours have tiles of equal sides, and values of one kind.

    Args:
        weights: one or more weights with the same inputs.

    Returns:
        As few weights as possible, with the outputs in the same order.
    """
    groups: list[list[PackedWeight]] = []
    for weight in weights:
        if groups and _have_equal_form([*groups[-1], weight]):
            groups[-1].append(weight)
        else:
            groups.append([weight])
    return [_concatenated(group) for group in groups]


def _have_equal_form(weights: Sequence[PackedWeight]) -> bool:
    """Return whether weights and their concatenation have tiles of the same sides, and values of the same kind."""
    shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])
    form = (*tile_shape(shape, weights[0].tile), weights[0].values.dtype, weights[0].group_size)
    return all((w.checked.height, w.checked.width, w.values.dtype, w.group_size) == form for w in weights)


def _concatenated(weights: Sequence[PackedWeight]) -> PackedWeight:
    if len(weights) == 1:
        return weights[0]
    shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])
    parts = {name: torch.cat([weight.parts[name] for weight in weights]) for name in weights[0].parts}
    return PackedWeight(shape, weights[0].tile, **parts, group_size=weights[0].group_size)
