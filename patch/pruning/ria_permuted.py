"""Channel permutation before N:M pruning by RIA (Zhang et al., ICLR 2024)."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.nm import NM, Unstructured, nm_mask
from patch.methods import Method
from patch.pruning.ria import ria_score

GROUP = 4

METHOD = Method(
    "ria_permuted", "RIA + permutation", "prune", ("unstructured",), statistics="norm", sparsities=(0.25, 0.5, 0.75)
)


def ria_permuted(weight: Tensor, statistics: InputStatistics, pattern: Unstructured, exponent: float = 0.5) -> Tensor:
    """Return a mask that is N:4 after a permutation of the input channels, which is chosen to keep large scores.

    In the order of the weight the mask has no pattern: at a sparsity of 0.5, the permuted groups of four are 2:4.

    Args:
        weight: `[out, in]`.
        statistics: statistics of the layer's input.
        pattern: unstructured, with a sparsity of 0.25, 0.5 or 0.75.
        exponent: power of the input norms.

    Returns:
        `[out, in]` bool, True = keep.

    Raises:
        InputError: another sparsity, or four does not divide `in`.
    """
    kept = GROUP * (1 - pattern.sparsity)
    if kept not in (1, 2, 3):
        raise InputError(
            f"ria_permuted removes whole weights of groups of four; the sparsity is {pattern.sparsity:g}, "
            "use 0.25, 0.5 or 0.75"
        )
    groups, score = NM(int(kept), GROUP), ria_score(weight, statistics, exponent)
    order = channel_permutation(score, groups)
    mask = torch.empty_like(score, dtype=torch.bool)
    mask[:, order] = nm_mask(score[:, order], groups)
    return mask


def channel_permutation(score: Tensor, pattern: NM) -> Tensor:
    """Return an order of the channels in which an N:M mask keeps a large sum of scores.

    Channels are dealt out to the groups by their sums, then the channels at each place in a group are exchanged between
    the groups by an assignment of maximum sum.

    Args:
        score: `[out, in]` fp32.
        pattern: N < M.

    Returns:
        `[in]` int64: the channel at each place.

    Raises:
        InputError: M does not divide `in`.
    """
    if score.shape[1] % pattern.m:
        raise InputError(f"a layer with {score.shape[1]} input features cannot be N:{pattern.m} sparse")
    # Place k of the groups has the k-th part of the sorted channels, every second part in reverse.
    parts = score.sum(0).argsort(stable=True).view(pattern.m, -1)
    order = torch.stack([part.flip(0) if place % 2 else part for place, part in enumerate(parts)], dim=1)
    for place in range(pattern.m):
        order[:, place] = order[_assignment(score, order, place, pattern.n), place]
    return order.flatten()


def _assignment(score: Tensor, order: Tensor, place: int, kept: int) -> Tensor:
    """Return the group `[groups]` whose channel at ``place`` each group of ``order`` `[groups, m]` should have.

    A group keeps its ``kept`` largest scores of a row: all but the least of those that it has without this place, and
    the larger one of that and the new score.
    """
    others = torch.cat([order[:, :place], order[:, place + 1 :]], dim=1)
    largest = score[:, others].topk(kept, dim=2).values
    new, least = score[:, order[:, place]], largest[:, :, -1]
    gains = torch.stack([torch.maximum(least[:, group, None], new).sum(0) for group in range(len(order))])
    fixed = largest[:, :, :-1].sum((0, 2))
    _, chosen = linear_sum_assignment((gains + fixed[:, None]).cpu().numpy(), maximize=True)
    return torch.from_numpy(chosen).to(order.device)
