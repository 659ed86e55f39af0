"""SparseGPT (Frantar and Alistarh, 2023, arXiv 2301.00774): column-wise pruning with error compensation."""

from __future__ import annotations

import torch
from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import NM, Pattern, drop_smallest, groups, smallest_of_columns
from patch.methods import Method
from patch.pruning.hessian import shared_factor

_LEAF = 8

METHOD = Method("sparsegpt", "SparseGPT", "prune", ("n:m", "unstructured"), statistics="gram", updates_weights=True)


def sparsegpt(
    weight: Tensor,
    statistics: InputStatistics,
    pattern: Pattern,
    damp: float = 0.01,
    block_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Prune and update one layer.

    Args:
        weight: `[out, in]`, any float type; not changed.
        statistics: statistics of the layer's input, with the Gram matrix.
        pattern: N:M chosen group by group on the already updated weights, or unstructured with one
            threshold for each block of columns.
        damp: relative damping of the Hessian.
        block_size: columns after which the rest of the matrix is updated.

    Returns:
        The mask `[out, in]` bool and the updated weights in fp32, zero outside the mask.

    Raises:
        InputError: the damped Hessian is not positive definite, or M does not divide `in`.
    """
    inverse, dead = shared_factor(statistics, damp, "sparsegpt")
    updated = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    updated.masked_fill_(dead, 0)
    mask = torch.empty_like(updated, dtype=torch.bool)
    columns = updated.shape[1]
    if isinstance(pattern, NM):
        groups(updated, pattern.m)
        block_size = max(1, block_size // pattern.m) * pattern.m
    pruner = _BlockPruner(updated[:, :block_size], pattern)
    for start in range(0, columns, block_size):
        block = slice(start, min(start + block_size, columns))
        errors = pruner(updated[:, block], mask[:, block], inverse[block, block])
        updated[:, block.stop :].addmm_(errors.T, inverse[block, block.stop :], alpha=-1)
    return mask, updated.masked_fill_(mask.logical_not(), 0)


class _BlockPruner:
    """Pruner of successive column blocks, with contiguous columns in buffers `[width, out]` fp32."""

    def __init__(self, like: Tensor, pattern: Pattern) -> None:
        self._pattern = pattern
        self._leaf = pattern.m if isinstance(pattern, NM) else _LEAF
        # Error per unit of weight: `1 / U_jj` for a pruned weight, 0 for a kept one.
        self._weights, self._rates, self._errors = (like.new_empty(like.shape[::-1]) for _ in range(3))

    def __call__(self, block: Tensor, mask: Tensor, inverse: Tensor) -> Tensor:
        """Update ``block`` `[out, width]` in place, fill its ``mask``, return the errors `w / U_jj`, `[width, out]`."""
        width = block.shape[1]
        self._inverse, self._rate = inverse, inverse.diagonal().reciprocal()[:, None]
        self._weights[:width] = block.contiguous().T
        if not isinstance(self._pattern, NM):
            score = (block * self._rate.T).square_().flatten()
            keep = drop_smallest(score, int(score.numel() * self._pattern.sparsity)).reshape(block.shape)
            torch.mul(self._rate, keep.logical_not_().T.contiguous(), out=self._rates[:width])
        self._prune(0, width)
        # Made contiguous first: a transposing copy into a slice is several times slower.
        block.copy_(self._weights[:width].T.contiguous())
        mask.copy_((self._rates[:width] == 0).T.contiguous())
        return self._errors[:width]

    def _prune(self, start: int, stop: int) -> None:
        """Prune recursively by halves; one matrix product updates the second half by all errors of the first."""
        width = stop - start
        if width <= self._leaf:
            self._prune_leaf(start, stop)
            return
        middle = start + (width // self._leaf + 1) // 2 * self._leaf
        self._prune(start, middle)
        update = self._inverse[start:middle, middle:stop].T
        self._weights[middle:stop].addmm_(update, self._errors[start:middle], alpha=-1)
        self._prune(middle, stop)

    def _prune_leaf(self, start: int, stop: int) -> None:
        columns = slice(start, stop)
        weights, rates, errors = self._weights[columns], self._rates[columns], self._errors[columns]
        if isinstance(self._pattern, NM):
            rate = self._rate[columns]
            torch.mul(
                smallest_of_columns((weights * rate).square_(), self._pattern.m - self._pattern.n), rate, out=rates
            )
        inverse = self._inverse[columns, columns]
        for column in range(stop - start):
            error = torch.mul(weights[column], rates[column], out=errors[column])
            if column + 1 < len(weights):
                weights[column + 1 :].addcmul_(inverse[column, column + 1 :, None], error, value=-1)
