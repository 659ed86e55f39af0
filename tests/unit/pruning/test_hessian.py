"""Tests of the factor of the inverse Hessian against inverses in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.pruning import hessian
from patch.pruning.hessian import inverse_factor, shared_factor


def statistics_of(x: torch.Tensor, sequences: int = 2) -> InputStatistics:
    return InputStatistics(x.square().sum(0), x.T @ x, sequences)


def damped(statistics: InputStatistics, damp: float) -> torch.Tensor:
    hessian = statistics.gram.double() * 2 / statistics.sequences
    for column in range(len(hessian)):
        if hessian[column, column] == 0:
            hessian[column, column] = 1
    return hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)


@given(st.integers(1, 40), st.integers(0, 1000), st.integers(1, 6), st.sampled_from([1e-3, 0.01, 1.0]), st.booleans())
def test_every_corner_of_the_factor_is_that_of_an_inverse(
    inputs: int, seed: int, sequences: int, damp: float, some_dead: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * inputs, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    if some_dead:
        x[:, torch.rand(inputs, generator=generator) < 0.3] = 0
    statistics = statistics_of(x, sequences)
    before = statistics.gram.clone(), statistics.squares.clone()
    factor, dead = inverse_factor(statistics, damp, "sparsegpt")
    assert factor.dtype == torch.float32 and factor.shape == (inputs, inputs) and dead.dtype == torch.bool
    assert (factor.tril(-1) == 0).all() and (factor.diagonal() > 0).all()
    assert dead.tolist() == (x == 0).all(0).tolist()
    assert torch.equal(statistics.gram, before[0]) and torch.equal(statistics.squares, before[1])
    hessian = damped(statistics, damp)
    for start in {0, inputs // 3, inputs - 1}:
        corner = factor[start:, start:].double()
        inverse = torch.linalg.inv(hessian[start:, start:])
        torch.testing.assert_close(corner.T @ corner, inverse, rtol=1e-4, atol=1e-5 * float(inverse.abs().max()))


@pytest.mark.parametrize("inputs", [127, 128, 129, 256, 385, 700])
def test_blocks_of_the_triangular_inverse_fit_together(inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    base = torch.randn(200, inputs, generator=generator)
    statistics = statistics_of(base)
    factor, _ = inverse_factor(statistics, 0.01, "thanos")
    expected = torch.linalg.cholesky(torch.linalg.inv(damped(statistics, 0.01)), upper=True)
    torch.testing.assert_close(factor.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_loud_and_dependent_inputs_keep_their_digits() -> None:
    """An inverse in single precision would be wrong in the third digit."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, 10, generator=generator) @ torch.randn(10, 300, generator=generator)
    x += 0.01 * torch.randn(900, 300, generator=generator)
    x[:, :3] *= 30
    statistics = statistics_of(x)
    hessian = damped(statistics, 1e-5)
    expected = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    single = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian.float())), upper=True)
    factor, _ = inverse_factor(statistics, 1e-5, "sparsegpt")
    assert (factor - expected).norm() < 1e-5 * expected.norm() < 1e-2 * (single - expected).norm()


def test_dead_columns_stand_alone() -> None:
    x = torch.tensor([[1.0, 0.0, 2.0, 0.0], [3.0, 0.0, 1.0, 0.0]])
    factor, dead = inverse_factor(statistics_of(x), 0.01, "sparsegpt")
    assert dead.tolist() == [False, True, False, True]
    for column in (1, 3):
        assert factor[column].count_nonzero() == 1 and factor[:, column].count_nonzero() == 1
    mean = (10 + 1 + 5 + 1) / 4
    assert factor[1, 1].item() == pytest.approx((1 + 0.01 * mean) ** -0.5)
    factor, dead = inverse_factor(statistics_of(torch.zeros(2, 3)), 0.01, "sparsegpt")
    assert dead.all()
    torch.testing.assert_close(factor, torch.eye(3) * 1.01**-0.5)


@pytest.mark.parametrize("method", ["sparsegpt", "thanos"])
def test_a_hessian_that_is_not_positive_definite_names_the_setting(method: str) -> None:
    gram = torch.ones(3, 3) - 2 * torch.eye(3)
    gram.diagonal().fill_(0.5)
    with pytest.raises(InputError) as raised:
        inverse_factor(InputStatistics(gram.diagonal().clone(), gram, 2), 0.25, method)
    assert str(raised.value) == (
        f"{method}: the Hessian of 3 inputs is not positive definite with damp 0.25; raise `pruning.{method}.damp`"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (2, 2), (1, 0)])
def test_what_is_not_finite_is_refused(value: float, place: tuple[int, int]) -> None:
    gram = torch.eye(3)
    gram[place] = gram[place[::-1]] = value
    with pytest.raises(InputError, match="not positive definite"):
        inverse_factor(InputStatistics(torch.ones(3), gram, 1), 0.01, "thanos")


def test_layers_that_follow_each_other_share_a_factor_and_it_goes_with_its_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[float] = []
    real = hessian.inverse_factor
    monkeypatch.setattr(hessian, "inverse_factor", lambda *a: made.append(a[1]) or real(*a))
    first, second = (statistics_of(torch.randn(9, 4, generator=torch.Generator().manual_seed(s))) for s in (0, 1))
    one = shared_factor(first, 0.01, "thanos")
    assert shared_factor(first, 0.01, "sparsegpt") is one and made == [0.01]
    assert not torch.equal(shared_factor(first, 0.1, "thanos")[0], one[0]), "another damping is another factor"
    other = shared_factor(second, 0.1, "thanos")
    assert torch.equal(other[0], real(second, 0.1, "thanos")[0]) and made == [0.01, 0.1, 0.1]
    assert len(hessian._latest) == 1
    del second
    assert len(hessian._latest) == 0
