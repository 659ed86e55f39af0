"""Square tiles of a weight matrix. A tile that is larger than the matrix in a direction ends with it."""

from __future__ import annotations

import torch
from torch import Tensor


def tile_shape(shape: tuple[int, int] | torch.Size, tile: int) -> tuple[int, int]:
    """Return the number of weights along `out` and `in` of one tile."""
    rows, columns = shape
    return min(rows, tile), min(columns, tile)


def tile_grid(shape: tuple[int, int] | torch.Size, tile: int) -> tuple[int, int]:
    """Return the number of tiles along `out` and `in`, which they must divide."""
    (rows, columns), (height, width) = shape, tile_shape(shape, tile)
    assert rows % height == 0 and columns % width == 0, (tuple(shape), tile)
    return rows // height, columns // width


def expand_tiles(tiles: Tensor, shape: tuple[int, int] | torch.Size) -> Tensor:
    """Expand one value a tile to `[out, in]`."""
    return tiles.repeat_interleave(shape[0] // tiles.shape[0], 0).repeat_interleave(shape[1] // tiles.shape[1], 1)


def by_tile(matrix: Tensor, tile: int) -> Tensor:
    """View `[out, in]` as `[tiles along out, height, tiles along in, width]`."""
    (rows, columns), (height, width) = tile_grid(matrix.shape, tile), tile_shape(matrix.shape, tile)
    return matrix.reshape(rows, height, columns, width)


def sum_tiles(values: Tensor, tile: int) -> Tensor:
    """Sum `[out, in]` over each tile -> `[tiles along out, tiles along in]`."""
    return by_tile(values, tile).sum(dim=(1, 3))


def dense_tile_budget(tiles: int, sparsity: float) -> int:
    """Return the number of ``tiles`` equal tiles that stay dense so that the rest, half zeros, gives ``sparsity``."""
    return min(tiles, max(0, round((1 - 2 * sparsity) * tiles)))


def largest_within_budget(logits: Tensor, sizes: Tensor, sparsity: float) -> Tensor:
    """Return the tiles with the largest logits, as many as bring the sparsity nearest to ``sparsity``.

    Args:
        logits: `[tiles]`; among equals the earlier tile comes first.
        sizes: `[tiles]` int64, weights in each.
        sparsity: target, with tiles that are not chosen half zeros.

    Returns:
        `[tiles]` bool.
    """
    order = logits.argsort(descending=True, stable=True)
    if len(sizes.unique()) == 1:
        count = dense_tile_budget(len(sizes), sparsity)
    else:
        dense = torch.cat([sizes.new_zeros(1), sizes[order].cumsum(0)]).double()
        count = int((dense - max(0.0, 1 - 2 * sparsity) * dense[-1]).abs().argmin())
    chosen = torch.zeros_like(logits, dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen
