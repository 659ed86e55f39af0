"""Checks of a packed weight's parts before a kernel gets their addresses.

A kernel computes addresses from the map of tiles and trusts the sizes. It therefore gets a copy of the map, and views
of the other parts, whose sizes nothing else can change. Before each use, the address and size of the memory and the
versions of the parts are compared with those that were checked. A write that PyTorch does not count, such as by NumPy,
can change a product, but never an address.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.masks.tile import tile_grid, tile_shape

PARTS = ("dense", "values", "bits")
# A byte of bits with two set of each four, and one whose upper four are beyond the end of a tile.
TWO_AND_TWO, TWO_AND_NONE = 0x22, 0x02


class CheckedParts:
    """Sizes, tiles and addresses of a packed weight whose parts are consistent.

    Attributes:
        shape: `(out, in)`.
        height: rows of a tile.
        width: columns of a tile.
        weights: number of weights of a tile.
        size: bytes of the bits of a sparse tile.
        dense: `[tiles along out, tiles along in]` bool, a copy.
        values: a view of the weight's values.
        bits: a view of the weight's bits.
        starts: `[2, tiles]` int64 on the device of the values: the first value and the first byte of bits of each tile.
        state: result of `state_of` when the parts were checked.
        kept: data that backends derive from the weight, by backend name.
    """

    def __init__(self, shape: tuple[int, int], tile: int, dense: Tensor, values: Tensor, bits: Tensor) -> None:
        self.shape = check_geometry(shape, tile)
        self.height, self.width = tile_shape(self.shape, tile)
        self.weights, self.size = tile_counts(self.shape, tile)
        self.kept: dict[str, Any] = {}
        _check_kinds(dense, values, bits)
        grid = tile_grid(self.shape, tile)
        if tuple(dense.shape) != grid:
            raise InputError(f"dense has the shape {list(dense.shape)}, not that of a map of {list(grid)} tiles")
        for name, part in zip(PARTS, (dense, values, bits), strict=True):
            _check_memory(name, part)
        self.values, self.bits = values.detach(), bits.detach()
        self._memory = self.values.untyped_storage(), self.bits.untyped_storage()
        # Before the copy and the check of contents, so that a write in between is detected at the next use.
        self.state = self.state_of(dense, values, bits)
        self.dense = dense.detach().clone(memory_format=torch.contiguous_format)
        full = self.dense.flatten()
        values_of = torch.where(full, self.weights, self.weights // 2)
        ends = torch.stack([values_of, torch.where(full, 0, self.size)]).cumsum(1)
        self.starts = nn.functional.pad(ends, (1, 0))[:, :-1].contiguous()
        if not dense.is_meta:
            _check_sizes(values, bits, *ends[:, -1].tolist())
            if not two_of_four(bits, self.weights, self.size):
                raise InputError("bits are damaged: a group does not keep two of four")

    def state_of(self, dense: Tensor, values: Tensor, bits: Tensor) -> tuple[int, ...]:
        """Return the address, size and version of the parts, equal to `state` while the checked parts are unchanged.

        The version of the values does not count, since any number is a valid value.
        """
        of_values, of_bits = self._memory
        return (
            values.data_ptr(),
            bits.data_ptr(),
            bits._version,
            dense.data_ptr(),
            dense._version,
            # The storage under the views can be resized or moved.
            of_values.data_ptr(),
            of_values.nbytes(),
            of_bits.data_ptr(),
            of_bits.nbytes(),
        )


def check_geometry(shape: tuple[int, int], tile: int) -> tuple[int, int]:
    """Check that tiles of side ``tile`` cut a matrix of ``shape`` into whole groups of four.

    Returns:
        The shape, as a new tuple.

    Raises:
        InputError: they do not, or a size is not a positive integer.
    """
    sizes = (*shape, tile) if isinstance(shape, (tuple, list)) else ()
    if len(sizes) != 3 or any(type(size) is not int or size < 1 for size in sizes):
        raise InputError(f"shape {shape!r:.99} and tile {tile!r:.99}: expected two sizes and a side, above zero")
    height, width = tile_shape(shape, tile)
    if shape[0] % height or shape[1] % width or width % 4:
        raise InputError(f"tile {tile} does not cut a weight of {list(shape)} into tiles of whole groups of four")
    return shape[0], shape[1]


def tile_counts(shape: tuple[int, int], tile: int) -> tuple[int, int]:
    """Return the number of weights of a tile, and of bytes of the bits of a sparse one."""
    weights = math.prod(tile_shape(shape, tile))
    return weights, -(-weights // 8)


def two_of_four(bits: Tensor, weights: int, size: int) -> bool:
    """Return whether every group of a sparse tile has two bits set, and no bit is set beyond a tile's end.

    Args:
        bits: the bits of all sparse tiles.
        weights: number of weights of a tile.
        size: bytes of a tile's bits.
    """
    pairs = (bits & 0x55) + ((bits >> 1) & 0x55)
    counts = ((pairs & 0x33) + ((pairs >> 2) & 0x33)).view(-1, size)
    expected = torch.full((size,), TWO_AND_TWO, dtype=torch.uint8, device=bits.device)
    if weights % 8:
        expected[-1] = TWO_AND_NONE
    return bool((counts == expected).all())


def _check_kinds(dense: Tensor, values: Tensor, bits: Tensor) -> None:
    parts = dict(zip(PARTS, (dense, values, bits), strict=True))
    for name, part in parts.items():
        # A subclass could report another address.
        if type(part) not in (Tensor, nn.Parameter):
            kind = "missing" if part is None else type(part).__name__
            raise InputError(f"{name}: {kind}; expected a plain tensor")
        if part.layout != torch.strided or part.is_neg():
            raise InputError(f"{name}: a {part.layout} or negated tensor; expected one that is in memory as it is")
    for name, part in parts.items():
        if part.device != values.device:
            raise InputError(f"{name} is on {part.device}, the values on {values.device}; move the whole layer")
    if dense.dtype != torch.bool or bits.dtype != torch.uint8 or not values.is_floating_point():
        kinds = f"{dense.dtype}, {bits.dtype} and {values.dtype}"
        raise InputError(f"dense, bits and values are {kinds}; expected bool, uint8 and floating-point numbers")


def _check_sizes(values: Tensor, bits: Tensor, count: int, size: int) -> None:
    for name, part, wanted in (("values", values, count), ("bits", bits, size)):
        if tuple(part.shape) != (wanted,):
            raise InputError(f"{name} have the shape {list(part.shape)}, not [{wanted}] as the tiles ask for")
        if not part.is_contiguous():
            raise InputError(f"{name} are not contiguous; give them as `{name}.contiguous()`")


def _check_memory(name: str, part: Tensor) -> None:
    last = sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True))
    needed = (part.storage_offset() + last + 1) * part.element_size() if part.numel() else 0
    there = part.untyped_storage().nbytes()
    if there < needed:
        raise InputError(f"{name} need {needed} bytes, but their storage was cut to {there}")
