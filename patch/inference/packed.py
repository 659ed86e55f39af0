"""Packed hybrid weights: dense tiles are stored whole, sparse ones as two of every four values and a bit mask.

Tiles are stored in row-major order, and the rows of a tile one after the other, so that a kernel reads memory in order.
The bit mask of a group of four has two bits set. It takes as much memory as two indices of two bits, and it is the
operand of the instructions that expand a register. The values are numbers, or codes of four bits with scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.checked import (
    CODES_PER_BYTE,
    LARGEST_CODE,
    PARTS,
    SCALES,
    CheckedParts,
    check_geometry,
    tile_counts,
)
from patch.masks.tile import tile_grid, tile_shape
from patch.quantization.absmax import Quantized, group_count
from patch.quantization.nibbles import pack_nibbles, unpack_nibbles


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix under a hybrid mask.

    Attributes:
        shape: `(out, in)`.
        tile: side of a tile; a tile larger than the matrix in a direction ends with it.
        dense: `[tiles along out, tiles along in]` bool, True = dense.
        values: `[n]` of the weight's dtype: all values of dense tiles, and the two kept of each group of sparse tiles.
            For a quantized weight, the same values as codes in `[n / 2]` uint8, see `patch.quantization.nibbles`.
        bits: `[m]` uint8, the masks of sparse tiles: bit i of a group's four bits is set where weight i is kept; the
            first group is in the lower half of a byte, and each tile begins with a new byte.
        scales: for a quantized weight `[out, ceil(in / group_size)]` fp32, positive: a value is its code times its
            scale, in fp32. None for others.
        group_size: for a quantized weight, the number of columns that share a scale.

    Raises:
        InputError: the parts are inconsistent.
    """

    shape: tuple[int, int]
    tile: int
    dense: Tensor
    values: Tensor
    bits: Tensor
    scales: Tensor | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            if isinstance(part, Tensor) and part.is_inference():
                # PyTorch does not count writes to inference tensors.
                with torch.inference_mode(False):
                    object.__setattr__(self, name, part.clone())
        self.__dict__["_checked"] = self._check()

    def _check(self) -> CheckedParts:
        return CheckedParts(self.shape, self.tile, **self.parts, group_size=self.group_size)

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[object, ...]]:
        # Unpickled and copied weights are checked as well.
        return PackedWeight, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors by name; `scales` only if there are any."""
        names = PARTS if self.scales is None else (*PARTS, SCALES)
        return {name: getattr(self, name) for name in names}

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def checked(self) -> CheckedParts:
        """Checked parts for a backend; they are checked again if a part has moved or changed since the last check.

        Raises:
            InputError: the parts are no longer consistent.
        """
        known: CheckedParts = self.__dict__["_checked"]
        if known.state != known.current_state(self.dense, self.values, self.bits, self.scales):
            known = self.__dict__["_checked"] = self._check()
        return known

    def matches(self, shape: tuple[int, int], tile: int, parts: Mapping[str, Tensor], group_size: int | None) -> bool:
        """Return whether these are the parts that were checked last, unmoved and unchanged since."""
        known: CheckedParts = self.__dict__["_checked"]
        same = (self.shape, self.tile, self.group_size) == (shape, tile, group_size)
        return same and known.state == known.current_state(**parts)

    def to(self, device: torch.device | str) -> PackedWeight:
        """Return the weight on another device."""
        moved = {name: part.to(device) for name, part in self.parts.items()}
        return PackedWeight(self.shape, self.tile, **moved, group_size=self.group_size)


def packed_bytes(
    shape: tuple[int, int], tile: int, dense_tiles: int, itemsize: int, group_size: int | None = None
) -> int:
    """Return the bytes of a packed weight: at 16 bits `1 - 0.4375 f` of dense ones, f the fraction of sparse tiles.

    With a ``group_size`` it is a quantized weight, whose ``itemsize`` of one byte holds two values.
    """
    weights, bitmap_bytes = tile_counts(shape, tile)
    tiles = math.prod(tile_grid(shape, tile))
    stored, scale_bytes = itemsize * weights, 0
    if group_size is not None:
        stored, scale_bytes = stored // CODES_PER_BYTE, 4 * shape[0] * group_count(shape[1], group_size)
    return stored * dense_tiles + (stored // 2 + bitmap_bytes) * (tiles - dense_tiles) + tiles + scale_bytes


def pack(weight: Tensor | Quantized, mask: Tensor, dense: Tensor, tile: int) -> PackedWeight:
    """Pack `mask * weight`.

    Args:
        weight: `[out, in]`, of any floating dtype, or quantized to at most four bits.
        mask: `[out, in]` bool, True = keep.
        dense: `[tiles along out, tiles along in]` bool: tiles that are stored whole; the mask is 2:4 in all others.
        tile: side of a tile, which divides the matrix; its width is a multiple of four.

    Raises:
        InputError: the shapes do not agree, a tile that is not dense keeps more than two of a group, or a code needs
            more than four bits.
    """
    quantized = weight if isinstance(weight, Quantized) else None
    weight = weight.codes if isinstance(weight, Quantized) else weight.detach()
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
    tiles = _tiles(weight, height, width).masked_fill(~kept, 0)
    sparse = ~dense.flatten()
    stored = torch.ones_like(kept)
    stored[sparse] = _exactly_two(kept[sparse])
    dense, values, bits = dense.contiguous().clone(), tiles[stored], _pack_bits(stored[sparse].flatten(1))
    if quantized is None:
        return PackedWeight(shape, tile, dense, values, bits)
    if not ((weight >= -LARGEST_CODE) & (weight < LARGEST_CODE)).all():
        raise InputError(f"codes of {quantized.bits} bits do not fit in four; quantize with `bits: 4`")
    scales = quantized.scales.to(weight.device, copy=True).contiguous()
    return PackedWeight(shape, tile, dense, pack_nibbles(values), bits, scales, quantized.group_size)


def unpack(packed: PackedWeight) -> Tensor:
    """Return the masked weight, `[out, in]`; a quantized one in fp32."""
    return unpack_rows(packed, 0, packed.checked.dense.shape[0])


def unpack_rows(packed: PackedWeight, first: int, last: int) -> Tensor:
    """Return rows of tiles from ``first`` up to ``last`` of the masked weight, `[rows, in]`."""
    parts = packed.checked
    weights, columns = parts.tile_weights, parts.dense.shape[1]
    wanted = slice(first * columns, last * columns)
    dense, (value_offsets, bit_offsets) = parts.dense.flatten()[wanted], parts.offsets[:, wanted]
    whole = _values(parts, value_offsets[dense], weights)
    tiles = whole.new_zeros(len(dense), weights)
    tiles[dense] = whole
    bits = parts.bits[bit_offsets[~dense, None] + torch.arange(parts.bitmap_bytes, device=parts.bits.device)]
    kept = (bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)).bitwise_and_(1).bool()
    sparse = whole.new_zeros(len(bits), weights)
    sparse[kept.flatten(1)[:, :weights]] = _values(parts, value_offsets[~dense], weights // 2).flatten()
    tiles[~dense] = sparse
    rows = tiles.view(last - first, columns, parts.height, parts.width).transpose(1, 2).reshape(-1, parts.shape[1])
    if parts.scales is None:
        return rows
    scales = parts.scales[first * parts.height : last * parts.height]
    return Quantized(rows, scales, 4, parts.group_size).dequantize()


def _values(parts: CheckedParts, offsets: Tensor, count: int) -> Tensor:
    """Return ``count`` values of each tile, `[tiles, count]`, from the offset of its first one; codes as int8."""
    size = count if parts.scales is None else count // CODES_PER_BYTE
    stored = parts.values[offsets[:, None] + torch.arange(size, device=parts.values.device)]
    return stored if parts.scales is None else unpack_nibbles(stored)


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
