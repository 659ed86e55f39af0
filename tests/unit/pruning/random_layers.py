"""Random layers with the statistics of their inputs, for tests of methods that update weights."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import NM, Unstructured

# Weight, inputs and number of sequences.
Layer = tuple[torch.Tensor, torch.Tensor, int]


def statistics_of(x: torch.Tensor, sequences: int = 1) -> InputStatistics:
    return InputStatistics(x.square().sum(0), x.T @ x, sequences)


@st.composite
def layers(draw: st.DrawFn, pattern: NM | Unstructured, zeros_among_ties: bool = True) -> Layer:
    """Draw a layer; ``zeros_among_ties`` allows inputs that are always zero where scores are equal."""
    step = pattern.m if isinstance(pattern, NM) else draw(st.sampled_from([4, 5]))
    rows, columns = draw(st.integers(1, 6)), step * draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    ties = draw(st.booleans())
    if ties:
        # Ties that no update breaks: few values, and inputs that have nothing in common.
        weight, x = torch.randint(-2, 3, (rows, columns), generator=generator).float(), 3 * torch.eye(columns)
    else:
        weight = torch.randn(rows, columns, generator=generator)
        mixing = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
        x = torch.randn(8 * columns, columns, generator=generator) @ mixing
    if (zeros_among_ties or not ties) and draw(st.booleans()):
        x[:, torch.rand(columns, generator=generator) < 0.3] = 0
    if draw(st.booleans()):
        weight = weight.bfloat16()
    return weight, x, draw(st.integers(1, 6))
