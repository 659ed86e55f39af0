"""Square tiles of a weight matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def tile_grid(shape: tuple[int, int] | torch.Size, tile: int) -> tuple[int, int]:
    """Number of tiles along `out` and `in`; ``tile`` divides both."""
    rows, columns = shape
    assert rows % tile == 0 and columns % tile == 0, (tuple(shape), tile)
    return rows // tile, columns // tile


def expand_tiles(tiles: Tensor, tile: int) -> Tensor:
    """`[out / tile, in / tile]` -> `[out, in]`."""
    return tiles.repeat_interleave(tile, 0).repeat_interleave(tile, 1)


def sum_tiles(values: Tensor, tile: int) -> Tensor:
    """Sum `[out, in]` over each tile -> `[out / tile, in / tile]`."""
    rows, columns = tile_grid(values.shape, tile)
    return values.reshape(rows, tile, columns, tile).sum(dim=(1, 3))


def dense_tile_budget(tiles: int, sparsity: float) -> int:
    """How many of ``tiles`` equal tiles stay dense so that the rest, half zeros, gives ``sparsity``."""
    return min(tiles, max(0, round((1 - 2 * sparsity) * tiles)))
