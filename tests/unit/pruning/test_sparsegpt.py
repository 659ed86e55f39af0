"""Tests of SparseGPT against column-wise optimal brain surgery in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.nm import NM, Unstructured
from patch.pruning.sparsegpt import sparsegpt

from .random_layers import layers, statistics_of

DAMP = 0.01


def surgery(
    weight: torch.Tensor,
    x: torch.Tensor,
    sequences: int,
    pattern: NM | Unstructured,
    block_size: int,
    damp: float = DAMP,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fix the columns in turn and compensate each error by the free columns after it."""
    weight, x = weight.double().clone(), x.double()
    hessian = 2 / sequences * x.T @ x
    for column in range(len(hessian)):
        if hessian[column, column] == 0:
            hessian[column, column] = 1
            weight[:, column] = 0
    hessian += torch.eye(len(hessian), dtype=torch.float64) * damp * hessian.diag().mean()
    rows, columns = weight.shape
    mask = torch.ones(rows, columns, dtype=torch.bool)
    # Cost of removing a weight of column j once all columns before it are fixed: w^2 / inverse_jj.
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    for column in range(columns):
        if isinstance(pattern, NM) and column % pattern.m == 0:
            for row in range(rows):
                costs = {j: weight[row, j] ** 2 / inverses[j][0, 0] for j in range(column, column + pattern.m)}
                for j in sorted(costs, key=costs.get)[: pattern.m - pattern.n]:
                    mask[row, j] = False
        elif not isinstance(pattern, NM) and column % block_size == 0:
            block = range(column, min(column + block_size, columns))
            costs = {(r, j): weight[r, j] ** 2 / inverses[j][0, 0] for r in range(rows) for j in block}
            for r, j in sorted(costs, key=costs.get)[: int(len(costs) * pattern.sparsity)]:
                mask[r, j] = False
        inverse = inverses[column]
        for row in range(rows):
            if not mask[row, column]:
                weight[row, column:] -= weight[row, column] / inverse[0, 0] * inverse[0]
                weight[row, column] = 0
    return mask, weight


PATTERNS = [NM(2, 4), NM(3, 4), NM(4, 8), NM(6, 8), NM(1, 4), *map(Unstructured, (0.5, 0.35, 0.0))]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@settings(max_examples=10)
@given(st.data())
def test_equals_surgery(pattern: NM | Unstructured, data: st.DataObject) -> None:
    weight, x, sequences = data.draw(layers(pattern))
    block_size = data.draw(st.sampled_from([4, 7, 8, 12, 128]))
    block = max(1, block_size // pattern.m) * pattern.m if isinstance(pattern, NM) else block_size
    expected_mask, expected = surgery(weight, x, sequences, pattern, block)
    mask, updated = sparsegpt(weight, statistics_of(x, sequences), pattern, DAMP, block_size)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(updated.double(), expected, rtol=1e-3, atol=1e-4)
    assert (updated[~mask] == 0).all() and (updated[:, x.abs().sum(0) == 0] == 0).all()


def test_nothing_goes_at_sparsity_zero() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(3, 10, generator=generator)
    mask, updated = sparsegpt(weight, statistics_of(torch.randn(30, 10, generator=generator), 1), Unstructured(0.0))
    assert mask.all() and torch.equal(updated, weight)


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5)])
def test_layers_that_share_an_input_may_share_its_factor(pattern: NM | Unstructured) -> None:
    generator = torch.Generator().manual_seed(6)
    statistics = statistics_of(torch.randn(60, 12, generator=generator), 2)
    for rows in (3, 5):
        weight = torch.randn(rows, 12, generator=generator)
        shared, alone = sparsegpt(weight, statistics, pattern), sparsegpt(weight, replace(statistics), pattern)
        assert torch.equal(shared[0], alone[0]) and torch.equal(shared[1], alone[1])


@pytest.mark.parametrize("block_size", [4, 8, 16, 128])
@pytest.mark.parametrize("columns", [4, 20])
def test_two_four_does_not_depend_on_the_block_size(block_size: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(1, columns, generator=generator), torch.randn(99, columns, generator=generator)
    mask, updated = sparsegpt(weight, statistics_of(x, 3), NM(2, 4), DAMP, block_size)
    expected_mask, expected = surgery(weight, x, 3, NM(2, 4), 4)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(updated.double(), expected, rtol=1e-3, atol=1e-4)
    assert (mask.reshape(-1, 4).sum(1) == 2).all()


def test_unstructured_threshold_is_one_for_each_block() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 16, generator=generator)
    weight = torch.randn(5, 16, generator=generator) * torch.tensor([0.01] * 8 + [1.0] * 8)
    mask, _ = sparsegpt(weight, statistics_of(x, 2), Unstructured(0.5), DAMP, 8)
    assert mask[:, :8].sum() == 20 and mask[:, 8:].sum() == 20
    mask, _ = sparsegpt(weight, statistics_of(x, 2), Unstructured(0.5), DAMP, 16)
    assert mask[:, :8].sum() < 5 and mask.sum() == 40


def test_update_lowers_the_output_error() -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(300, 6, generator=generator)
    x = base @ torch.randn(6, 24, generator=generator) + 0.1 * torch.randn(300, 24, generator=generator)
    weight = torch.randn(8, 24, generator=generator)
    mask, updated = sparsegpt(weight, statistics_of(x, 3), NM(2, 4))
    plain = (x @ (weight - weight * mask).T).square().sum()
    assert (x @ (weight - updated).T).square().sum() < 0.5 * plain


def test_inputs_are_not_changed_and_half_precision_is_updated_in_float32() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(50, 8, generator=generator)
    statistics = statistics_of(x, 2)
    weight = torch.randn(3, 8, generator=generator).bfloat16()
    copies = weight.clone(), statistics.gram.clone(), statistics.squares.clone()
    mask, updated = sparsegpt(weight, statistics, NM(2, 4))
    assert torch.equal(weight, copies[0]) and torch.equal(statistics.gram, copies[1])
    assert torch.equal(statistics.squares, copies[2])
    assert updated.dtype == torch.float32 and mask.dtype == torch.bool
    _, expected = surgery(weight.float(), x, 2, NM(2, 4), 4)
    torch.testing.assert_close(updated.double(), expected, rtol=1e-3, atol=1e-4)


def test_all_inputs_dead() -> None:
    mask, updated = sparsegpt(torch.ones(2, 8), InputStatistics(torch.zeros(8), torch.zeros(8, 8), 3), NM(2, 4))
    assert (updated == 0).all() and (mask.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("damp", [1e-6, 3e-7, 1e-7, 1e-9])
@pytest.mark.parametrize("columns", [4, 8, 32, 64])
def test_a_singular_hessian_names_what_to_raise(columns: int, damp: float) -> None:
    """A failing factorization raises the documented message, not a LinAlgError."""
    for seed in range(5):
        x = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)) + 10
        try:
            _, updated = sparsegpt(torch.ones(1, columns), statistics_of(x, 3), NM(2, 4), damp)
        except InputError as error:
            assert "raise `pruning.sparsegpt.damp`" in str(error)
        else:
            assert updated.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    gram = torch.eye(4)
    gram[1, 1] = value
    with pytest.raises(InputError, match="not positive definite"):
        sparsegpt(torch.ones(1, 4), InputStatistics(gram.diagonal().clone(), gram, 1), NM(2, 4))


def test_in_that_is_no_multiple_of_m_is_refused() -> None:
    with pytest.raises(InputError, match="6 input features|2 input features"):
        sparsegpt(torch.ones(1, 6), InputStatistics(torch.ones(6), torch.eye(6), 1), NM(2, 4))
