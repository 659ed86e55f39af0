"""Tests of RIA and its channel permutation against loops in float64."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.nm import NM, Unstructured
from patch.pruning.ria import ria
from patch.pruning.ria_permuted import channel_permutation, ria_permuted

ria_permuted_module = importlib.import_module("patch.pruning.ria_permuted")
PATTERNS = [NM(2, 4), NM(3, 4), NM(6, 8), NM(1, 4), *map(Unstructured, (0.0, 0.35, 0.5, 0.9))]


def scores(weight: torch.Tensor, x: torch.Tensor, sequences: int, exponent: float) -> list[list[float]]:
    size = [[abs(float(value)) for value in row] for row in weight]
    rows, columns = range(len(size)), range(len(size[0]))
    found = [[0.0 for _ in columns] for _ in rows]
    for i in rows:
        for j in columns:
            column, row = sum(size[k][j] for k in rows), sum(size[i][k] for k in columns)
            norm = math.sqrt(sum(float(value) ** 2 for value in x[:, j]) / sequences)
            relative = (size[i][j] / column if column else 0.0) + (size[i][j] / row if row else 0.0)
            found[i][j] = relative * norm**exponent
    return found


def kept(score: list[list[float]], pattern: NM | Unstructured) -> torch.Tensor:
    rows, columns = len(score), len(score[0])
    keep = torch.ones(rows, columns, dtype=torch.bool)
    places = [(i, j) for i in range(rows) for j in range(columns)]
    groups, count = [places], int(rows * columns * pattern.sparsity)
    if isinstance(pattern, NM):
        groups, count = [places[k : k + pattern.m] for k in range(0, len(places), pattern.m)], pattern.m - pattern.n
    for group in groups:
        for i, j in sorted(group, key=lambda place: (score[place[0]][place[1]], place))[:count]:
            keep[i, j] = False
    return keep


@st.composite
def layers(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int, float]:
    rows, columns = draw(st.integers(1, 6)), 8 * draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    weight, x = torch.randn(rows, columns, generator=generator), torch.randn(9, columns, generator=generator)
    if draw(st.booleans()):  # inputs that are always zero, for which all scores are equal
        x[:, torch.rand(columns, generator=generator) < 0.4] = 0
    if draw(st.booleans()):  # a row and a column of zeros
        weight[0], weight[:, 1] = 0, 0
    if draw(st.booleans()):
        weight = weight.bfloat16()
    return weight, x, draw(st.integers(1, 5)), draw(st.sampled_from([0.5, 1.0, 0.0]))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@settings(max_examples=20)
@given(layers())
def test_equals_the_loop(pattern: NM | Unstructured, layer: tuple) -> None:
    weight, x, sequences, exponent = layer
    score = scores(weight, x, sequences, exponent)
    mask = ria(weight, InputStatistics(x.square().sum(0), None, sequences), pattern, exponent)
    expected = kept(score, pattern)
    # Scores that are equal but for rounding may be exchanged.
    table = torch.tensor(score, dtype=torch.float64)
    torch.testing.assert_close((table * mask).sum(), (table * expected).sum(), rtol=1e-6, atol=1e-9)
    clear = (table - table.masked_fill(~expected, torch.inf).min()).abs() > 1e-5 * table.max()
    if isinstance(pattern, Unstructured):
        assert torch.equal(mask[clear], expected[clear])
    assert mask.sum() == expected.sum()
    if isinstance(pattern, NM):
        assert (mask.reshape(len(mask), -1, pattern.m).sum(-1) == pattern.n).all()


def test_ties_drop_the_earlier() -> None:
    statistics = InputStatistics(torch.ones(4), None, 1)
    assert ria(torch.ones(1, 4), statistics, NM(2, 4)).tolist() == [[False, False, True, True]]
    assert ria(torch.ones(2, 4), statistics, Unstructured(0.5)).tolist() == [[False] * 4, [True] * 4]


def retained(score: list[list[float]], order: list[int], kept: int) -> float:
    """Return the sum of the scores that groups of four channels in an order keep."""
    starts = range(0, len(order), 4)
    return sum(sum(sorted(row[j] for j in order[k : k + 4])[4 - kept :]) for row in score for k in starts)


@pytest.mark.parametrize("kept_of_four", [1, 2, 3])
@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 10_000))
def test_an_exchange_is_the_best_of_all(kept_of_four: int, rows: int, groups: int, place: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(rows, 4 * groups, generator=generator)
    order = torch.randperm(4 * groups, generator=generator).view(groups, 4)

    def after(exchange: Sequence[int]) -> float:
        changed = order.tolist()
        for group, other in enumerate(exchange):
            changed[group][place] = int(order[other, place])
        return retained(score.double().tolist(), sum(changed, []), kept_of_four)

    found = ria_permuted_module._assignment(score, order, place, kept_of_four).tolist()
    best = max(map(after, itertools.permutations(range(groups))))
    assert sorted(found) == list(range(groups)) and after(found) == pytest.approx(best, rel=1e-6)


def test_channels_are_dealt_out_by_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ria_permuted_module, "_assignment", lambda score, order, *_: torch.arange(len(order)))
    sums = torch.tensor([[3.0, 11, 0, 8, 5, 2, 10, 7, 1, 9, 4, 6]])
    found = sums[0, channel_permutation(sums.expand(2, 12), NM(2, 4))]
    assert found.view(3, 4).tolist() == [[0, 5, 6, 11], [1, 4, 7, 10], [2, 3, 8, 9]]


@pytest.mark.parametrize("kept_of_four", [1, 2, 3])
def test_the_mask_is_that_of_the_permuted_scores(kept_of_four: int) -> None:
    generator = torch.Generator().manual_seed(kept_of_four)
    weight, x = torch.randn(5, 16, generator=generator), torch.randn(9, 16, generator=generator)
    score = scores(weight, x, 2, 0.5)
    mask = ria_permuted(weight, InputStatistics(x.square().sum(0), None, 2), Unstructured(1 - kept_of_four / 4))
    order = channel_permutation(torch.tensor(score), NM(kept_of_four, 4)).tolist()
    assert torch.equal(mask[:, order], kept([[row[j] for j in order] for row in score], NM(kept_of_four, 4)))


def test_permutation_keeps_more_than_the_order_of_the_model() -> None:
    generator = torch.Generator().manual_seed(1)
    score = torch.rand(16, 64, generator=generator) * torch.rand(64, generator=generator)
    table, found = score.tolist(), channel_permutation(score, NM(2, 4)).tolist()
    assert retained(table, found, 2) > 1.05 * retained(table, list(range(64)), 2)


def test_what_cannot_be_permuted_is_refused() -> None:
    statistics = InputStatistics(torch.ones(6), None, 1)
    with pytest.raises(InputError, match="the sparsity is 0.45, use 0.25, 0.5 or 0.75"):
        ria_permuted(torch.ones(2, 6), statistics, Unstructured(0.45))
    with pytest.raises(InputError, match="6 input features"):
        ria_permuted(torch.ones(2, 6), statistics, Unstructured(0.5))
