"""Magnitude pruning: it removes the smallest weights."""

from __future__ import annotations

from torch import Tensor

from patch.masks.nm import Pattern, pattern_mask
from patch.methods import Method

METHOD = Method("magnitude", "Magnitude", "prune", ("n:m", "unstructured"))


def magnitude(weight: Tensor, pattern: Pattern) -> Tensor:
    """Return the mask of the largest absolute weights.

    Args:
        weight: `[out, in]`.
        pattern: N:M by group, or unstructured over the whole matrix (of equal weights the earlier is removed).

    Returns:
        `[out, in]` bool, True = keep.
    """
    return pattern_mask(weight.abs().float(), pattern)
