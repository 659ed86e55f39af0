"""Packed hybrid weights: dense tiles are stored whole, sparse ones as two of every four values and their places.

Tiles follow each other, row by row of tiles, and within each its rows, so that a kernel reads from one end to the
other. The places of a group's two values are four bits, of which two are set. They take as much memory as two positions
of two bits, and are the form that instructions for expanding a register need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.checked import PARTS, CheckedParts, check_geometry, tile_counts, two_of_four
from patch.masks.tile import tile_grid, tile_shape


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix under a hybrid mask.

    Attributes:
        shape: `(out, in)`.
        tile: side of a tile; a tile larger than the matrix in a direction ends with it.
        dense: `[tiles along out, tiles along in]` bool, True = dense.
        values: `[n]` of the weight's dtype: all values of dense tiles, and the two kept of each group of sparse ones.
        bits: `[m]` uint8: four bits a group of sparse tiles, of which bit i is set where weight i is kept, the first
            group lowest; each tile begins with a new byte.

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
    def height(self) -> int:
        """Number of rows of a tile."""
        return tile_shape(self.shape, self.tile)[0]

    @property
    def width(self) -> int:
        """Number of columns of a tile."""
        return tile_shape(self.shape, self.tile)[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.numel() * part.element_size() for part in (self.dense, self.values, self.bits))

    @property
    def checked(self) -> CheckedParts:
        """Parts as backends use them; they are checked again if a part has moved or changed since the last check.

        Raises:
            InputError: the parts are no longer consistent.
        """
        known: CheckedParts = self.__dict__["_checked"]
        if known.state != known.state_of(self.dense, self.values, self.bits):
            known = CheckedParts(self.shape, self.tile, self.dense, self.values, self.bits)
            self.__dict__["_checked"] = known
        return known

    @property
    def starts(self) -> Tensor:
        """Start of the values and of the bits of each tile: `[2, tiles]` int64 on the device of the values."""
        return self.checked.starts.clone()

    def is_two_of_four(self) -> bool:
        """Return whether every group of a sparse tile has two bits set, and no bit is set beyond a tile's end."""
        return two_of_four(self.bits, *tile_counts(self.shape, self.tile))

    def to(self, device: torch.device | str) -> PackedWeight:
        """Return the weight on another device."""
        parts = (part.to(device) for part in (self.dense, self.values, self.bits))
        return PackedWeight(self.shape, self.tile, *parts)


def packed_bytes(shape: tuple[int, int], tile: int, dense_tiles: int, itemsize: int) -> int:
    """Return the bytes of a packed weight: at 16 bits `1 - f * 0.4375` of a dense one, f of the tiles sparse."""
    weights, bits = tile_counts(shape, tile)
    tiles = math.prod(tile_grid(shape, tile))
    sparse = tiles - dense_tiles
    return itemsize * weights * dense_tiles + (itemsize * weights // 2 + bits) * sparse + tiles


def pack(weight: Tensor, mask: Tensor, dense: Tensor, tile: int) -> PackedWeight:
    """Pack `mask * weight`.

    Args:
        weight: `[out, in]`, of any floating dtype.
        mask: `[out, in]` bool, True = keep.
        dense: `[tiles along out, tiles along in]` bool: tiles that are stored whole; in all others the mask is 2:4.
        tile: side of a tile, which divides the matrix; its width is a multiple of four.

    Raises:
        InputError: the shapes do not agree, or a tile that is not dense keeps more than two of a group.
    """
    shape = (weight.shape[0], weight.shape[1])
    if mask.shape != weight.shape:
        raise InputError(f"a mask of {list(mask.shape)} is not one of a weight of {list(shape)}")
    check_geometry(shape, tile)
    height, width = tile_shape(shape, tile)
    if tuple(dense.shape) != tile_grid(shape, tile):
        raise InputError(
            f"{list(dense.shape)} tiles are given; tiles of {tile} of a weight of {list(shape)} are "
            f"{list(tile_grid(shape, tile))}"
        )
    dense = dense.to(weight.device)
    kept = _tiles(mask.to(weight.device), height, width)
    tiles = _tiles(weight.detach(), height, width).masked_fill(~kept, 0)
    sparse = ~dense.flatten()
    stored = torch.ones_like(kept)
    stored[sparse] = _two_of_four(kept[sparse])
    return PackedWeight(shape, tile, dense.contiguous().clone(), tiles[stored], _pack_bits(stored[sparse].flatten(1)))


def unpack(packed: PackedWeight) -> Tensor:
    """Return the masked weight, `[out, in]`."""
    return unpack_rows(packed, 0, packed.checked.dense.shape[0])


def unpack_rows(packed: PackedWeight, first: int, last: int) -> Tensor:
    """Return rows of tiles from ``first`` up to ``last`` of the masked weight, `[rows, in]`."""
    parts = packed.checked
    weights, size, across = parts.weights, parts.size, parts.dense.shape[1]
    across = parts.dense.shape[1]
    some = slice(first * across, last * across)
    dense, (value_starts, bit_starts) = parts.dense.flatten()[some], parts.starts[:, some]
    tiles = parts.values.new_zeros(len(dense), weights)
    order = torch.arange(weights, device=parts.values.device)
    tiles[dense] = parts.values[value_starts[dense, None] + order]
    bits = parts.bits[bit_starts[~dense, None] + order[:size]]
    kept = (bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)).bitwise_and_(1).bool()
    values = parts.values[value_starts[~dense, None] + order[: weights // 2]]
    found = parts.values.new_zeros(len(bits), weights)
    found[kept.flatten(1)[:, :weights]] = values.flatten()
    tiles[~dense] = found
    return tiles.view(last - first, across, parts.height, parts.width).transpose(1, 2).reshape(-1, parts.shape[1])


def _tiles(matrix: Tensor, height: int, width: int) -> Tensor:
    """Return a matrix as `[tiles, height, width]`, row by row of tiles."""
    rows, columns = matrix.shape
    return matrix.reshape(rows // height, height, columns // width, width).transpose(1, 2).reshape(-1, height, width)


def _two_of_four(kept: Tensor) -> Tensor:
    """Return the mask with exactly two of every group: where it keeps fewer, zeros are stored too."""
    groups = kept.view(-1, 4)
    counts = groups.sum(1, keepdim=True)
    wrong = (counts > 2).nonzero()
    if len(wrong):
        tile = int(wrong[0, 0]) * 4 // kept[0].numel()
        raise InputError(f"sparse tile {tile} keeps {int(counts.max())} of a group of four; 2:4 keeps two")
    return (groups | ((~groups).cumsum(1) <= 2 - counts) & ~groups).view_as(kept)


def _pack_bits(kept: Tensor) -> Tensor:
    """Pack `[tiles, weights]` bool into bytes, the first weight lowest."""
    padded = torch.nn.functional.pad(kept.to(torch.uint8), (0, -kept.shape[1] % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=kept.device)).sum(1, dtype=torch.uint8)
