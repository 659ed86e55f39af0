"""Packed hybrid weights: dense tiles are stored whole, sparse ones as two of every four values and a bit mask.

Tiles are stored in row-major order, and the rows of a tile one after the other, so that a kernel reads memory in order.
The bit mask of a group of four has two bits set. It takes as much memory as two indices of two bits, and it is the
operand of the instructions that expand a register.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.checked import PARTS, CheckedParts, check_geometry, tile_counts
from patch.masks.tile import tile_grid, tile_shape


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix under a hybrid mask.

    Attributes:
        shape: `(out, in)`.
        tile: side of a tile; a tile larger than the matrix in a direction ends with it.
        dense: `[tiles along out, tiles along in]` bool, True = dense.
        values: `[n]` of the weight's dtype: all values of dense tiles, and the two kept of each group of sparse tiles.
        bits: `[m]` uint8, the masks of sparse tiles: bit i of a group's four bits is set where weight i is kept; the
            first group is in the lower half of a byte, and each tile begins with a new byte.

    Raises:
        InputError: the parts are inconsistent.
    """

    shape: tuple[int, int]
    tile: int
    dense: Tensor
    values: Tensor
    bits: Tensor

    def __post_init__(self) -> None:
        for name in PARTS:
            part = getattr(self, name)
            if isinstance(part, Tensor) and part.is_inference():
                # PyTorch does not count writes to inference tensors.
                with torch.inference_mode(False):
                    object.__setattr__(self, name, part.clone())
        self.__dict__["_checked"] = CheckedParts(self.shape, self.tile, self.dense, self.values, self.bits)

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[object, ...]]:
        # Unpickled and copied weights are checked as well.
        return PackedWeight, (self.shape, self.tile, self.dense, self.values, self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.dense.nbytes + self.values.nbytes + self.bits.nbytes

    @property
    def checked(self) -> CheckedParts:
        """Checked parts for a backend; they are checked again if a part has moved or changed since the last check.

        Raises:
            InputError: the parts are no longer consistent.
        """
        known: CheckedParts = self.__dict__["_checked"]
        if known.state != known.current_state(self.dense, self.values, self.bits):
            known = CheckedParts(self.shape, self.tile, self.dense, self.values, self.bits)
            self.__dict__["_checked"] = known
        return known

    def matches(self, shape: tuple[int, int], tile: int, dense: Tensor, values: Tensor, bits: Tensor) -> bool:
        """Return whether these are the parts that were checked last, unmoved and unchanged since."""
        known: CheckedParts = self.__dict__["_checked"]
        return (self.shape, self.tile) == (shape, tile) and known.state == known.current_state(dense, values, bits)

    def to(self, device: torch.device | str) -> PackedWeight:
        """Return the weight on another device."""
        parts = (part.to(device) for part in (self.dense, self.values, self.bits))
        return PackedWeight(self.shape, self.tile, *parts)


def packed_bytes(shape: tuple[int, int], tile: int, dense_tiles: int, itemsize: int) -> int:
    """Return the bytes of a packed weight: at 16 bits `1 - 0.4375 f` of dense ones, f the fraction of sparse tiles."""
    weights, bitmap_bytes = tile_counts(shape, tile)
    tiles = math.prod(tile_grid(shape, tile))
    return itemsize * weights * dense_tiles + (itemsize * weights // 2 + bitmap_bytes) * (tiles - dense_tiles) + tiles


def pack(weight: Tensor, mask: Tensor, dense: Tensor, tile: int) -> PackedWeight:
    """Pack `mask * weight`.

    Args:
        weight: `[out, in]`, of any floating dtype.
        mask: `[out, in]` bool, True = keep.
        dense: `[tiles along out, tiles along in]` bool: tiles that are stored whole; the mask is 2:4 in all others.
        tile: side of a tile, which divides the matrix; its width is a multiple of four.

    Raises:
        InputError: the shapes do not agree, or a tile that is not dense keeps more than two of a group.
    """
    shape = (weight.shape[0], weight.shape[1])
    if mask.shape != weight.shape:
        raise InputError(f"the mask has the shape {list(mask.shape)}, the weight {list(shape)}")
    check_geometry(shape, tile)
    height, width = tile_shape(shape, tile)
    if tuple(dense.shape) != tile_grid(shape, tile):
        grid = list(tile_grid(shape, tile))
        raise InputError(f"the tile map has the shape {list(dense.shape)}; tile {tile} cuts {list(shape)} into {grid}")
    dense = dense.to(weight.device)
    kept = _tiles(mask.to(weight.device), height, width)
    tiles = _tiles(weight.detach(), height, width).masked_fill(~kept, 0)
    sparse = ~dense.flatten()
    stored = torch.ones_like(kept)
    stored[sparse] = _exactly_two(kept[sparse])
    return PackedWeight(shape, tile, dense.contiguous().clone(), tiles[stored], _pack_bits(stored[sparse].flatten(1)))


def unpack(packed: PackedWeight) -> Tensor:
    """Return the masked weight, `[out, in]`."""
    return unpack_rows(packed, 0, packed.checked.dense.shape[0])


def unpack_rows(packed: PackedWeight, first: int, last: int) -> Tensor:
    """Return rows of tiles from ``first`` up to ``last`` of the masked weight, `[rows, in]`."""
    parts = packed.checked
    weights, columns = parts.tile_weights, parts.dense.shape[1]
    wanted = slice(first * columns, last * columns)
    dense, (value_offsets, bit_offsets) = parts.dense.flatten()[wanted], parts.offsets[:, wanted]
    order = torch.arange(weights, device=parts.values.device)
    tiles = parts.values.new_zeros(len(dense), weights)
    tiles[dense] = parts.values[value_offsets[dense, None] + order]
    bits = parts.bits[bit_offsets[~dense, None] + order[: parts.bitmap_bytes]]
    kept = (bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)).bitwise_and_(1).bool()
    values = parts.values[value_offsets[~dense, None] + order[: weights // 2]]
    sparse = parts.values.new_zeros(len(bits), weights)
    sparse[kept.flatten(1)[:, :weights]] = values.flatten()
    tiles[~dense] = sparse
    return tiles.view(last - first, columns, parts.height, parts.width).transpose(1, 2).reshape(-1, parts.shape[1])


def _tiles(matrix: Tensor, height: int, width: int) -> Tensor:
    """Return a matrix as `[tiles, height, width]`, in row-major order of tiles."""
    rows, columns = matrix.shape
    return matrix.reshape(rows // height, height, columns // width, width).transpose(1, 2).reshape(-1, height, width)


def _exactly_two(kept: Tensor) -> Tensor:
    """Return the mask with exactly two of every group set: where it keeps fewer, zeros are stored too."""
    groups = kept.view(-1, 4)
    counts = groups.sum(1, keepdim=True)
    wrong = (counts > 2).nonzero()
    if len(wrong):
        tile = int(wrong[0, 0]) * 4 // kept[0].numel()
        raise InputError(f"sparse tile {tile} keeps {int(counts.max())} of a group of four; 2:4 keeps two")
    return (groups | ((~groups).cumsum(1) <= 2 - counts) & ~groups).view_as(kept)


def _pack_bits(kept: Tensor) -> Tensor:
    """Pack `[tiles, weights]` bool into bytes, the first weight in the lowest bit."""
    padded = torch.nn.functional.pad(kept.to(torch.uint8), (0, -kept.shape[1] % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=kept.device)).sum(1, dtype=torch.uint8)
