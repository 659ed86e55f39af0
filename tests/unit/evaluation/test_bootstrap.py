"""Tests of bootstrap errors against closed forms, up to a Monte-Carlo error of 1.6 %."""

from __future__ import annotations

import math

import numpy as np
import pytest

from patch.evaluation import bootstrap
from patch.evaluation.bootstrap import RESAMPLES, bootstrap_stderr, bootstrap_weights, resampled_means


def draws(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 0.8, count)


@pytest.mark.parametrize("count", [2, 8, 100, 3000])
def test_error_of_a_mean(count: int) -> None:
    values = draws(count)
    assert bootstrap_stderr(values) == pytest.approx(values.std(ddof=1) / math.sqrt(count), rel=0.06)


def test_error_of_an_accuracy() -> None:
    right = np.repeat([1.0, 0.0], [130, 70])
    assert bootstrap_stderr(right) == pytest.approx(math.sqrt(0.65 * 0.35 / 199), rel=0.06)


def test_error_of_a_perplexity_is_that_of_the_delta_method() -> None:
    losses = draws(400)
    delta = math.exp(losses.mean()) * losses.std(ddof=1) / math.sqrt(400)
    assert bootstrap_stderr(losses, np.exp) == pytest.approx(delta, rel=0.06)


def test_covers_the_truth_as_often_as_it_should() -> None:
    """One standard error around the mean covers the true mean in 68 % of 300 samples."""
    rng = np.random.default_rng(1)
    hits = [
        abs(values.mean() - 3.0) <= bootstrap_stderr(values)
        for values in (rng.normal(3.0, 0.8, 50) for _ in range(300))
    ]
    assert np.mean(hits) == pytest.approx(0.683, abs=3 * math.sqrt(0.683 * 0.317 / 300))


def test_weights_are_counts_of_draws() -> None:
    weights = np.concatenate(list(bootstrap_weights(7, 500)))
    assert weights.shape == (500, 7)
    assert (weights.sum(axis=1) == 7).all() and (weights == np.round(weights)).all()
    # Multinomial: mean 1, variance 1 - 1/n, covariance -1/n.
    covariance = np.cov(weights.T)
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)
    assert covariance == pytest.approx(np.eye(7) - 1 / 7, abs=0.25)


@pytest.mark.parametrize("chunk", [1, 50, 10**6])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.stack([draws(40), draws(40, 1)])
    whole = resampled_means(values)
    monkeypatch.setattr(bootstrap, "_CHUNK", chunk)
    assert max(len(weights) for weights in bootstrap_weights(40)) <= max(1, chunk // 40)
    assert resampled_means(values) == pytest.approx(whole, rel=1e-12)


def test_the_same_again_and_with_another_seed_not() -> None:
    values = draws(30)
    assert bootstrap_stderr(values) == bootstrap_stderr(values)
    assert (resampled_means(values[None]) == resampled_means(values[None])).all()
    assert (resampled_means(values[None], seed=1) != resampled_means(values[None], seed=2)).all()


def test_rows_are_resampled_alike() -> None:
    """A row's means do not depend on the other rows, and a shifted row has shifted means."""
    first, second = draws(30), draws(30, 1)
    both = resampled_means(np.stack([first, second, first + 5]))
    assert both.shape == (3, RESAMPLES)
    assert both[1] == pytest.approx(resampled_means(second[None])[0])
    assert both[2] - both[0] == pytest.approx(np.full(RESAMPLES, 5.0), abs=1e-12)


def test_what_has_no_error() -> None:
    assert bootstrap_stderr(np.array([2.0])) is None
    assert bootstrap_stderr(np.array([2.0, np.nan])) is None
    assert bootstrap_stderr(np.array([2.0, np.inf]), np.exp) is None
    assert bootstrap_stderr(np.array([900.0, 1000.0]), np.exp) is None
    assert bootstrap_stderr(np.full(9, 2.0)) == pytest.approx(0, abs=1e-12)
