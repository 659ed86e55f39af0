"""ADMM weight update with gradual selection of the mask (Boža, 2024, arXiv 2401.02938, "ADMM-Grad")."""

from __future__ import annotations

import torch
from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import NM, Pattern, drop_smallest, nm_mask, pattern_mask
from patch.methods import Method
from patch.pruning.admm import update_weights

METHOD = Method("admm_grad", "ADMM-Grad", "prune", ("n:m", "unstructured"), statistics="gram", updates_weights=True)


def admm_grad(
    weight: Tensor,
    statistics: InputStatistics,
    pattern: Pattern,
    damp: float = 0.1,
    iterations: int = 20,
    pruning_iterations: int = 15,
) -> tuple[Tensor, Tensor]:
    """Prune one layer in several iterations of the weight update.

    In iteration t, the mask removes the fraction `s - s * (1 - t / pruning_iterations) ** 3` of all weights: those with
    the smallest scores, which are the magnitudes of the weights as updated so far. For N:M, only weights are removed
    that are not among the N largest of their group.

    Args:
        weight: `[out, in]`, any float type; not changed.
        statistics: statistics of the layer's input, with the Gram matrix.
        pattern: N:M by group, or unstructured over the whole matrix (of equal scores the earlier is removed).
        damp: damping of the Gram matrix of the normalized inputs, as a fraction of its mean diagonal.
        iterations: iterations of ADMM.
        pruning_iterations: iterations that select a mask; the others keep the last one.

    Returns:
        The mask `[out, in]` bool and the updated weights in fp32, zero outside the mask.

    Raises:
        InputError: the statistics are not finite, or M does not divide `in`.
    """
    last = min(iterations, pruning_iterations)

    def select(step: int, score: Tensor) -> Tensor | None:
        if step > last:
            return None
        if step == last:
            return pattern_mask(score, pattern)
        if isinstance(pattern, NM):
            score = score.masked_fill(nm_mask(score, pattern), torch.inf)
        fraction = pattern.sparsity * (1 - (1 - step / last) ** 3)
        # A whole number of weights must not lose one by the rounding of the fraction.
        count = int(round(score.numel() * fraction, 6))
        return drop_smallest(score.flatten(), count).reshape(score.shape)

    return update_weights(weight, statistics, damp, iterations, select, "admm_grad")
