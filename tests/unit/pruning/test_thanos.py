"""Tests of Thanos against row-wise systems in float64 and constrained least squares."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.nm import NM, Unstructured, obeys
from patch.pruning.thanos import thanos

# By its name, since the package exports a function of the same name.
module = import_module("patch.pruning.thanos")

DAMP = 0.01
PATTERNS = [NM(2, 4), NM(3, 4), NM(1, 4), NM(4, 8), NM(6, 8), *map(Unstructured, (0.5, 0.35, 0.0))]


def damped(statistics: InputStatistics, damp: float = DAMP) -> torch.Tensor:
    hessian = statistics.gram.double() * 2 / statistics.sequences
    for column in range(len(hessian)):
        if hessian[column, column] == 0:
            hessian[column, column] = 1
    return hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)


def smallest(scores: dict[tuple[int, int], float], count: int) -> tuple[list[tuple[int, int]], float]:
    """Return the first ``count`` by score, then by place, and the margin of the choice; inf if there is no other."""
    order = sorted(scores, key=lambda place: (scores[place], place))
    if count in (0, len(order)):
        return order[:count], math.inf
    last, following = scores[order[count - 1]], scores[order[count]]
    return order[:count], math.inf if last == following else (following - last) / following


def reference(
    weight: torch.Tensor, statistics: InputStatistics, pattern: NM | Unstructured, block_size: int, damp: float = DAMP
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the mask, the weights, and the smallest margin of a choice."""
    weight, hessian = weight.double().clone(), damped(statistics, damp)
    weight[:, statistics.gram.diagonal() == 0] = 0
    norms = statistics.squares.double().sqrt()
    rows, columns = weight.shape
    mask, clear = torch.ones(rows, columns, dtype=torch.bool), math.inf
    left = int(rows * columns * pattern.sparsity)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        inverse = torch.linalg.inv(hessian[start:, start:])
        scores = {(r, j): float(weight[r, j].abs() * norms[j]) for r in range(rows) for j in range(start, columns)}
        if isinstance(pattern, NM):
            groups = [(r, j) for r in range(rows) for j in range(start, stop, pattern.m)]
            parts = [
                ({(r, j + k): scores[r, j + k] for k in range(pattern.m)}, pattern.m - pattern.n) for r, j in groups
            ]
        else:
            parts = [(scores, left)]
        for part, count in parts:
            chosen, clearness = smallest(part, count)
            clear = min(clear, clearness)
            for r, j in chosen:
                if j < stop:
                    mask[r, j] = False
        left -= int((~mask[:, start:stop]).sum())
        for r in range(rows):
            gone = (~mask[r, start:stop]).nonzero().flatten()
            multipliers = torch.linalg.solve(inverse[gone][:, gone], weight[r, start:][gone])
            weight[r, start:] -= multipliers @ inverse[gone]
            weight[r, start:][gone] = 0
    return mask, weight, clear


def statistics_of(x: torch.Tensor, sequences: int = 2) -> InputStatistics:
    return InputStatistics(x.square().sum(0), x.T @ x, sequences)


def inputs(columns: int, generator: torch.Generator) -> torch.Tensor:
    mixing = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    return torch.randn(8 * columns, columns, generator=generator) @ mixing


@st.composite
def layers(draw: st.DrawFn, pattern: NM | Unstructured) -> tuple:
    step = pattern.m if isinstance(pattern, NM) else draw(st.sampled_from([4, 5]))
    rows, columns = draw(st.integers(1, 6)), step * draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    block_size = draw(st.sampled_from([4, 7, 8, 12, 512]))
    kind = draw(st.sampled_from(["different", "different", "tied and apart", "tied"]))
    weight = torch.randn(rows, columns, generator=generator)
    x = inputs(columns, generator)
    if kind == "tied and apart":  # No update breaks these ties.
        x = 3 * torch.eye(columns)
    if draw(st.booleans()):
        x[:, torch.rand(columns, generator=generator) < 0.3] = 0
    statistics = statistics_of(x, draw(st.integers(1, 6)))
    if kind == "tied":  # Equally loud, but not independent: an update breaks ties as it rounds, so there is one block.
        block_size = 512
        loudness = statistics.squares.max().clamp(min=1)
        statistics.squares.fill_(loudness)
        statistics.gram.diagonal().fill_(loudness)
    if kind != "different":
        weight = weight.mul(1.5).round()
    if draw(st.booleans()):
        weight = weight.bfloat16()
    return weight, statistics, block_size


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@settings(max_examples=10)
@given(st.data(), st.sampled_from([1, 2, 256]))
def test_equals_the_slow_way(pattern: NM | Unstructured, data: st.DataObject, rows_at_once: int) -> None:
    weight, statistics, block_size = data.draw(layers(pattern))
    before = weight.clone(), statistics.gram.clone(), statistics.squares.clone()
    block = max(1, block_size // pattern.m) * pattern.m if isinstance(pattern, NM) else block_size
    expected_mask, expected, clear = reference(weight, statistics, pattern, block)
    assume(clear > 1e-4)
    mask, updated = thanos(weight, statistics, pattern, DAMP, block_size, rows_at_once)
    assert updated.dtype == torch.float32 and mask.dtype == torch.bool
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(updated.double(), expected, rtol=1e-4, atol=1e-4)
    assert (updated[~mask] == 0).all()
    if isinstance(pattern, NM):
        assert obeys(mask, pattern).all() and int(mask.sum()) * pattern.m == mask.numel() * pattern.n
    else:
        assert int((~mask).sum()) == int(mask.numel() * pattern.sparsity)
    assert all(map(torch.equal, (weight, statistics.gram, statistics.squares), before))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("block_size", [8, 512])
def test_no_other_weights_would_do_better(pattern: NM | Unstructured, block_size: int) -> None:
    """The updated weights are optimal with one block, and for the last block's free columns with several."""
    generator = torch.Generator().manual_seed(1)
    statistics = statistics_of(inputs(24, generator))
    weight, hessian = torch.randn(9, 24, generator=generator), damped(statistics)
    mask, updated = thanos(weight, statistics, pattern, DAMP, block_size)
    for row in range(len(weight)):
        free = [j for j in range(24) if mask[row, j] and j >= (24 - block_size if block_size < 24 else 0)]
        fixed = [j for j in range(24) if j not in free]
        moved = hessian[free] @ weight[row].double() - hessian[free][:, fixed] @ updated[row, fixed].double()
        best = torch.linalg.solve(hessian[free][:, free], moved)
        torch.testing.assert_close(updated[row, free].double(), best, rtol=1e-4, atol=1e-5)


def test_blocks_share_one_goal() -> None:
    """All blocks share one budget, and the last block meets it exactly."""
    generator = torch.Generator().manual_seed(2)
    statistics = statistics_of(torch.randn(200, 16, generator=generator))
    weight = torch.randn(5, 16, generator=generator) * torch.tensor([1.0] * 8 + [0.001] * 8)
    mask, _ = thanos(weight, statistics, Unstructured(0.5), DAMP, 8)
    assert mask[:, :8].sum() > 35 and int(mask.sum()) == 40


def test_it_beats_leaving_the_rest_as_it_is() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 6, generator=generator) @ torch.randn(6, 24, generator=generator)
    x += 0.1 * torch.randn(300, 24, generator=generator)
    weight = torch.randn(8, 24, generator=generator)
    mask, updated = thanos(weight, statistics_of(x), NM(2, 4), block_size=8)
    plain = (x @ (weight - weight * mask).T).square().sum()
    assert (x @ (weight - updated).T).square().sum() < 0.5 * plain


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5)])
def test_rows_at_once_are_memory_only(pattern: NM | Unstructured) -> None:
    generator = torch.Generator().manual_seed(4)
    statistics = statistics_of(inputs(40, generator))
    # Rows of very different size: unstructured, some lose all and some nothing.
    weight = torch.randn(7, 40, generator=generator) * torch.logspace(-2, 1, 7)[:, None]
    first_mask, first = thanos(weight, statistics, pattern, DAMP, 12, 256)
    for rows_at_once in (1, 2, 3, 7):
        mask, updated = thanos(weight, statistics, pattern, DAMP, 12, rows_at_once)
        assert torch.equal(mask, first_mask)
        torch.testing.assert_close(updated, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5)])
def test_threads_do_not_matter(pattern: NM | Unstructured, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(7)
    statistics, weight = statistics_of(inputs(24, generator)), torch.randn(40, 24, generator=generator)
    alone = thanos(weight, statistics, pattern, rows_at_once=3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with torch.inference_mode():
            together = thanos(weight, statistics, pattern, rows_at_once=9)
        with monkeypatch.context() as patched, pytest.raises(InputError):
            broken = torch.zeros(24, 24), torch.zeros(24, dtype=torch.bool)
            patched.setattr(module, "shared_factor", lambda *_: broken)
            thanos(weight, statistics, pattern)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together[0], alone[0])
    torch.testing.assert_close(together[1], alone[1], rtol=1e-4, atol=1e-5)


def test_nothing_goes_at_sparsity_zero() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(3, 10, generator=generator)
    mask, updated = thanos(weight, statistics_of(inputs(10, generator)), Unstructured(0.0), block_size=4)
    assert mask.all() and torch.equal(updated, weight)


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.35), Unstructured(1.0)])
def test_all_inputs_dead(pattern: NM | Unstructured) -> None:
    statistics = InputStatistics(torch.zeros(12), torch.zeros(12, 12), 3)
    mask, updated = thanos(torch.ones(3, 12), statistics, pattern, block_size=8)
    assert (updated == 0).all() and int((~mask).sum()) == int(36 * pattern.sparsity)


@pytest.mark.parametrize("bits, precisions", [(17, [torch.float32]), (22, [torch.float32, torch.float64])])
def test_systems_too_hard_for_single_precision_are_corrected_or_solved_in_double(
    bits: int, precisions: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two nearly equal inputs, whose difference predicts the third.
    near, apart = 1 - 2**-bits, 0.5 + 2**-12
    gram = torch.tensor([[1, near, 0.5, 0.5], [near, 1, apart, 0.5], [0.5, apart, 1, 0.25], [0.5, 0.5, 0.25, 1]])
    statistics, weight = InputStatistics(torch.ones(4), gram, 2), torch.tensor([[0.5, -0.25, 3.0, 2.0]])
    used, solve = [], module._Systems.solve

    def recorded(self: object, rows: torch.Tensor, length: int, part: torch.Tensor, dtype: torch.dtype) -> object:
        used.append(dtype)
        return solve(self, rows, length, part, dtype)

    monkeypatch.setattr(module._Systems, "solve", recorded)
    _, updated = thanos(weight, statistics, NM(2, 4), 1e-12)
    assert used == precisions
    _, expected, _ = reference(weight, statistics, NM(2, 4), 4, 1e-12)
    torch.testing.assert_close(updated.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("damp", [1e-6, 1e-8, 1e-12])
@pytest.mark.parametrize("columns", [4, 32])
def test_an_unsolvable_system_names_what_to_raise(columns: int, damp: float) -> None:
    for seed in range(5):
        x = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)) + 10
        try:
            _, updated = thanos(torch.ones(1, columns), statistics_of(x), NM(2, 4), damp)
        except InputError as error:
            assert "raise `pruning.thanos.damp`" in str(error)
        else:
            assert updated.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_equations_without_a_solution_are_an_error(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = torch.full((8, 8), value), torch.zeros(8, dtype=torch.bool)
    monkeypatch.setattr(module, "shared_factor", lambda *_: broken)
    with pytest.raises(InputError, match="`pruning.thanos.damp`"):
        thanos(torch.ones(2, 8), statistics_of(torch.eye(8)), NM(2, 4))


def test_in_that_is_no_multiple_of_m_is_refused() -> None:
    with pytest.raises(InputError, match="6 input features|2 input features"):
        thanos(torch.ones(1, 6), statistics_of(torch.eye(6)), NM(2, 4), block_size=4)
