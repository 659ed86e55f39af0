"""Wanda (Sun et al., 2023, arXiv 2306.11695): the score is the weight times the norm of its input."""

from __future__ import annotations

from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import NM, Pattern, drop_smallest, nm_mask
from patch.methods import Method

METHOD = Method("wanda", "Wanda", "prune", ("n:m", "unstructured"), statistics="norm")


def wanda(weight: Tensor, statistics: InputStatistics, pattern: Pattern, shift_zero_metrics: bool = False) -> Tensor:
    """Return the mask of the largest scores `|W| * sqrt(s)`, where `s_j` is the mean over sequences of `sum_t x_tj^2`.

    Args:
        weight: `[out, in]`.
        statistics: statistics of the layer's input.
        pattern: N:M by group, or unstructured by output row (stable sort: of equal weights the earlier is removed).
        shift_zero_metrics: true to add the smallest positive `s` of the layer to every `s`, as SLiM does (at most 1
            if an `s` is zero); weights on inputs that are always zero then have different scores.

    Returns:
        `[out, in]` bool, True = keep.
    """
    norms = statistics.norms
    if shift_zero_metrics:
        squares = statistics.squares / statistics.sequences
        norms = (squares + squares.masked_fill(squares == 0, 1).min()).sqrt()
    score = weight.abs().float() * norms
    if isinstance(pattern, NM):
        return nm_mask(score, pattern)
    return drop_smallest(score, int(score.shape[1] * pattern.sparsity))
