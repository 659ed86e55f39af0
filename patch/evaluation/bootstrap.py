"""Standard errors by the bootstrap (Efron 1979): how much a number changes when the samples are drawn again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

# An error of 1/sqrt(2 * ROUNDS) = 1.6 % of the standard error itself.
ROUNDS = 2000
# Fixed, so that a rerun gives the same record.
SEED = 20260101
# Draws at a time: with their counts in fp64 32 MB, whatever the number of samples.
_CHUNK = 1 << 21

Statistic = Callable[[np.ndarray], np.ndarray]


def bootstrap_weights(count: int, rounds: int = ROUNDS, seed: int = SEED) -> Iterator[np.ndarray]:
    """How often each of ``count`` samples is drawn when as many are drawn with replacement.

    Yields:
        `[n, count]` whole numbers in fp64 with row sums ``count``, for some rounds at a time; ``rounds`` in all.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // count)
    for start in range(0, rounds, chunk):
        size = min(chunk, rounds - start)
        drawn = rng.integers(0, count, (size, count))
        drawn += count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def resampled_means(values: np.ndarray, rounds: int = ROUNDS, seed: int = SEED) -> np.ndarray:
    """Means of resampled values; in a round all rows are resampled alike.

    The deviations from the mean are widened by `sqrt(count / (count - 1))` (Rao and Wu 1988): without that the
    variance is the biased one, which is 7 % too small an error for 8 windows.

    Args:
        values: `[rows, count]`.
        rounds, seed: the result is a function of them and of the values.

    Returns:
        `[rows, rounds]`; NaN for a single sample, which says nothing of how others would be, and where a row
        is not finite.
    """
    rows, count = values.shape
    if count < 2:
        return np.full((rows, rounds), np.nan)
    with np.errstate(invalid="ignore"):
        mean = values.mean(axis=1, keepdims=True)
        centred = np.ascontiguousarray((values - mean).T)
        sums = np.concatenate([weights @ centred for weights in bootstrap_weights(count, rounds, seed)])
        return mean + sums.T * (math.sqrt(count / (count - 1)) / count)


def bootstrap_stderr(values: np.ndarray, statistic: Statistic = np.asarray) -> float | None:
    """Standard error of a function of a mean.

    Args:
        values: `[count]` samples.
        statistic: takes an array of means to what is of interest, elementwise; by default the mean itself.

    Returns:
        None for a single sample, and where the values or the statistic are not finite.
    """
    means = resampled_means(np.asarray(values, dtype=np.float64)[None])[0]
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.std(statistic(means), ddof=1))
    return error if math.isfinite(error) else None
