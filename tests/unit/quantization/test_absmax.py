"""Tests of group AbsMax against loops in float32, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.errors import InputError
from patch.masks.nm import NM, nm_mask
from patch.quantization.absmax import quantize


def by_loops(weight: np.ndarray, bits: int, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes, scales and weights, computed group by group."""
    rows, columns = weight.shape
    codes, values, scales = np.zeros(weight.shape, np.int64), np.zeros(weight.shape, np.float32), []
    for row in range(rows):
        of_row = []
        for start in range(0, columns, group_size):
            group = weight[row, start : start + group_size]
            scale = np.float32(np.abs(group).max()) / np.float32(2 ** (bits - 1) - 1) or np.float32(1)
            of_row.append(scale)
            for index, value in enumerate(group):
                codes[row, start + index] = np.rint(np.float32(value) / scale)
                values[row, start + index] = codes[row, start + index] * scale
        scales.append(of_row)
    return codes, np.array(scales, np.float32), values


@st.composite
def grids(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    rows, columns = draw(st.integers(1, 4)), draw(st.sampled_from([1, 4, 7, 24, 130]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    weight = torch.randn(rows, columns, generator=generator) * draw(st.sampled_from([1e-3, 1.0, 50.0]))
    if columns % 4 == 0 and draw(st.booleans()):
        weight *= nm_mask(weight.abs(), NM(2, 4))
    if draw(st.booleans()):  # groups, and a row, of nothing but zeros
        weight[0] = 0
        weight[:, columns // 2 :] = 0
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    return weight.to(dtype), draw(st.integers(2, 8)), draw(st.sampled_from([1, 3, 4, 128]))


@given(grids())
def test_codes_and_scales_are_those_of_loops(case: tuple[torch.Tensor, int, int]) -> None:
    weight, bits, group_size = case
    codes, scales, values = by_loops(weight.float().numpy(), bits, group_size)
    result = quantize(weight, bits, group_size)
    assert result.codes.dtype == torch.int8
    assert (result.codes.numpy() == codes).all()
    assert result.scales.dtype == torch.float32
    assert (result.scales.numpy() == scales).all()
    assert (result.dequantize().numpy() == values).all()


@given(grids())
def test_zeros_stay_and_no_weight_moves_by_more_than_half_a_step(case: tuple[torch.Tensor, int, int]) -> None:
    weight, bits, group_size = case
    before = weight.clone()
    result = quantize(weight, bits, group_size)
    values = result.dequantize().double()
    assert torch.equal(weight, before)
    assert (values[weight == 0] == 0).all()
    for column in range(weight.shape[1]):
        steps = result.scales[:, column // group_size].double()
        assert ((weight[:, column].double() - values[:, column]).abs() <= 0.5 * steps * (1 + 1e-6)).all()


def test_halves_round_to_the_even_code() -> None:
    weight = torch.tensor([[7.0, 0.5, 1.5, 2.5, 6.5, -0.5, -1.5, -2.5]])
    result = quantize(weight)
    assert result.scales.tolist() == [[1.0]]
    assert result.codes.tolist() == [[7, 0, 2, 2, 6, 0, -2, -2]]


def test_the_shorter_last_group_has_its_own_scale() -> None:
    result = quantize(torch.tensor([[7.0, 14.0, 0.7, -0.7, 0.07]]), 4, 2)
    assert result.codes.tolist() == [[4, 7, 7, -7, 7]]
    assert torch.allclose(result.scales, torch.tensor([[2.0, 0.1, 0.01]]))
    assert result.dequantize().shape == (1, 5)


def test_extreme_groups_stay_finite() -> None:
    smallest, largest = 1e-45, torch.finfo(torch.float32).max
    result = quantize(torch.tensor([[0.0, 0.0, smallest, -smallest, largest, -largest]]), 4, 2)
    assert result.codes.tolist() == [[0, 0, 0, 0, 7, -7]]
    assert result.scales.isfinite().all()
    assert (result.scales > 0).all()


def test_many_small_weights_become_zero_beyond_the_pattern() -> None:
    """Quantisation raises the counted sparsity beyond that of pruning."""
    values = quantize(torch.randn(64, 128, generator=torch.Generator().manual_seed(0))).dequantize()
    assert 0.1 < (values == 0).double().mean() < 0.2


@pytest.mark.parametrize("bits", [1, 0, 9])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(InputError, match=f"bits is {bits}; use 2 to 8"):
        quantize(torch.ones(1, 4), bits)


def test_groups_of_nothing() -> None:
    with pytest.raises(InputError, match="group_size is 0; use 1 or more"):
        quantize(torch.ones(1, 4), 4, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    weight = torch.ones(2, 4)
    weight[1, 2] = value
    with pytest.raises(InputError, match=f"row 1, column 2 is {value}; all must be finite"):
        quantize(weight)
