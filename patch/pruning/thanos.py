"""Thanos (Ilin and Richtarik, 2025, arXiv 2504.05346): exact block-wise pruning with error compensation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import get_ident

import torch
from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.masks.nm import NM, Pattern, drop_smallest, nm_mask
from patch.methods import Method
from patch.pruning.hessian import not_positive_definite, shared_factor

# Larger batches of rows exceed the processor's cache and are slower.
_ROWS_ON_CPU = 16
# Maximum relative error of a solution for which one correction suffices.
_STEP = 0.01

METHOD = Method("thanos", "Thanos", "prune", ("n:m", "unstructured"), statistics="gram", updates_weights=True)


def thanos(
    weight: Tensor,
    statistics: InputStatistics,
    pattern: Pattern,
    damp: float = 0.01,
    block_size: int = 512,
    rows_at_once: int = 256,
) -> tuple[Tensor, Tensor]:
    """Prune and update one layer.

    For each block of columns, Wanda's score of the updated weights selects the weights to remove. Each row then gets
    the update with the least output error that makes its selected weights zero. Every column from the block's first
    on may change. Every row obeys the pattern: no outlier row stays dense.

    Args:
        weight: `[out, in]`, any float type; not changed.
        statistics: statistics of the layer's input, with the Gram matrix.
        pattern: N:M by group, or unstructured over the whole matrix: the candidates are the smallest weights of all
            columns from the block on (of equal weights the earlier, row by row); those in the block are removed.
        damp: relative damping of the Hessian.
        block_size: columns of a block; for N:M the next lower multiple of M.
        rows_at_once: rows whose equations are solved together; it bounds the memory.

    Returns:
        The mask `[out, in]` bool and the updated weights in fp32, zero outside the mask.

    Raises:
        InputError: the damped Hessian is not positive definite, or M does not divide `in`.
    """
    inverse, dead = shared_factor(statistics, damp, "thanos")
    updated = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    updated.masked_fill_(dead, 0)
    mask = torch.empty_like(updated, dtype=torch.bool)
    norms = statistics.squares.sqrt()
    columns = updated.shape[1]
    left = int(updated.numel() * pattern.sparsity)
    if isinstance(pattern, NM):
        block_size = max(1, block_size // pattern.m) * pattern.m
    for start in range(0, columns, block_size):
        block = slice(start, min(start + block_size, columns))
        rest, width = updated[:, start:], block.stop - start
        keep = _choose(rest, norms[start:], width, pattern, left)
        drop = keep.logical_not()
        if not isinstance(pattern, NM):
            left -= int(drop.count_nonzero())
        mask[:, block] = keep
        multipliers = _multipliers(rest[:, :width], drop, inverse[block, block], rows_at_once)
        if multipliers is None:
            raise not_positive_definite("thanos", columns, damp)
        rest.addmm_(multipliers @ inverse[block, block].T, inverse[block, start:], alpha=-1)
        rest[:, :width].masked_fill_(drop, 0)
    return mask, updated


def _choose(rest: Tensor, norms: Tensor, width: int, pattern: Pattern, left: int) -> Tensor:
    """Return the keep mask of the first ``width`` columns of ``rest`` `[out, .]`; ``left`` weights remain to remove."""
    if isinstance(pattern, NM):
        return nm_mask(rest[:, :width].abs().mul_(norms[:width]), pattern)
    score = rest.abs().mul_(norms)
    return drop_smallest(score.flatten(), left).reshape(score.shape)[:, :width]


def _multipliers(block: Tensor, drop: Tensor, factor: Tensor, rows_at_once: int) -> Tensor | None:
    """Return the multiples of the inverse Hessian's rows that take the dropped weights to zero.

    For ``block`` `[out, width]` fp32, ``drop`` `[out, width]` bool and the ``factor`` U `[width, width]` of the block's
    columns: `[out, width]` fp32, zero where nothing is dropped, with `(result @ U^T U)[drop] = block[drop]`. None where
    float64 has too few digits for that.
    """
    threads = 1
    if block.device.type == "cpu":
        threads = torch.get_num_threads()
        rows_at_once = max(1, min(rows_at_once // threads, _ROWS_ON_CPU))
    systems = _Systems(drop, factor, rows_at_once)

    def solve(batch: tuple[Tensor, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return systems.solve(*batch, block[batch[0]], dtype)

    result, batches = torch.zeros_like(block, memory_format=torch.contiguous_format), systems.batches
    with _workers(threads) as in_turn:
        for dtype in (torch.float32, torch.float64):
            if not batches:
                break
            flags = []
            for (rows, _), (solved, good) in zip(batches, in_turn(partial(solve, dtype=dtype), batches), strict=True):
                result[rows] = solved
                flags.append(good)
            # The host waits for a GPU once for all batches, of which those that need more digits are left.
            batches = [batch for batch, good in zip(batches, torch.stack(flags).tolist(), strict=True) if not good]
    return None if batches else result


@contextmanager
def _workers(threads: int) -> Iterator[Callable[..., Iterator]]:
    """Yield a `map` over ``threads`` threads with single-threaded kernels, which are faster for small matrices."""
    if threads == 1:
        yield map
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


class _Systems:
    """Linear systems of a block: for each row of weights, the dropped rows and columns of the inverse Hessian.

    Rows are sorted by their number of dropped weights. In a batch all systems are as long as the longest: the others
    are padded with columns of a unit matrix behind the inverse Hessian.
    """

    def __init__(self, drop: Tensor, factor: Tensor, rows_at_once: int) -> None:
        self._width = drop.shape[1]
        counts = drop.count_nonzero(dim=1)
        lengths, order = counts.sort(stable=True)
        lengths = lengths.cpu()
        parts = zip(order.split(rows_at_once), lengths.split(rows_at_once), strict=True)
        # Row indices of each batch, and the maximum number of dropped weights per row.
        self.batches = [(rows, int(part[-1])) for rows, part in parts if part[-1]]
        shortest, longest = int(lengths[0]), int(lengths[-1])
        inverse = factor.T.double() @ factor.double()
        # A unit diagonal loses the fewest digits.
        self._scale = inverse.diagonal().rsqrt()
        self._inverse = torch.eye(self._width + longest - shortest, dtype=torch.float64, device=drop.device)
        self._inverse[: self._width, : self._width] = inverse.mul_(self._scale).mul_(self._scale[:, None])
        self._single = self._inverse.float()
        row, column = drop.nonzero(as_tuple=True)
        place = torch.arange(len(row), device=drop.device) - (counts.cumsum(0) - counts)[row]
        self._index = torch.arange(longest, device=drop.device) - counts[:, None] + self._width
        self._index[row, place] = column
        self._buffers: dict[tuple[int, torch.dtype], Tensor] = {}
        self._size = min(rows_at_once, len(drop)) * longest**2

    def solve(self, rows: Tensor, length: int, weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return multipliers `[rows, width]` fp32 for ``weights``, and a bool: whether ``dtype`` is precise enough."""
        index = self._index[rows, :length]
        factors = self._gather(index, dtype)
        failed = torch.empty(len(rows), dtype=torch.int32, device=index.device)
        torch.linalg.cholesky_ex(factors, out=(factors, failed))
        wanted = torch.zeros(len(rows), len(self._inverse), dtype=torch.float64, device=index.device)
        torch.mul(weights, self._scale, out=wanted[:, : self._width])
        first = _solve(factors, wanted.gather(1, index))
        found = torch.zeros_like(wanted).scatter_(1, index, first)
        correction = _solve(factors, wanted.sub_(found @ self._inverse).gather(1, index))
        # The correction estimates the first solution's error, with the same relative error.
        good = (correction.abs().amax(1) <= _STEP * first.abs().amax(1)) & (failed == 0)
        return found.scatter_add_(1, index, correction)[:, : self._width].mul_(self._scale).float(), good.all()

    def _gather(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return matrices `[rows, length, length]`, column-major, so that LAPACK factorizes them in place."""
        flat, matrices = self._buffer(index, torch.int32), self._buffer(index, dtype)
        source, index = self._single if dtype == torch.float32 else self._inverse, index.int()
        torch.add(index[:, :, None] * len(source), index[:, None, :], out=flat)
        torch.index_select(source.view(-1), 0, flat.view(-1), out=matrices.view(-1))
        return matrices.mT

    def _buffer(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a buffer `[rows, length, length]` shared by a thread's batches; allocation costs as much as a fill."""
        (rows, length), key = index.shape, (get_ident(), dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(self._size, dtype=dtype, device=index.device)
        return self._buffers[key][: rows * length**2].view(rows, length, length)


def _solve(factors: Tensor, right: Tensor) -> Tensor:
    """Return solutions `[rows, length]` in float64 from lower factors `[rows, length, length]`."""
    half = torch.linalg.solve_triangular(factors, right.to(factors.dtype)[:, :, None], upper=False)
    return torch.linalg.solve_triangular(factors.mT, half, upper=True)[:, :, 0].double()
