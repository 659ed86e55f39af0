"""Packed weights of codes of four bits: their order in memory, their values and the checks of their parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patch.errors import InputError
from patch.inference.backends import backend_for, unpacked
from patch.inference.packed import PackedWeight, pack, packed_bytes, unpack, unpack_rows
from patch.quantization.absmax import Quantized, quantize

# Shape, tile, group size: groups that are wider than a tile, cut by tiles, of odd sizes, and of more than a row.
SHAPES = [
    ((8, 8), 4, 4),
    ((1, 4), 4, 3),
    ((5, 4), 128, 128),
    ((24, 36), 12, 8),
    ((6, 60), 20, 7),
    ((25, 100), 100, 64),
    ((7, 300), 100, 128),
    ((64, 96), 32, 1),
    ((64, 128), 64, 1000),
]


def bits_of(values: Tensor) -> Tensor:
    """View fp32 numbers as integers, so that 0 and -0 differ."""
    return values.contiguous().view(torch.int32)


def packed_slowly(codes: Tensor, mask: Tensor, dense: Tensor, tile: int) -> list[int]:
    """Return the bytes of the codes, for masks that keep two of every group."""
    (rows, columns), height, width = codes.shape, min(codes.shape[0], tile), min(codes.shape[1], tile)
    found = []
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            whole = bool(dense[top // height, left // width])
            for row in range(top, top + height):
                chosen = [column for column in range(left, left + width) if whole or mask[row, column]]
                found += [int(codes[row, column]) + 8 if mask[row, column] else 8 for column in chosen]
    return [low + 16 * high for low, high in zip(found[::2], found[1::2], strict=True)]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fewer", [False, True])
@pytest.mark.parametrize(("shape", "tile", "group_size"), SHAPES)
def test_what_is_packed_comes_back_bit_for_bit(
    shape: tuple, tile: int, group_size: int, fewer: bool, fraction: float, coded_weight: Callable
) -> None:
    made = coded_weight(shape, tile, group_size, fraction, fewer=fewer)
    packed = made.packed
    assert torch.equal(bits_of(unpack(packed)), bits_of(made.masked.float()))
    expected = made.quantized.dequantize().masked_fill(~made.mask, 0)
    assert torch.equal(bits_of(unpack(packed)), bits_of(expected))
    if not fewer:
        assert packed.values.tolist() == packed_slowly(made.quantized.codes, made.mask, made.dense, tile)
    counted = sum(part.nbytes for part in (packed.values, packed.bits, packed.dense, packed.scales))
    assert packed.nbytes == counted == packed_bytes(shape, tile, int(made.dense.sum()), 1, group_size)


@given(
    side=st.sampled_from([4, 8, 12, 20, 36]),
    down=st.integers(1, 3),
    across=st.integers(1, 3),
    group_size=st.integers(1, 120),
    fraction=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_group(
    side: int, down: int, across: int, group_size: int, fraction: float, seed: int, coded_weight: Callable
) -> None:
    made = coded_weight((down * side, across * side), side, group_size, fraction, seed=seed)
    packed, masked = made.packed, made.masked.float()
    assert torch.equal(unpack(packed), masked)
    assert torch.equal(unpack_rows(packed, down - 1, down), masked[-side:])


def test_bytes() -> None:
    """A dense tile has half a byte for a weight, a sparse one three eighths."""
    assert packed_bytes((64, 128), 32, 8, 1, 128) == 64 * 128 // 2 + 8 + 4 * 64
    assert packed_bytes((64, 128), 32, 0, 1, 64) == 64 * 128 * 3 // 8 + 8 + 4 * 64 * 2


def test_a_quantized_pruned_weight_loses_nothing(hybrid_weight: Callable) -> None:
    made = hybrid_weight((64, 96), 32)
    quantized = quantize(made.masked, 3, 20)
    packed = pack(quantized, made.mask, made.dense, 32)
    assert torch.equal(unpack(packed), quantized.dequantize())
    assert torch.equal(packed.scales, quantized.scales) and packed.scales.data_ptr() != quantized.scales.data_ptr()


def test_copies_and_other_devices(coded_weight: Callable) -> None:
    packed = coded_weight((24, 36), 12, 8).packed
    other = copy.deepcopy(packed)
    assert torch.equal(unpack(other), unpack(packed)) and other.scales.data_ptr() != packed.scales.data_ptr()
    moved = packed.to("meta")
    assert {part.device.type for part in moved.parts.values()} == {"meta"} and moved.nbytes == packed.nbytes
    assert moved.group_size == 8 and list(moved.parts) == ["dense", "values", "bits", "scales"]


def test_codes_of_more_bits(coded_weight: Callable) -> None:
    made = coded_weight((8, 8), 4, 4)
    made.quantized.codes[3, 3] = 8
    with pytest.raises(InputError, match="codes of 4 bits do not fit in four"):
        pack(made.quantized, made.mask, made.dense, 4)
    wide = quantize(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), bits=8)
    with pytest.raises(InputError, match="codes of 8 bits do not fit in four; quantize with `bits: 4`"):
        pack(wide, made.mask, made.dense, 4)


def test_inconsistent_parts_are_named(coded_weight: Callable) -> None:
    packed = coded_weight((24, 36), 12, 8).packed

    def refused(match: str, **changed: Any) -> None:
        with pytest.raises(InputError, match=match):
            PackedWeight(packed.shape, packed.tile, **(packed.parts | {"group_size": 8} | changed))

    refused("scales are missing, and group_size is 8", scales=None, values=torch.zeros(900))
    refused("scales are given, and group_size is None", group_size=None)
    for size in (0, -1, True, 8.0):
        refused(f"group_size is {size}; expected a number of columns, above zero", group_size=size)
    refused(r"scales are torch.float32 of the shape \[24, 5\]; expected float32 of \[24, 4\]", group_size=9)
    refused(r"scales are torch.float64 .*; expected float32", scales=packed.scales.double())
    refused("scales are not contiguous", scales=packed.scales.T.contiguous().T)
    refused("scales: a torch.sparse_coo or negated tensor", scales=packed.scales.to_sparse())
    refused("dense, bits and values are .*float32; expected bool, uint8 and uint8", values=packed.values.float())
    refused("dense, bits and values are .*int8; expected bool, uint8 and uint8", values=packed.values.view(torch.int8))
    refused("values have the shape", values=packed.values[:-1])
    refused("scales is on meta, the values on cpu", scales=packed.scales.to("meta"))
    for bad in (0.0, -1.0, torch.nan, torch.inf, 1e38):
        scales = packed.scales.clone()
        scales[5, 3] = bad
        refused("scales are damaged: one is not positive and finite, or too large", scales=scales)
    short = packed.scales.clone()
    short.untyped_storage().resize_(4)
    refused("scales need 480 bytes, but their storage has only 4", scales=short)
    for missing in ("scales", "group_size"):
        with pytest.raises(InputError):
            PackedWeight(packed.shape, packed.tile, **({**packed.parts, "group_size": 8, missing: None}))


def test_a_change_of_the_scales_is_seen(coded_weight: Callable) -> None:
    made = coded_weight((24, 36), 12, 8)
    packed = made.packed
    before = packed.checked
    assert packed.checked is before
    packed.scales.mul_(2)
    assert packed.checked is not before and torch.equal(unpack(packed), 2 * made.masked.float())
    packed.scales[3, 3] = -1
    with pytest.raises(InputError, match="scales are damaged"):
        unpack(packed)
    packed.scales[3, 3] = 1
    packed.scales.untyped_storage().resize_(8)
    with pytest.raises(InputError, match="scales need 480 bytes, but their storage has only 8"):
        unpack(packed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "tile", "group_size"), SHAPES)
def test_products_in_plain_pytorch(
    shape: tuple, tile: int, group_size: int, dtype: torch.dtype, coded_weight: Callable
) -> None:
    made = coded_weight(shape, tile, group_size)
    inputs = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    found, expected = unpacked.multiply(made.packed, inputs), inputs.double() @ made.masked.T
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 2**-6)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_backends_for_other_weights_are_not_used(coded_weight: Callable) -> None:
    packed, inputs = coded_weight((64, 128), 64, 64).packed, torch.ones(2, 128)
    for name in ("fused", "semi-structured"):
        with pytest.raises(InputError, match=f"backend {name}: "):
            backend_for(packed, inputs, name)
    assert backend_for(packed, inputs.half()) is unpacked.multiply


def test_gradients_of_inputs(coded_weight: Callable) -> None:
    made, inputs = coded_weight((24, 36), 12, 8), torch.ones(2, 36, requires_grad=True)
    backend_for(made.packed, inputs)(made.packed, inputs).sum().backward()
    torch.testing.assert_close(inputs.grad.double(), made.masked.sum(0).expand(2, -1), rtol=0, atol=1e-4)


def test_quantized_settings_of_another_shape(coded_weight: Callable) -> None:
    made = coded_weight((8, 8), 4, 4)
    wrong = Quantized(made.quantized.codes, made.quantized.scales[:, :1], 4, 4)
    with pytest.raises(InputError, match=r"scales are .*\[8, 1\]; expected float32 of \[8, 2\]"):
        pack(wrong, made.mask, made.dense, 4)
