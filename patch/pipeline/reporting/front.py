"""Pareto front of sparsity and quality."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Return the indices of the non-dominated points, by rising sparsity.

    A point is dominated by one that is at least as good in both coordinates and better in one. All of several equal
    points stay.

    Args:
        points: (sparsity, value); more sparsity is better. NaN values never belong to the front.
        higher_is_better: True if a larger value is better.
    """
    sign = 1.0 if higher_is_better else -1.0
    ranked = [(sparsity, sign * value, index) for index, (sparsity, value) in enumerate(points) if value == value]
    front: list[int] = []
    best_beyond = best_here = float("-inf")
    level = None
    for sparsity, value, index in sorted(ranked, key=lambda point: (-point[0], -point[1], point[2])):
        if sparsity != level:
            level, best_beyond, best_here = sparsity, max(best_beyond, best_here), value
        if value == best_here and value > best_beyond:
            front.append(index)
    return front[::-1]
