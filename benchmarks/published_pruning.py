"""Reference one-shot methods for one layer, as published in papers and public code, without optimizations.

`prune_layers.py` compares ours with them. Every function maps a weight `[out, in]` in fp32 to the mask `[out, in]`
bool, True = keep, and the pruned weights in fp32. They prune by thresholds, as published, which may remove one more
weight than the exact counts of ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import NM, Pattern


def magnitude(weight: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Prune by absolute values; unstructured by one threshold from the sorted values of the matrix."""
    metric = weight.abs()
    if isinstance(pattern, NM):
        drop = _smallest_of_groups(metric, pattern)
    else:
        threshold = metric.flatten().sort().values[int(metric.numel() * pattern.sparsity)]
        drop = metric < threshold
    return ~drop, weight.masked_fill(drop, 0)


def wanda(weight: Tensor, statistics: InputStatistics, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Prune by absolute values times the norm of the input; unstructured by the sorted values of each row."""
    metric = weight.abs() * (statistics.squares / statistics.sequences).sqrt()
    if isinstance(pattern, NM):
        drop = _smallest_of_groups(metric, pattern)
    else:
        order = metric.sort(dim=-1, stable=True).indices
        drop = torch.zeros_like(metric, dtype=torch.bool)
        drop.scatter_(1, order[:, : int(metric.shape[1] * pattern.sparsity)], True)
    return ~drop, weight.masked_fill(drop, 0)


def _smallest_of_groups(metric: Tensor, pattern: NM) -> Tensor:
    drop = torch.zeros_like(metric, dtype=torch.bool)
    for column in range(0, metric.shape[1], pattern.m):
        group = metric[:, column : column + pattern.m]
        smallest = group.topk(pattern.m - pattern.n, dim=1, largest=False).indices
        drop.scatter_(1, column + smallest, True)
    return drop


def _hessian(statistics: InputStatistics, damp: float) -> tuple[Tensor, Tensor]:
    assert statistics.gram is not None
    hessian = statistics.gram * (2 / statistics.sequences)
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += damp * diagonal.mean()
    return hessian, dead


def sparsegpt(
    weight: Tensor, statistics: InputStatistics, pattern: Pattern, damp: float = 0.01, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Prune column by column; each column updates the rest of its block."""
    hessian, dead = _hessian(statistics, damp)
    updated = weight.clone()
    updated[:, dead] = 0
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    del hessian
    removed = torch.zeros_like(updated, dtype=torch.bool)
    for start in range(0, updated.shape[1], block_size):
        stop = min(start + block_size, updated.shape[1])
        block, factor = updated[:, start:stop].clone(), inverse[start:stop, start:stop]
        errors, pruned, drop = torch.zeros_like(block), torch.zeros_like(block), removed[:, start:stop]
        if not isinstance(pattern, NM):
            score = block**2 / factor.diagonal() ** 2
            drop.copy_(score <= score.flatten().sort().values[int(score.numel() * pattern.sparsity)])
        for i in range(stop - start):
            if isinstance(pattern, NM) and i % pattern.m == 0:
                score = block[:, i : i + pattern.m] ** 2 / factor.diagonal()[i : i + pattern.m] ** 2
                smallest = score.topk(pattern.m - pattern.n, dim=1, largest=False).indices
                drop.scatter_(1, i + smallest, True)
            column = block[:, i].clone()
            column[drop[:, i]] = 0
            pruned[:, i] = column
            error = (block[:, i] - column) / factor[i, i]
            block[:, i:] -= error.unsqueeze(1).matmul(factor[i, i:].unsqueeze(0))
            errors[:, i] = error
        updated[:, start:stop] = pruned
        updated[:, stop:] -= errors.matmul(inverse[start:stop, stop:])
    return ~removed, updated


def thanos(
    weight: Tensor,
    statistics: InputStatistics,
    pattern: Pattern,
    damp: float = 0.01,
    block_size: int = 512,
    rows_at_once: int = 256,
) -> tuple[Tensor, Tensor]:
    """Prune block by block of columns, with an inverse for each block and a system of equations for each row.

    The rest of the matrix is updated by one product, as ours is, since gathering rows of the inverse for each row of
    the weights would take gigabytes.
    """
    hessian, dead = _hessian(statistics, damp)
    updated = weight.clone()
    updated[:, dead] = 0
    norms = statistics.squares.sqrt()
    removed = torch.zeros_like(updated, dtype=torch.bool)
    goal = int(updated.numel() * (0 if isinstance(pattern, NM) else pattern.sparsity))
    for start in range(0, updated.shape[1], block_size):
        stop = min(start + block_size, updated.shape[1])
        inverse = torch.linalg.inv(hessian[start:, start:])
        rest, drop = updated[:, start:], removed[:, start:stop]
        metric = rest.abs() * norms[start:]
        if isinstance(pattern, NM):
            drop.copy_(_smallest_of_groups(metric[:, : stop - start], pattern))
        elif (left := goal - int(removed.sum())) > 0:
            drop.copy_(metric[:, : stop - start] <= metric.flatten().sort().values[left - 1])
        for part in range(0, len(updated), rows_at_once):
            rows = slice(part, part + rows_at_once)
            _remove(rest[rows], drop[rows], inverse)
        updated[:, start:stop].masked_fill_(drop, 0)
    return ~removed, updated


def _remove(rest: Tensor, drop: Tensor, inverse: Tensor) -> None:
    """Remove the first columns ``drop`` of each row of ``rest`` with the optimal update of its others, in place."""
    counts = drop.sum(1)
    longest = int(counts.max())
    # The removed columns in their order, followed by padding.
    index = drop.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices[:, :longest]
    real = torch.arange(longest, device=rest.device) < counts[:, None]
    both = real[:, :, None] & real[:, None, :]
    unit = torch.eye(longest, device=rest.device)
    systems = torch.where(both, inverse[index[:, :, None], index[:, None, :]], unit)
    values = rest.gather(1, index).masked_fill(~real, 0)
    # With more threads, batched solves of 200 unknowns or more fail in some CPU builds of torch (SLASWP, parameter 6).
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    solutions = torch.linalg.solve(systems, values)
    torch.set_num_threads(threads)
    multipliers = torch.zeros_like(drop, dtype=rest.dtype).scatter_add_(1, index, solutions)
    rest -= multipliers @ inverse[: drop.shape[1]]
