"""The Pareto front of sparsity and quality."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Indices of the points that no other one beats, by rising sparsity.

    Args:
        points: (sparsity, value); more sparsity is better. NaN values never belong to the front.
        higher_is_better: whether a larger value is better.

    A point is beaten by one that is at least as good in both and better in one; of equal points all stay.
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
