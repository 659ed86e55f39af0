"""RIA (Zhang et al., ICLR 2024): relative importance of a weight, times a power of the norm of its input."""

from __future__ import annotations

from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import Pattern, pattern_mask
from patch.methods import Method

METHOD = Method("ria", "RIA", "prune", ("n:m", "unstructured"), statistics="norm")


def ria(weight: Tensor, statistics: InputStatistics, pattern: Pattern, exponent: float = 0.5) -> Tensor:
    """Return the mask of the largest scores.

    Args:
        weight: `[out, in]`.
        statistics: statistics of the layer's input.
        pattern: N:M by group, or unstructured over the whole matrix (of equal scores the earlier is removed).
        exponent: power of the input norms.

    Returns:
        `[out, in]` bool, True = keep.
    """
    return pattern_mask(ria_score(weight, statistics, exponent), pattern)


def ria_score(weight: Tensor, statistics: InputStatistics, exponent: float) -> Tensor:
    """Return `(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * norm_j ** exponent`; a sum of zero counts as one.

    The result is `[out, in]` fp32.
    """
    size = weight.abs().float()
    sums = [size.sum(dim, keepdim=True) for dim in (0, 1)]
    return sum(size / total.masked_fill(total == 0, 1) for total in sums) * statistics.norms**exponent
