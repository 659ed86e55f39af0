"""Tests of tiles against index arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.masks.tile import dense_tile_budget, expand_tiles, largest_within_budget, sum_tiles, tile_grid


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3, 4, 8]), st.integers(0, 1000))
def test_expand_and_sum(rows: int, columns: int, tile: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randint(-9, 9, (rows, columns), generator=generator)
    full = torch.randint(-9, 9, (rows * tile, columns * tile), generator=generator)
    expanded, sums = expand_tiles(tiles, full.shape), sum_tiles(full, tile)
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


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([4, 8, 12, 2**20]), st.integers(0, 1000))
def test_a_tile_ends_with_a_smaller_matrix(rows: int, columns: int, tile: int, seed: int) -> None:
    """A side shorter than a tile is one tile; others must be multiples."""
    height, width = min(rows, tile), min(columns, tile)
    rows, columns = rows // height * height, columns // width * width
    full = torch.randint(-9, 9, (rows, columns), generator=torch.Generator().manual_seed(seed))
    grid = tile_grid(full.shape, tile)
    assert grid == (rows // height, columns // width)
    sums = torch.zeros(grid, dtype=torch.int64)
    for i in range(rows):
        for j in range(columns):
            sums[i // height, j // width] += full[i, j]
    assert torch.equal(sum_tiles(full, tile), sums)
    expanded = expand_tiles(sums, full.shape)
    assert all(expanded[i, j] == sums[i // height, j // width] for i in range(rows) for j in range(columns))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.floats(0, 0.5), st.integers(0, 1000))
def test_chosen_tiles_are_the_largest_and_meet_the_target(sizes: list[int], sparsity: float, seed: int) -> None:
    logits = torch.randn(len(sizes), generator=torch.Generator().manual_seed(seed))
    chosen = largest_within_budget(logits, torch.tensor(sizes), sparsity)
    assert chosen.dtype == torch.bool
    if chosen.any() and not chosen.all():
        assert logits[chosen].min() > logits[~chosen].max()
    total, order = sum(sizes), logits.argsort(descending=True).tolist()
    errors = [abs(0.5 * (total - sum(sizes[i] for i in order[:k])) / total - sparsity) for k in range(len(sizes) + 1)]
    achieved = 0.5 * (total - sum(size for size, dense in zip(sizes, chosen.tolist(), strict=True) if dense)) / total
    assert abs(achieved - sparsity) <= min(errors) + 1e-12, "another number of dense tiles is nearer to the target"


def test_equal_logits_are_taken_from_the_front() -> None:
    chosen = largest_within_budget(torch.zeros(5), torch.tensor([4, 4, 4, 4, 4]), 0.3)
    assert chosen.tolist() == [True, True, False, False, False]
