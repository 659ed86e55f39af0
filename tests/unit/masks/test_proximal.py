"""Tests of ProxSparse's proximal operator against a search in float64 over all supports."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patch.errors import InputError
from patch.masks import proximal
from patch.masks.nm import NM, nm_mask
from patch.masks.proximal import proximal_two_four, shrink_two_four_, triple_products

GOLDEN = (5**0.5 - 1) / 2


@pytest.fixture(params=["compiled", "eager"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with the compiled operator and with the one in plain PyTorch."""
    if request.param == "eager":
        monkeypatch.setattr(proximal, "_kernel", lambda: None)
    elif proximal._kernel() is None:
        pytest.skip("no C++ compiler")
    return request.param


def objective(w: Tensor, z: Tensor, strength: float) -> Tensor:
    """Return the objective of groups along the last dimension."""
    triples = sum(w[..., list(three)].abs().prod(-1) for three in combinations(range(4), 3))
    return 0.5 * (w - z).square().sum(-1) + strength * triples


def searched(z: Tensor, strength: float, starts: int = 30, sweeps: int = 200) -> Tensor:
    """Return the least objective of `[n, 4]` groups by the best pair and repeated descent in larger supports."""
    generator = torch.Generator().manual_seed(1)
    size = z.abs()
    found = [0.5 * (size.square().sum(1) - size[:, list(pair)].square().sum(1)) for pair in combinations(range(4), 2)]
    for support in [*combinations(range(4), 3), tuple(range(4))]:
        shape = (len(z), starts, 4)
        w = size[:, None] * torch.rand(shape, generator=generator, dtype=torch.float64)
        w[..., [i for i in range(4) if i not in support]] = 0
        for _ in range(sweeps):
            for k in torch.randperm(len(support), generator=generator).tolist():
                i = support[k]
                others = [j for j in support if j != i]
                products = sum(w[..., a] * w[..., b] for a, b in combinations(others, 2))
                w[..., i] = (size[:, None, i] - strength * products).clamp(min=0)
        found.append(objective(w, size[:, None], strength).amin(1))
    return torch.stack(found).amin(0)


def random_groups(count: int, seed: int, strength: float = 1.0) -> Tensor:
    """Return fp32 groups `[count, 4]` whose sizes times ``strength`` range from near zero to where two weights stay."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.rand(count, 1, generator=generator) * 2.5 - 2
    return torch.randn(count, 4, generator=generator) * 10**exponent / strength


def assert_minimal(z: Tensor, strength: float, least: Tensor) -> None:
    result = proximal_two_four(z, strength)
    assert result.dtype == z.dtype and result.shape == z.shape and result.data_ptr() != z.data_ptr()
    reached = objective(result.double(), z.double(), strength)
    assert (reached <= least + 2e-6 * z.double().square().sum(1)).all()
    assert ((result == 0) | (result.sign() == z.sign())).all() and (result.abs() <= z.abs()).all()


@pytest.mark.parametrize("strength", [0.0, 1e-3, 0.1, 0.25, 1.0, 3.0, 30.0, 1e3])
@pytest.mark.parametrize("scale", [1e-3, 0.02, 0.3, 1.0, 10.0])
def test_no_point_is_better(strength: float, scale: float) -> None:
    z = scale * torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    assert_minimal(z, strength, searched(z.double(), strength))


@pytest.mark.parametrize("strength", [0.25, 1.0, 5.0])
def test_no_point_is_better_where_thresholds_bite(strength: float) -> None:
    z = random_groups(400, 2, strength)
    assert_minimal(z, strength, searched(z.double(), strength, 20, 100))


@given(st.lists(st.sampled_from([0.0, 0.1, 0.4, 0.7, 0.9, 1.0, 1.1, 1.2]), min_size=4, max_size=4))
def test_no_point_is_better_among_ties_and_zeros(values: list[float]) -> None:
    z = torch.tensor([values])
    assert_minimal(z, 1.0, searched(z.double(), 1.0))


@pytest.mark.parametrize("count", [3, 4])
def test_minima_that_are_planted(count: int) -> None:
    """Construct `z = w + gradient of R`, of which w is a minimum where second derivatives are positive definite."""
    generator = torch.Generator().manual_seed(count)
    near = torch.rand(100_000, 1, generator=generator, dtype=torch.float64)
    w = near * torch.rand(len(near), 4, generator=generator, dtype=torch.float64) ** near
    w[:, count:] = 0
    total = w.sum(1)[:, None, None]
    second = total - w[:, None] - w[:, :, None]
    second.diagonal(dim1=1, dim2=2).fill_(1)
    w = w[torch.linalg.eigvalsh(second[:, :count, :count])[:, 0] > 0]
    assert len(w) > 40_000
    total = w.sum(1, keepdim=True)
    pairs = (total.square() - w.square().sum(1, keepdim=True)) / 2
    z = (w + pairs - w * (total - w)).float()
    z[:, count:] *= torch.rand(len(z), 4 - count, generator=generator)
    assert_minimal(z, 1.0, objective(w, z.double(), 1.0))


@pytest.mark.parametrize(("scale", "tolerance"), [(0.01, 2e-7), (0.07, 2e-7), (0.3, 3e-4), (1.0, 3e-4)])
def test_each_weight_is_the_best_for_the_others(scale: float, tolerance: float) -> None:
    """Each weight minimises the objective given the others, up to the last bits of fp32."""
    z = scale * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(11))
    w = proximal_two_four(z, 1.0).double().abs()
    total = w.sum(1, keepdim=True)
    pairs = (total.square() - w.square().sum(1, keepdim=True)) / 2
    best = (z.double().abs() - (pairs - w * (total - w))).clamp(min=0)
    error = (w - best).abs() / z.abs().amax(1, keepdim=True)
    assert error.max() <= tolerance and (error <= 2e-7).double().mean() > 0.998


@pytest.mark.parametrize("last", [0.0, 0.3, 1.0])
def test_a_minimum_that_sweeps_from_zero_miss(last: float) -> None:
    """Sweeps from zero drop the largest of (1, 1, 1), but w + w^2 = 1 is better."""
    result = proximal_two_four(torch.tensor([[1.0, 1.0, 1.0, last]]), 1.0).double()
    kept = result[result > 0]
    assert kept.tolist() == pytest.approx([GOLDEN] * 3, abs=1e-6)
    missed = torch.tensor([[0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[1.0, 1.0, 1.0, last]], dtype=torch.float64)
    assert objective(missed, z, 1.0) - objective(result, z, 1.0) > 0.045


@given(st.permutations(range(4)), st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4), st.integers(0, 99))
def test_signs_and_order_go_through(order: list[int], signs: list[float], seed: int) -> None:
    z = random_groups(200, seed)
    result = proximal_two_four(z, 1.0)
    assert torch.equal(proximal_two_four(z * torch.tensor(signs), 1.0), result * torch.tensor(signs))
    permuted = proximal_two_four(z[:, order], 1.0)
    largest = z.abs().amax(1, keepdim=True)
    assert ((permuted - result[:, order]).abs() <= 3e-7 * largest).all()


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_a_group_in_which_two_are_zero_stays(strength: float) -> None:
    z = random_groups(500, 3)
    z *= nm_mask(torch.rand(z.shape, generator=torch.Generator().manual_seed(0)), NM(2, 4))
    assert torch.equal(proximal_two_four(z, strength), z)
    assert torch.equal(triple_products(z), torch.zeros(500, 1))


def test_no_strength_is_the_identity() -> None:
    z = random_groups(500, 4)
    result = proximal_two_four(z, 0.0)
    assert torch.equal(result, z) and result.data_ptr() != z.data_ptr()


@pytest.mark.parametrize("strength", [1e4, 1e30])
def test_huge_strength_keeps_the_two_largest(strength: float) -> None:
    z = random_groups(500, 5).reshape(50, 40)
    z[:10] = z[:10].sign()
    assert torch.equal(proximal_two_four(z, strength), z * nm_mask(z.abs(), NM(2, 4)))


def test_strength_and_size_scale_alike() -> None:
    z = random_groups(500, 6)
    assert torch.equal(proximal_two_four(z / 8, 8.0) * 8, proximal_two_four(z, 1.0))


@pytest.mark.parametrize("chunk", [1, 5, 64, 10_000])
def test_a_group_depends_on_nothing_else(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z = random_groups(301, 7)
    alone = torch.cat([proximal_two_four(group[None], 1.0) for group in z])
    monkeypatch.setattr(proximal, "CHUNK", chunk)
    assert torch.equal(proximal_two_four(z, 1.0), alone)
    assert torch.equal(proximal_two_four(z.reshape(43, 28), 1.0), alone.reshape(43, 28))
    assert torch.equal(proximal_two_four(z.T.contiguous().T, 1.0), alone)


def test_again_it_shrinks_further_until_groups_are_two_four() -> None:
    z = 0.3 * torch.randn(100, 4, generator=torch.Generator().manual_seed(8))
    for _ in range(300):
        before, z = triple_products(z).sum(), proximal_two_four(z, 0.5)
        assert triple_products(z).sum() <= before
    assert ((z != 0).sum(1) <= 2).double().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_computed_in_fp32(dtype: torch.dtype) -> None:
    z = random_groups(200, 9).to(dtype)
    result = proximal_two_four(z, 1.0)
    assert result.dtype == dtype and torch.equal(result, proximal_two_four(z.float(), 1.0).to(dtype))


def test_what_is_not_finite_stays_in_its_group() -> None:
    z = random_groups(40, 10)
    expected = proximal_two_four(z, 1.0)
    z[3, 1], z[20, 2] = float("nan"), float("inf")
    result = proximal_two_four(z, 1.0)
    assert result[3].isnan().any() and not result[20].isnan().any() and result[20, 2] == float("inf")
    others = [row for row in range(40) if row not in (3, 20)]
    assert torch.equal(result[others], expected[others])
    tiny = torch.tensor([[1e-40, -1e-42, 3e-45, 0.0]])
    assert torch.equal(proximal_two_four(tiny, 1.0), tiny)


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("shape", [(1, 4), (3, 20), (67, 1028), (2, 8192)])
def test_the_compiled_operator_gives_the_same_bits(
    shape: tuple[int, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = scale * torch.randn(shape, generator=torch.Generator().manual_seed(12))
    z[:, ::7] = z[:, ::7].sign() * scale
    z[0, 0] = float("nan")
    found = proximal_two_four(z, 1.0)
    monkeypatch.setattr(proximal, "_kernel", lambda: None)
    assert torch.equal(found.view(torch.int32), proximal_two_four(z, 1.0).view(torch.int32))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_it_reports_the_regularizer_and_the_two_four_groups(dtype: torch.dtype, transposed: bool) -> None:
    z = random_groups(3000, 13).reshape(100, 120).to(dtype)
    z = z.T.contiguous().T if transposed else z
    expected = proximal_two_four(z, 1.0)
    penalty, sparse = shrink_two_four_(z, 1.0)
    assert torch.equal(z, expected)
    assert penalty.item() == pytest.approx(triple_products(expected).double().sum().item(), rel=1e-6)
    kept = (expected != 0).reshape(-1, 4).sum(1)
    assert 0 < sparse.item() < 3000 and sparse.item() == int((kept <= 2).sum())


def test_triple_products() -> None:
    z = torch.tensor([[1.0, -2.0, 3.0, 4.0, 0.0, 5.0, -1.0, 2.0]], dtype=torch.bfloat16)
    assert triple_products(z).tolist() == [[6.0 + 8.0 + 12.0 + 24.0, 10.0]]


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_that_is_none(strength: float) -> None:
    with pytest.raises(InputError, match="use a finite one of at least 0"):
        proximal_two_four(torch.ones(1, 4), strength)


@pytest.mark.parametrize("function", [lambda weight: proximal_two_four(weight, 1.0), triple_products])
def test_groups_that_do_not_fit_are_refused(function) -> None:  # noqa: ANN001
    with pytest.raises(InputError, match="6 input features"):
        function(torch.ones(2, 6))
