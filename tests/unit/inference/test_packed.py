"""Packed weights: values, bit masks, their order in memory and their bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patch.errors import InputError
from patch.inference.packed import PackedWeight, pack, packed_bytes, unpack, unpack_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Shape, tile: one and more tiles, tiles cut off by the matrix, an odd number of groups in a tile.
SHAPES = [
    ((8, 8), 4),
    ((1, 4), 4),
    ((5, 4), 128),
    ((4, 12), 4),
    ((24, 12), 12),
    ((3, 12), 12),
    ((12, 20), 4),
    ((6, 60), 20),
    ((25, 100), 100),
    ((7, 300), 100),
    ((8, 64), 16),
    ((64, 8), 16),
    ((256, 128), 128),
    ((32, 96), 32),
]


def bits_of(values: Tensor) -> Tensor:
    """View numbers as integers, so that 0 and -0 differ."""
    return values.contiguous().view(torch.int32 if values.element_size() == 4 else torch.int16)


def tiles_of(shape: tuple[int, int], tile: int) -> list[list[list[int]]]:
    """Return the rows of each tile, each row as indices of its weights in the flat matrix."""
    (rows, columns), height, width = shape, min(shape[0], tile), min(shape[1], tile)
    return [
        [[row * columns + column for column in range(left, left + width)] for row in range(top, top + height)]
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]


def packed_slowly(weight: Tensor, mask: Tensor, dense: Tensor, tile: int) -> tuple[list[float], list[int]]:
    """Return the values and the bytes of bits for masks that keep two of every group."""
    flat, kept, values, found = weight.flatten().tolist(), mask.flatten().tolist(), [], []
    for is_dense, rows in zip(dense.flatten().tolist(), tiles_of(tuple(weight.shape), tile), strict=True):
        nibbles = []
        for row in rows:
            for group in (row[i : i + 4] for i in range(0, len(row), 4)):
                values += [flat[place] for place in group if is_dense or kept[place]]
                nibbles.append(sum(1 << i for i, place in enumerate(group) if kept[place]))
        if not is_dense:
            nibbles += [0] * (len(nibbles) % 2)
            found += [low + 16 * high for low, high in zip(nibbles[::2], nibbles[1::2], strict=True)]
    return values, found


def unpacked_slowly(packed: PackedWeight) -> Tensor:
    """Unpack one group after the other, and check that each group of a sparse tile has two bits set."""
    values, all_bits = packed.values.tolist(), packed.bits.tolist()
    flat = [0.0] * (packed.shape[0] * packed.shape[1])
    for is_dense, rows in zip(packed.dense.flatten().tolist(), tiles_of(packed.shape, packed.tile), strict=True):
        nibbles: list[int] = []
        if not is_dense:
            size = -(-sum(map(len, rows)) // 8)
            mine, all_bits = all_bits[:size], all_bits[size:]
            nibbles = [half for byte in mine for half in (byte % 16, byte // 16)]
        for row in rows:
            for group in (row[i : i + 4] for i in range(0, len(row), 4)):
                chosen = range(4) if is_dense else [i for i in range(4) if nibbles[0] >> i & 1]
                assert is_dense or len(chosen) == 2
                nibbles = nibbles[1:]
                for i in chosen:
                    flat[group[i]] = values.pop(0)
        assert not any(nibbles), "bits beyond the end"
    assert not values and not all_bits
    return torch.tensor(flat, dtype=packed.values.dtype).view(packed.shape)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fewer", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "tile"), SHAPES)
def test_what_is_packed_comes_back(
    shape: tuple, tile: int, dtype: torch.dtype, fewer: bool, fraction: float, hybrid_weight: Callable
) -> None:
    made = hybrid_weight(shape, tile, fraction, dtype, fewer=fewer)
    packed = made.packed
    assert packed.values.dtype == dtype and packed.bits.dtype == torch.uint8
    assert torch.equal(bits_of(unpack(packed)), bits_of(made.masked))
    counted = sum(part.nbytes for part in (packed.values, packed.bits, packed.dense))
    assert packed.nbytes == counted == packed_bytes(shape, tile, int(made.dense.sum()), dtype.itemsize)


@given(
    side=st.sampled_from([4, 8, 12, 20, 36]),
    down=st.one_of(st.integers(1, 3), st.integers(-36, -1)),
    across=st.integers(1, 3),
    fraction=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    fewer=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_is_read_as_it_was_written(
    side: int, down: int, across: int, fraction: float, fewer: bool, seed: int, hybrid_weight: Callable
) -> None:
    rows = down * side if down > 0 else min(-down, side)
    made = hybrid_weight((rows, across * side), side, fraction, seed=seed, fewer=fewer)
    packed = made.packed
    assert torch.equal(unpacked_slowly(packed), made.masked)
    assert torch.equal(unpack(packed), made.masked)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("shape", "tile"), SHAPES)
def test_the_layout(shape: tuple, tile: int, fraction: float, hybrid_weight: Callable) -> None:
    made = hybrid_weight(shape, tile, fraction, torch.bfloat16)
    packed = made.packed
    values, found = packed_slowly(made.weight, made.mask, made.dense, tile)
    assert packed.values.tolist() == values and packed.bits.tolist() == found
    assert torch.equal(packed.dense, made.dense) and (packed.shape, packed.tile) == (shape, tile)


def test_a_layout_by_hand() -> None:
    weight = torch.arange(1.0, 33.0).view(4, 8)
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).bool()
    packed = pack(weight, torch.cat([mask, torch.ones(4, 4).bool()], 1), torch.tensor([[False, True]]), 4)
    right = [5, 6, 7, 8, 13, 14, 15, 16, 21, 22, 23, 24, 29, 30, 31, 32]
    assert packed.values.tolist() == [1, 4, 10, 11, 19, 20, 25, 26, *right]
    assert packed.bits.tolist() == [0b0110_1001, 0b0011_1100]
    assert packed.checked.offsets.tolist() == [[0, 8], [0, 2]]


def test_weights_that_are_not_contiguous(hybrid_weight: Callable) -> None:
    made = hybrid_weight((24, 40), 8)
    expected = made.packed
    for weight in (made.weight.T.contiguous().T, torch.cat([made.weight] * 2, 1)[:, :40]):
        assert not weight.is_contiguous()
        found = pack(weight, made.mask.T.contiguous().T, made.dense.T.contiguous().T, 8)
        assert torch.equal(found.values, expected.values) and torch.equal(found.bits, expected.bits)
        assert torch.equal(unpack(found), made.masked) and found.dense.is_contiguous()
        assert found.checked.offsets.equal(expected.checked.offsets)


def test_a_packed_weight_is_a_copy_without_gradients(hybrid_weight: Callable) -> None:
    made = hybrid_weight((8, 8), 4, 1.0)
    packed = pack(made.weight.requires_grad_(), made.mask, made.dense, 4)
    expected = made.masked.detach().clone()
    made.weight.data.zero_()
    made.dense.zero_()
    assert torch.equal(unpack(packed), expected) and not packed.values.requires_grad


def test_what_a_mask_drops_is_dropped_whatever_it_is() -> None:
    """Dense tiles too may have masked weights."""
    weight = torch.full((4, 8), torch.nan)
    weight[:, 0::4] = 2.0
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, 0::4] = True
    packed = pack(weight, mask, torch.tensor([[True, False]]), 4)
    assert torch.equal(unpack(packed), torch.tensor([2.0, 0, 0, 0, 2, 0, 0, 0]).expand(4, 8))


@pytest.mark.parametrize(
    ("dtype", "saved"), [(torch.bfloat16, 0.4375), (torch.float16, 0.4375), (torch.float32, 0.46875)]
)
def test_bytes(dtype: torch.dtype, saved: float, hybrid_weight: Callable) -> None:
    shape, tile, tiles = (64, 128), 32, 8
    for dense in range(tiles + 1):
        share_of_sparse, full = 1 - dense / tiles, 64 * 128 * dtype.itemsize
        expected = full * (1 - share_of_sparse * saved) + tiles
        assert packed_bytes(shape, tile, dense, dtype.itemsize) == expected
    made = hybrid_weight(shape, tile, 0.5, dtype)
    sparse = float((~made.dense).double().mean())
    assert 0 < sparse < 1 and made.packed.nbytes == full * (1 - sparse * saved) + tiles


@pytest.mark.parametrize(("shape", "tile"), [((60, 40), 20), ((32, 8), 8), ((12, 12), 4), ((7, 300), 100)])
def test_rows_of_tiles(shape: tuple, tile: int, hybrid_weight: Callable) -> None:
    made = hybrid_weight(shape, tile)
    packed, height = made.packed, min(shape[0], tile)
    rows = shape[0] // height
    for first in range(rows):
        for last in range(first + 1, rows + 1):
            found = unpack_rows(packed, first, last)
            assert torch.equal(found, made.masked[first * height : last * height])


def test_on_another_device(hybrid_weight: Callable) -> None:
    packed = hybrid_weight((8, 8), 4).packed
    moved = packed.to("meta")
    assert {part.device.type for part in (moved.values, moved.bits, moved.dense)} == {"meta"}
    assert moved.nbytes == packed.nbytes and moved.shape == packed.shape


def test_groups_that_are_not_two_of_four_are_seen(hybrid_weight: Callable) -> None:
    packed = hybrid_weight((5, 4), 128, 0.0).packed  # five groups: half a byte beyond the end
    assert len(packed.bits) == 3
    for place in (0, 2):
        for flipped in range(8):
            packed.bits[place] ^= 1 << flipped
            with pytest.raises(InputError, match="bits are damaged"):
                PackedWeight(packed.shape, packed.tile, packed.dense, packed.values, packed.bits)
            packed.bits[place] ^= 1 << flipped
    assert torch.equal(packed.checked.bits, packed.bits)


def test_wrong_input_is_named(hybrid_weight: Callable) -> None:
    made = hybrid_weight((24, 40), 8, 0.0)

    def refused(
        match: str, weight: Tensor = made.weight, mask: Tensor = made.mask, tile: int = 8, dense: Tensor = made.dense
    ) -> None:
        with pytest.raises(InputError, match=match):
            pack(weight, mask, dense, tile)

    refused(r"the mask has the shape \[24, 36\], the weight \[24, 40\]", mask=made.mask[:, :36])
    refused(r"the tile map has the shape \[3, 4\]; tile 8 cuts \[24, 40\] into \[3, 5\]", dense=made.dense[:, :4])
    refused(r"the tile map has the shape \[5, 3\]", dense=made.dense.T)
    refused(r"tile 7 does not cut a weight of \[24, 40\] into tiles of whole groups of four", tile=7)
    refused(r"tile 16 does not cut a weight of \[24, 40\]", tile=16)
    refused(r"tile 10 .*groups of four", weight=made.weight[:20], mask=made.mask[:20], tile=10)
    refused(r"tile 2 .*groups of four", tile=2)
    refused(r"tile 64 .*\[24, 38\].*groups of four", weight=made.weight[:, :38], mask=made.mask[:, :38], tile=64)
    three = made.mask.clone()
    three[17, 9:12] = True
    three[17, 8] = False
    refused(r"sparse tile 11 keeps 3 of a group of four; 2:4 keeps two", mask=three)
    pack(made.weight, three, torch.arange(15).view(3, 5) == 11, 8)
