"""Tiles against index arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.masks.tile import dense_tile_budget, expand_tiles, sum_tiles, tile_grid


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3, 4, 8]), st.integers(0, 1000))
def test_expand_and_sum(rows: int, columns: int, tile: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randint(-9, 9, (rows, columns), generator=generator)
    full = torch.randint(-9, 9, (rows * tile, columns * tile), generator=generator)
    expanded, sums = expand_tiles(tiles, tile), sum_tiles(full, tile)
    expected = [[0] * columns for _ in range(rows)]
    for i in range(rows * tile):
        for j in range(columns * tile):
            assert expanded[i, j] == tiles[i // tile, j // tile]
            expected[i // tile][j // tile] += int(full[i, j])
    assert sums.tolist() == expected
    assert tile_grid(full.shape, tile) == (rows, columns)


@given(st.integers(1, 5000), st.floats(0, 0.5))
def test_budget_meets_the_target_to_the_tile(tiles: int, sparsity: float) -> None:
    dense = dense_tile_budget(tiles, sparsity)
    assert 0 <= dense <= tiles
    errors = {k: abs(0.5 * (tiles - k) / tiles - sparsity) for k in (dense - 1, dense, dense + 1) if 0 <= k <= tiles}
    assert errors[dense] <= min(errors.values()) + 1e-12, "another number of dense tiles is nearer to the target"


@pytest.mark.parametrize(
    ("tiles", "sparsity", "dense"), [(8, 0.5, 0), (8, 0, 8), (8, 0.25, 4), (100, 0.45, 10), (1, 0.45, 0), (7, 0.7, 0)]
)
def test_budget_examples(tiles: int, sparsity: float, dense: int) -> None:
    assert dense_tile_budget(tiles, sparsity) == dense
