"""SparseGPT (Frantar and Alistarh, 2023, arXiv 2301.00774): prune columns in turn, let the rest make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from patch.calibration import InputStatistics
from patch.errors import InputError
from patch.masks.nm import NM, Pattern, drop_smallest, nm_mask


def inverse_hessian_factor(gram: Tensor, sequences: int, damp: float) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor of the inverse of the damped Hessian `H = 2 / N * X^T X`.

    Args:
        gram: `[in, in]` fp32, sum of `x x^T`.
        sequences: N.
        damp: share of the mean diagonal of H that is added to its diagonal.

    Returns:
        The factor `[in, in]`, and the dead columns `[in]` bool, whose input was always zero.

    Raises:
        InputError: H is not positive definite even with the damping; says what to raise.
    """
    hessian = gram * (2 / sequences)
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian.diagonal().add_(damp * hessian.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if not failed:
        factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed:
        raise InputError(
            f"sparsegpt: the Hessian of {len(gram)} inputs is not positive definite with damp {damp}; "
            "raise `pruning.sparsegpt.damp`"
        )
    return factor, dead


def sparsegpt(
    weight: Tensor, statistics: InputStatistics, pattern: Pattern, damp: float = 0.01, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Prune and update one layer.

    Args:
        weight: `[out, in]`; not changed.
        statistics: of the layer's input, with the Gram matrix.
        pattern: N:M chosen group by group on the already updated weights, or unstructured with one
            threshold for each block of columns.
        damp: relative damping of the Hessian.
        block_size: columns after which the rest of the matrix is updated.

    Returns:
        The mask `[out, in]` bool and the updated weights in fp32, zero outside the mask.
    """
    assert statistics.gram is not None
    factor, dead = inverse_hessian_factor(statistics.gram, statistics.sequences, damp)
    updated = weight.float().clone()
    updated[:, dead] = 0
    mask = torch.ones_like(updated, dtype=torch.bool)
    columns = updated.shape[1]
    if isinstance(pattern, NM):
        block_size = max(1, block_size // pattern.m) * pattern.m
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = _prune_block(updated[:, start:stop], mask[:, start:stop], factor[start:stop, start:stop], pattern)
        updated[:, stop:] -= errors @ factor[start:stop, stop:]
    return mask, updated.masked_fill_(~mask, 0)


def _prune_block(block: Tensor, mask: Tensor, factor: Tensor, pattern: Pattern) -> Tensor:
    """Prune ``block`` `[out, width]` in place, fill ``mask``, and return the scaled errors `[out, width]`."""
    diagonal = factor.diagonal()
    errors = torch.zeros_like(block)
    if not isinstance(pattern, NM):
        score = (block.square() / diagonal.square()).flatten()
        mask.copy_(drop_smallest(score, int(score.numel() * pattern.sparsity)).reshape(block.shape))
    for column in range(block.shape[1]):
        if isinstance(pattern, NM) and column % pattern.m == 0:
            group = slice(column, column + pattern.m)
            mask[:, group] = nm_mask(block[:, group].square() / diagonal[group].square(), pattern)
        current = block[:, column]
        error = current.masked_fill(mask[:, column], 0) / diagonal[column]
        block[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
        errors[:, column] = error
    return errors
