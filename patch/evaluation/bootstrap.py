"""Standard errors by the bootstrap (Efron 1979): the variation of a statistic over resampled data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

# The relative error of the standard error is 1/sqrt(2 * RESAMPLES) = 1.6 %.
RESAMPLES = 2000
# Fixed, so that a rerun gives the same record.
SEED = 20260101
# Draws at a time: 32 MB with their counts in fp64, for any number of samples.
_CHUNK = 1 << 21


def bootstrap_weights(count: int, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[np.ndarray]:
    """Yield the number of draws of each of ``count`` samples in resamples of ``count`` draws with replacement.

    Yields:
        `[n, count]` whole numbers in fp64 with row sums ``count``, for n resamples at a time; ``resamples`` in total.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // count)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(0, count, (size, count))
        drawn += count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def resampled_means(values: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Return the means of resampled values; each resample uses the same draws for all rows.

    The deviations from the mean are widened by `sqrt(count / (count - 1))` (Rao and Wu 1988). Without that,
    the biased variance makes the standard error 7 % too small for 8 sequences.

    Args:
        values: `[rows, count]`.
        seed: random seed; it and the values determine the result.

    Returns:
        `[rows, RESAMPLES]`; NaN for a single sample, which has no spread, and for a row that is not finite.
    """
    rows, count = values.shape
    if count < 2:
        return np.full((rows, RESAMPLES), np.nan)
    with np.errstate(invalid="ignore"):
        mean = values.mean(axis=1, keepdims=True)
        centred = np.ascontiguousarray((values - mean).T)
        sums = np.concatenate([weights @ centred for weights in bootstrap_weights(count, seed=seed)])
        return mean + sums.T * (math.sqrt(count / (count - 1)) / count)


def bootstrap_stderr(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = np.asarray) -> float | None:
    """Return the standard error of a function of a mean.

    Args:
        values: `[count]` samples.
        statistic: elementwise function of an array of means; by default the mean itself.

    Returns:
        The standard error; None for a single sample, and for values or a statistic that are not finite.
    """
    means = resampled_means(np.asarray(values, dtype=np.float64)[None])[0]
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.std(statistic(means), ddof=1))
    return error if math.isfinite(error) else None
