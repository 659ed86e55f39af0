"""Tests of RIA against a loop in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import NM, Unstructured
from patch.pruning.ria import ria

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
