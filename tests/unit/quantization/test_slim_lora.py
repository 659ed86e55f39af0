"""Tests of the adapters against NumPy's SVD and other adapters of the same rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.nm import NM, nm_mask
from patch.quantization.absmax import quantize
from patch.quantization.slim_lora import Adapter, _best_factors, adapter_rank, saliency, slim_lora

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def dense(adapter: Adapter) -> torch.Tensor:
    return adapter.left @ adapter.right


def compressed_layer(rows: int, columns: int, seed: int = 0, spread: float = 1.0) -> Case:
    """Return a weight, its pruned and quantised version, and the saliency of its inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    channels = torch.exp(spread * torch.randn(columns, generator=generator, dtype=torch.float64))
    pruned = weight * nm_mask(weight.abs() * channels, NM(2, 4))
    return weight, quantize(pruned, 4, 8).dequantize(), channels


def distance(case: Case, adapter: Adapter) -> float:
    weight, compressed, channels = (part.double() for part in case)
    left, right = adapter.left.double(), adapter.right.double()
    return float(((weight - compressed - left @ right) * channels).norm())


def singular_values(case: Case) -> np.ndarray:
    weight, compressed, channels = (part.double().numpy() for part in case)
    return np.linalg.svd((weight - compressed) * channels, compute_uv=False)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, columns = draw(st.sampled_from([1, 3, 12, 40])), draw(st.sampled_from([4, 12, 40]))
    return compressed_layer(rows, columns, draw(st.integers(0, 10_000)), draw(st.sampled_from([0.0, 1.0, 3.0])))


@given(cases(), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_the_distance_is_what_the_svd_leaves(case: Case, ratio: float) -> None:
    adapter = slim_lora(*case, ratio)
    rows, columns = case[0].shape
    assert adapter.left.shape[0] == rows
    assert adapter.right.shape == (adapter.left.shape[1], columns)
    assert adapter.left.dtype == adapter.right.dtype == torch.float32
    values = singular_values(case)
    rest = np.sqrt((values[int(ratio * min(rows, columns)) :] ** 2).sum())
    assert distance(case, adapter) == pytest.approx(rest, rel=1e-6, abs=1e-6 * values[0])


@given(cases(), st.integers(0, 10_000))
def test_no_other_adapter_of_that_rank_comes_closer(case: Case, seed: int) -> None:
    adapter = slim_lora(*case, 0.3)
    best = distance(case, adapter)
    generator = torch.Generator().manual_seed(seed)
    for size in (1e-3, 1e-1):
        left = adapter.left + size * torch.randn(adapter.left.shape, generator=generator)
        right = adapter.right + size * torch.randn(adapter.right.shape, generator=generator)
        assert distance(case, Adapter(left, right)) >= best * (1 - 1e-6)
    weight, compressed, channels = (part.double() for part in case)
    target = (weight - compressed) * channels
    right = torch.randn(adapter.right.shape, generator=generator, dtype=torch.float64)
    for _ in range(20):  # alternating least squares
        left = target @ torch.linalg.pinv(right)
        right = torch.linalg.pinv(left) @ target
    assert distance(case, Adapter(left, right / channels)) >= best * (1 - 1e-6)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_the_product_is_that_of_the_truncated_svd(shape: tuple[int, int]) -> None:
    case = compressed_layer(*shape)
    weight, compressed, channels = (part.double().numpy() for part in case)
    u, s, vt = np.linalg.svd((weight - compressed) * channels, full_matrices=False)
    rank = int(0.25 * min(shape))
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank] / channels
    assert np.allclose(dense(slim_lora(*case, 0.25)).numpy(), expected, atol=1e-5)


def test_channels_that_are_a_million_times_louder_do_not_spoil_the_rest() -> None:
    weight, compressed, channels = compressed_layer(40, 80)
    channels[:3] *= 1e6
    case = weight, compressed, channels
    rest = np.sqrt((singular_values(case)[20:] ** 2).sum())
    # In fp64; rounding the adapter to fp32 costs as much, 1e-7 of the loudest channels.
    target = (weight.double() - compressed.double()) * channels
    left, right = _best_factors(target, 20)
    assert float((target - left @ right).norm()) == pytest.approx(rest, rel=1e-3)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (1, 4)])
def test_full_rank_recovers_the_original(shape: tuple[int, int]) -> None:
    weight, compressed, channels = compressed_layer(*shape)
    recovered = compressed + dense(slim_lora(weight, compressed, channels, 1.0))
    assert torch.allclose(recovered, weight, atol=1e-5)


def test_rank_zero_adds_nothing() -> None:
    adapter = slim_lora(*compressed_layer(9, 40), 0.1)
    assert adapter.left.shape[1] == 0
    assert torch.equal(dense(adapter), torch.zeros(9, 40))


@pytest.mark.parametrize("shape", [(8, 40), (40, 8)])
def test_no_error_needs_no_compensation(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    adapter = slim_lora(weight, weight, torch.ones(shape[1]), 0.5)
    assert torch.equal(dense(adapter), torch.zeros(shape))
    one_row = weight.clone()
    one_row[3] = 0
    adapter = slim_lora(weight, one_row, torch.ones(shape[1]), 0.5)
    assert torch.allclose(one_row + dense(adapter), weight, atol=1e-5)


def test_components_are_split_evenly_whatever_the_saliency() -> None:
    weight, compressed, channels = compressed_layer(40, 60)
    plain, loud = slim_lora(weight, compressed, channels, 0.5), slim_lora(weight, compressed, channels * 1e5, 0.5)
    assert torch.allclose(plain.left.norm(dim=0), plain.right.norm(dim=1), rtol=1e-5)
    assert loud.left.abs().max() < 2 * plain.left.abs().max()
    half = Adapter(loud.left.half(), loud.right.half())
    assert torch.allclose(dense(half).float(), dense(plain), atol=1e-2)


def test_quantized_adapters_are_on_the_grid_and_close() -> None:
    adapter = slim_lora(*compressed_layer(40, 60), 0.5)
    small = adapter.quantized(4, 128)
    assert torch.equal(small.right, quantize(adapter.right, 4, 128).dequantize())
    for component in range(adapter.left.shape[1]):
        column = adapter.left[:, component]
        step = column.abs().max() / 7
        assert ((small.left[:, component] / step - (small.left[:, component] / step).round()).abs() < 1e-5).all()
        assert ((small.left[:, component] - column).abs() <= step * 0.5001).all()


def test_saliency_is_the_norm_of_an_input_per_sequence() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 4))
    squares = np.zeros(4)
    for sequence in x:
        for token in sequence:
            squares += token**2
    found = saliency(InputStatistics(torch.tensor(squares, dtype=torch.float32), None, 3))
    norms = np.sqrt(squares / 3)
    assert found.dtype == torch.float64
    assert np.allclose(found.numpy(), norms + norms.min(), rtol=1e-6)


def test_silent_inputs_get_the_smallest_positive_saliency() -> None:
    found = saliency(InputStatistics(torch.tensor([0.0, 4.0, 36.0, 0.0]), None, 1))
    assert found.tolist() == [2.0, 4.0, 8.0, 2.0]
    assert saliency(InputStatistics(torch.zeros(3), None, 2)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(value: float) -> None:
    with pytest.raises(InputError, match=f"input channel 1 is {value}"):
        saliency(InputStatistics(torch.tensor([1.0, value]), None, 1))


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_rank_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(InputError, match=f"rank_ratio is {ratio}; use 0 to 1"):
        adapter_rank(4, 4, ratio)
