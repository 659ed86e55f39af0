"""Blocks and concatenations of packed weights against the same of the masked weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.errors import InputError
from patch.inference.packed import pack, unpack
from patch.inference.sharding import all_dense, block_of, check_block, joined

# Shape, tile, and the sides of its tiles: square ones, and tiles that the matrix cuts off in either direction.
WEIGHTS = [((24, 36), 12, (12, 12)), ((8, 64), 16, (8, 16)), ((64, 8), 16, (16, 8)), ((20, 12), 4, (4, 4))]


@given(st.data())
def test_a_block_has_the_weights_of_the_masked_matrix_in_the_same_form(hybrid_weight: Callable, data: st.DataObject):
    shape, tile, sides = data.draw(st.sampled_from(WEIGHTS))
    hybrid = hybrid_weight(shape, tile, data.draw(st.sampled_from([0.0, 0.4, 1.0])), torch.float64)
    rows, columns = (
        range(*sorted(data.draw(st.lists(st.integers(0, size // side), min_size=2, max_size=2, unique=True))))
        for size, side in zip(shape, sides, strict=True)
    )
    tiles = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
    rows, columns = (range(r.start * s, r.stop * s) for r, s in zip((rows, columns), sides, strict=True))
    block = block_of(hybrid.packed, rows, columns)
    inside = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
    assert unpack(block).equal(hybrid.masked[inside])
    expected = pack(hybrid.weight[inside], hybrid.mask[inside], hybrid.dense[tiles], tile)
    assert (block.shape, block.tile) == (expected.shape, expected.tile)
    for name in ("dense", "values", "bits"):
        assert getattr(block, name).equal(getattr(expected, name)), name


def test_blocks_are_copies(hybrid_weight: Callable):
    packed = hybrid_weight((8, 8), 4).packed
    block = block_of(packed, range(0, 8), range(0, 8))
    before = unpack(block)
    for part in (packed.values, packed.bits, packed.dense):
        part.zero_()
    assert unpack(block).equal(before)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (range(0, 6), range(0, 36), "outputs 0 to 6 would cut tiles of 12 outputs"),
        (range(6, 24), range(0, 36), "outputs 6 to 24 would cut tiles of 12 outputs"),
        (range(0, 24), range(12, 30), "inputs 12 to 30 would cut tiles of 12 inputs"),
    ],
)
def test_a_block_that_cuts_tiles_is_refused(hybrid_weight: Callable, rows: range, columns: range, message: str):
    with pytest.raises(InputError, match=message):
        check_block((24, 36), 12, rows, columns)
    with pytest.raises(InputError, match=message):
        block_of(hybrid_weight((24, 36), 12).packed, rows, columns)


def test_a_tile_as_high_as_the_matrix_is_not_cut():
    check_block((8, 64), 16, range(0, 8), range(16, 48))
    with pytest.raises(InputError, match="outputs 4 to 8 would cut tiles of 8 outputs"):
        check_block((8, 64), 16, range(4, 8), range(0, 64))


def test_weights_with_equal_tiles_become_one(hybrid_weight: Callable):
    found = [hybrid_weight((rows, 32), 8, fraction, seed=rows) for rows, fraction in ((24, 0.5), (8, 0.0), (16, 1.0))]
    (whole,) = joined([one.packed for one in found])
    assert unpack(whole).equal(torch.cat([one.masked for one in found]))


def test_weights_with_other_tiles_stay_apart_in_order(hybrid_weight: Callable):
    """Two weights of eight rows have tiles of 8 x 16, but a weight of all rows would have tiles of 16 x 16."""
    found = [hybrid_weight((rows, 32), 16, seed=i) for i, rows in enumerate((16, 32, 8, 8))]
    parts = joined([one.packed for one in found])
    assert [part.shape for part in parts] == [(48, 32), (8, 32), (8, 32)]
    assert torch.cat([unpack(part) for part in parts]).equal(torch.cat([one.masked for one in found]))


@pytest.mark.parametrize(
    ("shape", "tile", "sides"), [((24, 16), 8, (8, 8)), ((6, 16), 8, (6, 8)), ((12, 16), 8, (12, 16))]
)
def test_a_dense_weight_is_packed_whole(shape: tuple[int, int], tile: int, sides: tuple[int, int]):
    weight = torch.randn(shape, dtype=torch.float64)
    packed = all_dense(weight, tile)
    assert unpack(packed).equal(weight)
    assert (packed.checked.height, packed.checked.width) == sides
    assert packed.dense.all() and len(packed.bits) == 0
