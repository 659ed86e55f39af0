"""Tests of the ADMM weight updates against the textbook iteration, and their limit, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.nm import NM, Unstructured
from patch.pruning import admm as admm_module
from patch.pruning.admm import admm
from patch.pruning.admm_grad import admm_grad

from .random_layers import Layer, layers, statistics_of

PATTERNS = [NM(2, 4), NM(3, 4), NM(6, 8), NM(9, 10), *map(Unstructured, (0.0, 0.35, 0.5))]


def worst(score: torch.Tensor, pattern: NM | Unstructured, ramp: float) -> torch.Tensor:
    """Return the mask without the fraction ``ramp`` of the weights that the pattern removes, the worst first."""
    rows, columns = score.shape
    places = [(i, j) for i in range(rows) for j in range(columns)]
    order = sorted(places, key=lambda place: (float(score[place]), place))
    count = int(ramp * pattern.sparsity * len(places) + 1e-9)
    if isinstance(pattern, NM):
        candidates = set()
        for start in range(0, len(places), pattern.m):
            group = sorted(places[start : start + pattern.m], key=lambda place: (float(score[place]), place))
            candidates |= set(group[: pattern.m - pattern.n])
        order = [place for place in order if place in candidates]
    mask = torch.ones(rows, columns, dtype=torch.bool)
    for place in order[:count]:
        mask[place] = False
    return mask


def iterate(layer: Layer, pattern: NM | Unstructured, damp: float, steps: int, pruning: int) -> tuple:
    """Run Algorithm 1 of the paper with the penalty 1, which keeps W, Z and U apart and has columns as outputs."""
    weight, x = layer[0].double(), layer[1].double()
    norm = x.square().sum(0).sqrt() + 1e-8
    x, w = x / norm, (weight * norm).T
    xx = x.T @ x
    xx += damp * xx.diagonal().mean() * torch.eye(len(xx), dtype=torch.float64)
    xxw, u = xx @ w, torch.zeros_like(w)
    for step in range(1, steps + 1):
        if step <= pruning:
            mask = worst((w + u).T.abs(), pattern, 1 - (1 - step / pruning) ** 3).T
        z = (w + u) * mask
        u = u + w - z
        w = torch.linalg.solve(xx + torch.eye(len(xx), dtype=torch.float64), xxw + z - u)
    return mask.T, ((w + u) * mask).T / norm


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@settings(max_examples=12)
@given(st.data())
def test_equals_the_algorithm(pattern: NM | Unstructured, data: st.DataObject) -> None:
    layer = data.draw(layers(pattern, zeros_among_ties=False))
    weight, x, sequences = layer
    damp, steps = data.draw(st.sampled_from([0.1, 0.01])), data.draw(st.sampled_from([1, 5, 20]))
    pruning = min(steps, data.draw(st.sampled_from([1, 4, 15])))
    statistics = statistics_of(x, sequences)
    for pruned, expected in (
        (admm(weight, statistics, pattern, damp, steps), iterate(layer, pattern, damp, steps, 1)),
        (admm_grad(weight, statistics, pattern, damp, steps, pruning), iterate(layer, pattern, damp, steps, pruning)),
    ):
        assert torch.equal(pruned[0], expected[0])
        torch.testing.assert_close(pruned[1].double(), expected[1], rtol=1e-3, atol=1e-4)
        assert (pruned[1][~pruned[0]] == 0).all() and pruned[1].dtype == torch.float32


@pytest.mark.parametrize("method", [admm, admm_grad])
def test_many_iterations_solve_the_least_squares_problem_of_the_mask(method: Callable) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(300, 6, generator=generator) @ torch.randn(6, 24, generator=generator)
    x += 0.1 * torch.randn(300, 24, generator=generator)
    weight = torch.randn(8, 24, generator=generator)
    mask, updated = method(weight, statistics_of(x), NM(2, 4), iterations=20_000)
    norm = x.double().square().sum(0).sqrt()
    scaled, wanted = x.double() / norm, weight.double() * norm
    gram = scaled.T @ scaled + 0.1 * torch.eye(24, dtype=torch.float64)
    for row in range(8):
        kept = mask[row]
        best = torch.linalg.solve(gram[kept][:, kept], (gram @ wanted[row])[kept]) / norm[kept]
        torch.testing.assert_close(updated[row, kept].double(), best, rtol=1e-3, atol=1e-3)


def test_gradual_selection_lowers_the_output_error_further() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(300, 6, generator=generator) @ torch.randn(6, 24, generator=generator)
    x += 0.1 * torch.randn(300, 24, generator=generator)
    weight = torch.randn(8, 24, generator=generator)
    statistics, errors = statistics_of(x, 3), []
    mask, updated = admm(weight, statistics, NM(2, 4))
    for candidate in (weight * mask, updated, admm_grad(weight, statistics, NM(2, 4))[1]):
        errors.append((x @ (weight - candidate).T).square().sum())
    assert errors[2] < errors[1] < 0.5 * errors[0]


def test_inputs_are_not_changed() -> None:
    generator = torch.Generator().manual_seed(4)
    statistics = statistics_of(torch.randn(50, 8, generator=generator), 2)
    weight = torch.randn(3, 8, generator=generator)
    copies = weight.clone(), statistics.gram.clone(), statistics.squares.clone()
    for method in (admm, admm_grad):
        method(weight, statistics, NM(2, 4))
    assert torch.equal(weight, copies[0]) and torch.equal(statistics.gram, copies[1])
    assert torch.equal(statistics.squares, copies[2])


def test_layers_that_share_an_input_share_its_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    real = admm_module._normalized_inverse
    monkeypatch.setattr(admm_module, "_normalized_inverse", lambda *a: made.append(a[1]) or real(*a))
    statistics, weight = statistics_of(torch.randn(30, 8)), torch.randn(3, 8)
    for damp in (0.1, 0.1, 0.2):
        admm(weight, statistics, NM(2, 4), damp)
        admm_grad(weight, statistics, NM(2, 4), damp)
    assert made == [0.1, 0.2]


def test_all_inputs_dead() -> None:
    dead = InputStatistics(torch.zeros(8), torch.zeros(8, 8), 3)
    for method in (admm, admm_grad):
        mask, updated = method(torch.ones(2, 8), dead, NM(2, 4))
        assert updated.isfinite().all() and (mask.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    gram = torch.eye(4)
    gram[1, 1] = value
    with pytest.raises(InputError, match="admm_grad: the input statistics of a layer with 4 inputs are not finite"):
        admm_grad(torch.ones(1, 4), InputStatistics(gram.diagonal().clone(), gram, 1), NM(2, 4))


def test_in_that_is_no_multiple_of_m_is_refused() -> None:
    for method in (admm, admm_grad):
        with pytest.raises(InputError, match="6 input features"):
            method(torch.ones(1, 6), InputStatistics(torch.ones(6), torch.eye(6), 1), NM(2, 4))
