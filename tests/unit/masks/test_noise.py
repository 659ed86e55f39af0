"""The noise has the distribution that the Gumbel trick needs, at every position."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from patch.masks.learnable import (
    LearnableMask,
    Sampling,
    gumbel_noise,
    logistic_noise,
    sample_patterns,
    sample_tiles,
    uniform_noise,
)

COUNT = 60_001
KINDS = {
    "uniform": (uniform_noise, "uniform"),
    "gumbel": (gumbel_noise, "gumbel_r"),
    "logistic": (logistic_noise, "logistic"),
}


def draw(kind: str, seed: int, count: int = COUNT) -> torch.Tensor:
    return KINDS[kind][0](count if kind == "uniform" else (count,), seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [slice(None), slice(0, None, 2), slice(1, None, 2), slice(0, None, 6), slice(0, 2000)])
def test_distribution(kind: str, part: slice) -> None:
    sample = draw(kind, 7)[part].double().numpy()
    assert stats.kstest(sample, KINDS[kind][1]).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_independent(kind: str) -> None:
    sample = draw(kind, 3).double()
    for lag in (1, 2, 6):
        pairs = torch.stack([sample[:-lag], sample[lag:]])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 4 / COUNT**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_seed(kind: str) -> None:
    state = torch.get_rng_state()
    first, again, other = draw(kind, 5, 1000), draw(kind, 5, 1000), draw(kind, 6, 1000)
    assert torch.equal(first, again)
    assert (first == other).float().mean() < 0.01
    assert torch.equal(torch.get_rng_state(), state), "the global generator must not move"
    assert first.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_small_and_odd_counts(count: int) -> None:
    assert uniform_noise(count, 0).shape == (count,)
    assert gumbel_noise((count, 3), 0).shape == (count, 3)


def test_finite_everywhere() -> None:
    uniform = uniform_noise(2_000_000, 1)
    assert uniform.min() > 0 and uniform.max() < 1
    assert gumbel_noise((2_000_000,), 1).isfinite().all() and logistic_noise((2_000_000,), 1).isfinite().all()


def test_equal_logits_choose_every_pattern_equally_often() -> None:
    """At any temperature the likeliest of the six is uniform: what Gumbel-max promises."""
    groups = 30_000
    probabilities = sample_patterns(torch.zeros(6, groups), Sampling(100.0, 0.05), gumbel_noise((6, groups), 11))
    assert stats.chisquare(probabilities.argmax(0).bincount(minlength=6).numpy()).pvalue > 1e-3


def test_logits_choose_patterns_as_their_softmax_says() -> None:
    groups = 30_000
    logits = torch.tensor([0.0, 0.5, 1.0, -1.0, 0.2, -0.4])
    scaled = logits[:, None].expand(6, groups) / 10
    probabilities = sample_patterns(scaled, Sampling(10.0, 1.0), gumbel_noise((6, groups), 2))
    expected = logits.double().softmax(0).numpy() * groups
    assert stats.chisquare(probabilities.argmax(0).bincount(minlength=6).numpy(), expected).pvalue > 1e-3


def test_tiles_are_dense_as_often_as_the_sigmoid_says() -> None:
    count = 40_000
    shares = sample_tiles(torch.full((count,), 0.04), Sampling(25.0, 0.05), logistic_noise((count,), 4))
    dense = int((shares > 0.5).sum())
    expected = torch.tensor(0.04 * 25).double().sigmoid().item()
    assert stats.binomtest(dense, count, expected).pvalue > 1e-3


def test_tile_noise_is_not_the_pattern_noise() -> None:
    """One seed a layer and pass; the tiles' draw must not repeat the patterns'."""
    tiles = 2_000
    mask = LearnableMask(torch.Size((4 * tiles, 4)), torch.zeros(6, 4 * tiles), None, torch.zeros(tiles, 1), 4)
    mask.set_step(Sampling(1.0, 1.0), Sampling(1.0, 1.0), 123)
    noise = mask.shares.detach().logit().flatten()
    assert stats.kstest(noise.double().numpy(), "logistic").pvalue > 1e-3
    for pattern_noise in (gumbel_noise((6, 4 * tiles), 123).flatten()[:tiles], logistic_noise((tiles,), 123)):
        assert abs(stats.spearmanr(noise.numpy(), pattern_noise.numpy()).statistic) < 0.1
