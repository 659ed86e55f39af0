"""Schedules over the steps: temperatures, scales, learning rates and the order of the data."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from patch.learning.learning_settings import Ramp


def ramp(ends: Ramp, step: int, steps: int) -> float:
    """Return a value linear in the step, from the first end at step 0 to the second at the last step."""
    first, last = ends
    return first + (last - first) * step / max(1, steps - 1)


def cosine_rate(step: int, steps: int, warmup: int, floor: float = 0.0, from_zero: bool = False) -> float:
    """Return the factor of the peak learning rate: linear warm-up, then cosine decay to ``floor`` at the end.

    With ``from_zero`` the factor of the first step is zero.
    """
    if step < warmup:
        return (step + (not from_zero)) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def linear_rate(step: int, steps: int, warmup: int) -> float:
    """Return the factor of the peak learning rate: linear warm-up, then linear decay to zero at the end."""
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


def batch_indices(step: int, batch_size: int, sequences: int, seed: int, held_out: int = 0) -> np.ndarray:
    """Return the rows of one step's sequences, from a new permutation for each pass over the data.

    They are a function of (seed, step) alone, whatever the number of processes and micro-batches. No pass contains the
    rows of `held_out_rows`, and without them the order is otherwise the same.

    Returns:
        `[batch_size]` int64.
    """
    positions, count = np.arange(step * batch_size, (step + 1) * batch_size), sequences - held_out
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(positions // count):
        order = _pass_order(sequences, seed, int(epoch), held_out)
        inside = positions // count == epoch
        rows[inside] = order[positions[inside] % count]
    return rows


def held_out_rows(sequences: int, seed: int, held_out: int) -> np.ndarray:
    """Return the rows that are held out: the last of the first pass, which a run over part of the text never reaches.

    Returns:
        `[held_out]` int64.
    """
    return np.random.default_rng([seed, 0]).permutation(sequences)[sequences - held_out :]


# With millions of sequences a permutation takes longer than a short step. A batch across two passes needs two.
@lru_cache(maxsize=2)
def _pass_order(sequences: int, seed: int, epoch: int, held_out: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(sequences)
    if held_out:
        order = order[~np.isin(order, held_out_rows(sequences, seed, held_out))]
    order.flags.writeable = False
    return order
