"""N:M patterns: in each group of M consecutive weights of a row, N stay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from patch.errors import InputError
from patch.masks.pattern import parse_nm

# Largest group that is ranked by comparing all pairs.
_SHORT = 16
# Groups that are ranked at once, so that they and the counts fit a processor's cache; more keep a GPU busy.
_PART, _GPU_PART = 1 << 13, 1 << 20
# Scores that are counted at once, for the same reasons.
_RUN, _GPU_RUN = 1 << 20, 1 << 30


@dataclass(frozen=True)
class NM:
    """Pattern that keeps N of every M consecutive weights along `in`."""

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Unstructured:
    """Pattern that drops a fraction ``sparsity`` of the weights, anywhere."""

    sparsity: float

    def __str__(self) -> str:
        return "unstructured"


Pattern = NM | Unstructured


def parse_pattern(pattern: str, sparsity: float) -> Pattern:
    """Parse `"2:4"` or `"unstructured"` into a pattern."""
    if pattern == "unstructured":
        return Unstructured(sparsity)
    return NM(*parse_nm(pattern))


def groups(weight: Tensor, m: int) -> Tensor:
    """View `[out, in]` as `[out, in / m, m]`.

    Raises:
        InputError: ``m`` does not divide `in`.
    """
    rows, columns = weight.shape
    if columns % m:
        raise InputError(f"a layer with {columns} input features cannot be N:{m} sparse; {m} must divide them")
    return weight.reshape(rows, columns // m, m)


def pattern_mask(score: Tensor, pattern: Pattern) -> Tensor:
    """Return the mask of the largest scores, by group or over the whole matrix; among equals the earlier goes.

    Args:
        score: `[out, in]`, any float type.
        pattern: N:M, or unstructured over the whole matrix.

    Returns:
        `[out, in]` bool, True = keep.
    """
    if isinstance(pattern, NM):
        return nm_mask(score, pattern)
    return drop_smallest(score.flatten(), int(score.numel() * pattern.sparsity)).reshape(score.shape)


def nm_mask(score: Tensor, pattern: NM) -> Tensor:
    """Keep the ``n`` largest scores of each group; among equals the later stays.

    Args:
        score: `[out, in]`, any float type.

    Returns:
        `[out, in]` bool, True = keep.
    """
    return drop_smallest(groups(score, pattern.m), pattern.m - pattern.n).reshape(score.shape)


def drop_smallest(score: Tensor, count: int) -> Tensor:
    """Return a mask along the last dimension that drops the ``count`` smallest scores; among equals the earlier goes.

    Args:
        score: `[..., length]`, any float type.
        count: 0 to `length`.

    Returns:
        `[..., length]` bool, True = keep.
    """
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    if score.shape[-1] <= _SHORT:
        return _drop_by_rank(score, count)
    rows = score.reshape(-1, score.shape[-1])
    if len(rows) == 1 and score.dtype != torch.float64:
        threshold = _smallest(rows[0].float(), count).to(score.dtype).reshape(1, 1)
    else:
        threshold = rows.kthvalue(count, dim=1, keepdim=True).values
    keep = (rows <= threshold).logical_not_()
    surplus = rows.shape[1] - count - keep.count_nonzero(dim=1)
    if surplus.any():
        # Too many scores equal the threshold and were dropped: the last of them come back.
        equal = rows == threshold
        row, column = equal.nonzero(as_tuple=True)
        after = equal.count_nonzero(dim=1).cumsum(0)[row] - torch.arange(len(row), device=row.device)
        back = after <= surplus[row]
        keep[row[back], column[back]] = True
    return keep.reshape(score.shape)


def _drop_by_rank(score: Tensor, count: int) -> Tensor:
    """Return what `drop_smallest` does, for small groups."""
    flat = score.detach().reshape(-1, score.shape[-1])
    keep = torch.empty_like(flat, dtype=torch.bool)
    size = _GPU_PART if score.is_cuda else _PART
    for part, kept in zip(flat.split(size), keep.split(size), strict=True):
        # One row for each place in a group, so that a comparison runs over all groups.
        kept.copy_((smallest_of_columns(part.T.contiguous(), count) == 0).T)
    return keep.reshape(score.shape)


def smallest_of_columns(score: Tensor, count: int) -> Tensor:
    """Return the ``count`` smallest of each column; among equals the earlier.

    A score is among them if fewer than ``count`` of its column precede it. Sums of comparisons of all pairs give these
    ranks, as one matrix product: exact, and many times faster than sorting short columns.

    Args:
        score: `[m, columns]`, any float type, with small m.

    Returns:
        `[m, columns]` fp32: 1 where a score is among the smallest, else 0.
    """
    first, second, sums, limits = _pairs(len(score), count, score.device)
    before = score.index_select(0, first).le_(score.index_select(0, second))
    return torch.mm(sums, before.float()).lt_(limits)


@lru_cache(maxsize=32)
def _pairs(size: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return i and j of all pairs i < j, what `s_i <= s_j` adds to the ranks, and the ranks' thresholds."""
    first, second = torch.triu_indices(size, size, 1, device=device)
    places = torch.arange(size, device=device)[:, None]
    sums = (places == second).float() - (places == first).float()
    # If no comparison holds, all later places precede a place.
    return first, second, sums, count - (size - 1.0 - places)


def _smallest(score: Tensor, count: int) -> Tensor:
    """Return the ``count``-th smallest of `[length]` fp32, exactly: from the upper half of its bits, then the lower."""
    parts = score.split(_GPU_RUN if score.is_cuda else _RUN)
    high = torch.zeros(1 << 16, dtype=torch.int64, device=score.device)
    for part in parts:
        high += torch.bincount((_ordered(part) >> 16).add_(1 << 15), minlength=1 << 16)
    upto = high.cumsum(0)
    index = int(torch.searchsorted(upto, count))
    inside = [o[(o >> 16) == index - (1 << 15)] for o in map(_ordered, parts)]
    found = torch.cat(inside).kthvalue(count - int(upto[index] - high[index])).values
    return (found ^ ((found >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _ordered(score: Tensor) -> Tensor:
    """Return int32 numbers in the order of fp32 scores."""
    bits = score.view(torch.int32)
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def obeys(mask: Tensor, pattern: NM) -> Tensor:
    """Return the groups that keep at most ``n`` weights, `[out, in / m]` bool."""
    return groups(mask, pattern.m).sum(dim=-1) <= pattern.n
