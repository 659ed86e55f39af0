"""Tests of magnitude and Wanda pruning against loops in float32, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import NM, Unstructured
from patch.pruning.magnitude import magnitude
from patch.pruning.wanda import wanda

NMS = [NM(2, 4), NM(3, 4), NM(1, 4), NM(4, 8), NM(6, 8)]
PATTERNS = [*NMS, *map(Unstructured, (0.0, 0.25, 0.35, 0.45, 0.5, 0.9))]


def worst(values: np.ndarray, count: int) -> set[int]:
    """Return the positions of the ``count`` smallest; of equals, the earlier."""
    order = sorted(range(len(values)), key=lambda i: (float(values[i]), i))
    return set(order[:count])


def mask_of(score: np.ndarray, pattern: NM | Unstructured, whole: bool) -> np.ndarray:
    keep = np.ones(score.shape, dtype=bool)
    rows, columns = score.shape
    if isinstance(pattern, NM):
        for row in range(rows):
            for start in range(0, columns, pattern.m):
                for index in worst(score[row, start : start + pattern.m], pattern.m - pattern.n):
                    keep[row, start + index] = False
    elif whole:
        for index in worst(score.reshape(-1), int(score.size * pattern.sparsity)):
            keep[index // columns, index % columns] = False
    else:
        for row in range(rows):
            for index in worst(score[row], int(columns * pattern.sparsity)):
                keep[row, index] = False
    return keep


@st.composite
def layers(draw: st.DrawFn, pattern: NM | Unstructured) -> tuple[torch.Tensor, InputStatistics]:
    step = pattern.m if isinstance(pattern, NM) else 4
    rows, columns = draw(st.integers(1, 6)), step * draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    weight = torch.randn(rows, columns, generator=generator)
    if draw(st.booleans()):  # many ties
        weight = weight.mul(1.5).round()
    x = torch.randn(7, columns, generator=generator)
    if draw(st.booleans()):  # dead columns
        x[:, torch.rand(columns, generator=generator) < 0.5] = 0
    if draw(st.booleans()):
        weight = weight.bfloat16()
    return weight, InputStatistics(x.square().sum(0), None, draw(st.integers(1, 5)))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@given(st.data())
def test_magnitude(pattern: NM | Unstructured, data: st.DataObject) -> None:
    weight, _ = data.draw(layers(pattern))
    expected = mask_of(np.abs(weight.float().numpy()), pattern, whole=True)
    assert (magnitude(weight, pattern).numpy() == expected).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@given(st.data())
def test_wanda(pattern: NM | Unstructured, data: st.DataObject) -> None:
    weight, statistics = data.draw(layers(pattern))
    score = np.abs(weight.float().numpy())
    norms = np.sqrt(statistics.squares.numpy() / np.float32(statistics.sequences))
    for row in range(score.shape[0]):
        for column in range(score.shape[1]):
            score[row, column] = score[row, column] * norms[column]
    assert (wanda(weight, statistics, pattern).numpy() == mask_of(score, pattern, whole=False)).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@given(st.data())
def test_wanda_with_shifted_norms(pattern: NM | Unstructured, data: st.DataObject) -> None:
    weight, statistics = data.draw(layers(pattern))
    squares = [float(np.float32(value) / np.float32(statistics.sequences)) for value in statistics.squares]
    shift = min(1.0 if square == 0 else square for square in squares)
    norms = np.array([np.sqrt(np.float32(square) + np.float32(shift)) for square in squares])
    score = np.abs(weight.float().numpy()) * norms
    found = wanda(weight, statistics, pattern, shift_zero_metrics=True)
    assert (found.numpy() == mask_of(score, pattern, whole=False)).all()


def test_shifted_norms_rank_the_weights_of_dead_inputs() -> None:
    weight = torch.tensor([[1.0, 2.0, 4.0, 3.0]])
    statistics = InputStatistics(torch.tensor([0.0, 0.0, 0.0, 0.25]), None, 1)
    assert wanda(weight, statistics, NM(2, 4)).tolist() == [[False, False, True, True]]
    assert wanda(weight, statistics, NM(1, 4)).tolist() == [[False, False, False, True]]
    assert wanda(weight, statistics, NM(1, 4), True).tolist() == [[False, False, False, True]]
    dead = InputStatistics(torch.zeros(4), None, 1)
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert wanda(weight, dead, NM(2, 4)).tolist() == [[False, False, True, True]]
    assert wanda(weight, dead, NM(2, 4), True).tolist() == [[True, True, False, False]]


def test_wanda_prefers_loud_inputs_where_magnitude_does_not() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    statistics = InputStatistics(torch.tensor([10_000.0, 100.0, 1.0, 0.0]), None, 1)
    assert wanda(weight, statistics, NM(2, 4)).tolist() == [[True, True, False, False]]
    assert magnitude(weight, NM(2, 4)).tolist() == [[False, False, True, True]]


def test_magnitude_ranks_over_the_matrix_and_wanda_by_row() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert magnitude(weight, Unstructured(0.5)).tolist() == [[False, False], [True, True]]
    ones = InputStatistics(torch.ones(2), None, 1)
    assert wanda(weight, ones, Unstructured(0.5)).tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("pattern", NMS)
def test_weights_are_not_changed(pattern: NM) -> None:
    weight = torch.randn(3, 16)
    before = weight.clone()
    magnitude(weight, pattern)
    wanda(weight, InputStatistics(torch.rand(16), None, 2), pattern)
    assert torch.equal(weight, before)
