"""Checks of a packed weight's parts before a kernel gets their addresses.

A kernel computes addresses from the tile map and trusts the sizes. It therefore gets a copy of the map, and views of
the other parts, whose sizes nothing else can change. Before each use, the address and size of the memory and the
versions of the parts are compared with those that were checked. A write that PyTorch does not count, such as one by
NumPy, can change a product, but never an address.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.masks.tile import tile_grid, tile_shape
from patch.quantization.absmax import group_count

PARTS = ("dense", "values", "bits")
# The further part of a quantized weight, whose values are codes of four bits, two in a byte.
SCALES = "scales"
CODES_PER_BYTE, LARGEST_CODE = 2, 8
# Bit counts of a byte's two groups, four bits each: two and two, and at the end of a tile of odd groups two and none.
BOTH_GROUPS, LAST_GROUP = 0x22, 0x02


class CheckedParts:
    """Sizes, tiles and addresses of a packed weight whose parts are consistent.

    Attributes:
        shape: `(out, in)`.
        height: rows of a tile.
        width: columns of a tile.
        tile_weights: number of weights of a tile.
        bitmap_bytes: bytes of the bit mask of a sparse tile.
        dense: `[tiles along out, tiles along in]` bool, a copy.
        values: a view of the weight's values.
        bits: a view of the weight's bits.
        scales: a view of the scales of a quantized weight, else None.
        group_size: number of columns that share a scale, or None.
        offsets: `[2, tiles]` int64 on the device of the values: the first element of `values` and the first byte of
            `bits` of each tile.
        state: result of `current_state` when the parts were checked.
        cache: data that backends derive from the weight, by backend name.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        tile: int,
        dense: Tensor,
        values: Tensor,
        bits: Tensor,
        scales: Tensor | None = None,
        group_size: int | None = None,
    ) -> None:
        self.shape = check_geometry(shape, tile)
        self.height, self.width = tile_shape(self.shape, tile)
        self.tile_weights, self.bitmap_bytes = tile_counts(self.shape, tile)
        self.cache: dict[str, Any] = {}
        _check_tensors(dense, values, bits, scales)
        grid = tile_grid(self.shape, tile)
        if tuple(dense.shape) != grid:
            raise InputError(f"dense has the shape {list(dense.shape)}; expected {list(grid)}, an entry for each tile")
        self.values, self.bits = values.detach(), bits.detach()
        self.scales, self.group_size = None if scales is None else scales.detach(), None
        stored = (self.values, self.bits) if self.scales is None else (self.values, self.bits, self.scales)
        self._memory = [part.untyped_storage() for part in stored]
        # Before the copy and the check of contents, so that a write in between is detected at the next use.
        self.state = self.current_state(dense, values, bits, scales)
        self.dense = dense.detach().clone(memory_format=torch.contiguous_format)
        full = self.dense.flatten()
        elements = self.tile_weights if scales is None else self.tile_weights // CODES_PER_BYTE
        value_counts = torch.where(full, elements, elements // 2)
        ends = torch.stack([value_counts, torch.where(full, 0, self.bitmap_bytes)]).cumsum(1)
        self.offsets = nn.functional.pad(ends, (1, 0))[:, :-1].contiguous()
        if scales is not None or group_size is not None:
            self.group_size = _check_scales(scales, group_size, self.shape)
        if not dense.is_meta:
            _check_sizes(values, bits, *ends[:, -1].tolist())
            self._check_bits()

    def current_state(
        self, dense: Tensor, values: Tensor, bits: Tensor, scales: Tensor | None = None
    ) -> tuple[int, ...]:
        """Return the address, size and version of the parts, equal to `state` while the checked parts are unchanged.

        The version of the values does not count, since any number is a valid value.
        """
        state = [values.data_ptr(), bits.data_ptr(), bits._version, dense.data_ptr(), dense._version]
        if scales is not None:
            state += [scales.data_ptr(), scales._version]
        # The storage under the views can be resized or moved.
        for storage in self._memory:
            state += [storage.data_ptr(), storage.nbytes()]
        return tuple(state)

    def _check_bits(self) -> None:
        """Check that every group of a sparse tile has two bits set, and that no bit is set beyond a tile's end."""
        pairs = (self.bits & 0x55) + ((self.bits >> 1) & 0x55)
        counts = ((pairs & 0x33) + ((pairs >> 2) & 0x33)).view(-1, self.bitmap_bytes)
        expected = torch.full_like(self.bits, BOTH_GROUPS).view_as(counts)
        if self.tile_weights % 8:
            expected[:, -1] = LAST_GROUP
        if not torch.equal(counts, expected):
            raise InputError("bits are damaged: a group does not keep two of four")


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
    """Return the number of weights of a tile, and of bytes of the bit mask of a sparse tile."""
    weights = math.prod(tile_shape(shape, tile))
    return weights, -(-weights // 8)


def _check_tensors(dense: Tensor, values: Tensor, bits: Tensor, scales: Tensor | None) -> None:
    parts = dict(zip(PARTS, (dense, values, bits), strict=True))
    if scales is not None:
        parts[SCALES] = scales
    for name, part in parts.items():
        # A subclass could report another address.
        if type(part) not in (Tensor, nn.Parameter):
            kind = "missing" if part is None else type(part).__name__
            raise InputError(f"{name}: {kind}; expected a plain tensor")
        if part.layout != torch.strided or part.is_neg():
            raise InputError(f"{name}: a {part.layout} or negated tensor; expected a plain strided tensor")
    for name, part in parts.items():
        if part.device != values.device:
            raise InputError(f"{name} is on {part.device}, the values on {values.device}; move the whole layer")
    numbers = values.is_floating_point() if scales is None else values.dtype == torch.uint8
    if dense.dtype != torch.bool or bits.dtype != torch.uint8 or not numbers:
        kinds = f"{dense.dtype}, {bits.dtype} and {values.dtype}"
        expected = "floating-point numbers" if scales is None else "uint8, as there are scales"
        raise InputError(f"dense, bits and values are {kinds}; expected bool, uint8 and {expected}")
    for name, part in parts.items():
        last = sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True))
        needed = (part.storage_offset() + last + 1) * part.element_size() if part.numel() else 0
        if part.untyped_storage().nbytes() < needed:
            stored = part.untyped_storage().nbytes()
            raise InputError(f"{name} need {needed} bytes, but their storage has only {stored}")


def _check_sizes(values: Tensor, bits: Tensor, count: int, size: int) -> None:
    for name, part, wanted in (("values", values, count), ("bits", bits, size)):
        if tuple(part.shape) != (wanted,):
            raise InputError(f"{name} have the shape {list(part.shape)}, not [{wanted}] as the tiles require")
        if not part.is_contiguous():
            raise InputError(f"{name} are not contiguous; give them as `{name}.contiguous()`")


def _check_scales(scales: Tensor | None, group_size: int | None, shape: tuple[int, int]) -> int:
    """Check the scales, and return the number of columns that share one; a larger group ends with the row."""
    if scales is None or group_size is None:
        raise InputError(f"scales are {'missing' if scales is None else 'given'}, and group_size is {group_size!r:.99}")
    if type(group_size) is not int or group_size < 1:
        raise InputError(f"group_size is {group_size!r:.99}; expected a number of columns, above zero")
    wanted = [shape[0], group_count(shape[1], group_size)]
    if scales.dtype != torch.float32 or list(scales.shape) != wanted:
        raise InputError(f"scales are {scales.dtype} of the shape {list(scales.shape)}; expected float32 of {wanted}")
    if not scales.is_contiguous():
        raise InputError("scales are not contiguous; give them as `scales.contiguous()`")
    if not scales.is_meta and not ((scales > 0) & (scales * LARGEST_CODE).isfinite()).all():
        raise InputError("scales are damaged: one is not positive and finite, or too large")
    return min(group_size, shape[1])
