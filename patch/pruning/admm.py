"""ADMM weight update (Boža, 2024, arXiv 2401.02938) for a mask that is chosen before it ("ADMM1")."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.nm import Pattern, pattern_mask
from patch.methods import Method
from patch.pruning.hessian import cached

# Keeps the norm of an input that is always zero positive.
_TINY = 1e-8

METHOD = Method("admm", "ADMM", "prune", ("n:m", "unstructured"), statistics="gram", updates_weights=True)


def admm(
    weight: Tensor,
    statistics: InputStatistics,
    pattern: Pattern,
    damp: float = 0.1,
    iterations: int = 20,
) -> tuple[Tensor, Tensor]:
    """Prune one layer by Wanda's score and update the kept weights.

    Args:
        weight: `[out, in]`, any float type; not changed.
        statistics: statistics of the layer's input, with the Gram matrix.
        pattern: N:M by group, or unstructured over the whole matrix (of equal scores the earlier is removed).
        damp: damping of the Gram matrix of the normalized inputs, as a fraction of its mean diagonal.
        iterations: iterations of ADMM.

    Returns:
        The mask `[out, in]` bool and the updated weights in fp32, zero outside the mask.

    Raises:
        InputError: the statistics are not finite, or M does not divide `in`.
    """

    def select(step: int, score: Tensor) -> Tensor | None:
        return pattern_mask(score, pattern) if step == 1 else None

    return update_weights(weight, statistics, damp, iterations, select, "admm")


def update_weights(
    weight: Tensor,
    statistics: InputStatistics,
    damp: float,
    iterations: int,
    select: Callable[[int, Tensor], Tensor | None],
    method: str,
) -> tuple[Tensor, Tensor]:
    """Minimize the error of the layer's output over the weights of a mask, by ADMM with a penalty of one.

    Inputs are divided by their norms and weights are multiplied by them, so that the magnitude of a weight is Wanda's
    score. With the kept part Z and the removed part U of `A = W + U`, an iteration is
    `W = W_0 + (Z - U - W_0) @ inverse(G + I)`, for the damped Gram matrix G of the normalized inputs.

    Args:
        weight: `[out, in]`, any float type; not changed.
        statistics: statistics of the layer's input, with the Gram matrix.
        damp: damping of G, as a fraction of its mean diagonal.
        iterations: iterations, counted from one.
        select: function of the iteration and `|A|` `[out, in]`; returns a new mask, or None to keep the last one.
        method: method that the error names.

    Returns:
        The last mask `[out, in]` bool and the updated weights in fp32, zero outside the mask.

    Raises:
        InputError: the statistics are not finite.
    """
    norms, inverse = cached(statistics, ("admm", damp), lambda: _normalized_inverse(statistics, damp, method))
    start = weight.float() * norms
    total, mask = start.clone(), torch.ones_like(start, dtype=torch.bool)
    for step in range(1, iterations + 1):
        found = select(step, total.abs())
        mask = mask if found is None else found
        removed = total.masked_fill(mask, 0)
        change = total.sub_(removed, alpha=2).sub_(start)
        total = removed.add_(start).addmm_(change, inverse)
    # The removed part is zero at the kept weights.
    return mask, total.div_(norms).masked_fill_(~mask, 0)


def _normalized_inverse(statistics: InputStatistics, damp: float, method: str) -> tuple[Tensor, Tensor]:
    """Return the input norms `[in]`, and the inverse `[in, in]` of the damped normalized Gram matrix plus one."""
    assert statistics.gram is not None
    norms = statistics.gram.diagonal().sqrt() + _TINY
    matrix = (statistics.gram / norms).div_(norms[:, None])
    diagonal = matrix.diagonal()
    diagonal.add_(damp * diagonal.mean() + 1)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    inverse = torch.cholesky_inverse(factor)
    # The host waits for a GPU once.
    if not torch.stack([failed == 0, inverse.isfinite().all()]).all():
        raise InputError(f"{method}: the input statistics of a layer with {len(norms)} inputs are not finite")
    return norms, inverse
