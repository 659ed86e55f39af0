"""Tests of the noise: its distribution at every position, and its dependence on the counters."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from scipy import stats
from torch import Tensor

from patch.masks.kernels import Layer, compiled, eager
from patch.masks.learnable import LearnableMask, Sampling, begin_pass, sample_tiles
from patch.masks.noise import TILES, gumbel_noise, logistic_noise, mixed, noise_keys, places, uniform_noise

COUNT = 60_001
SIX = torch.tensor([(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)])
KINDS = {
    "uniform": (uniform_noise, "uniform"),
    "gumbel": (gumbel_noise, "gumbel_r"),
    "logistic": (logistic_noise, "logistic"),
}


def draw(kind: str, *counters: int, count: int = COUNT, first: int = 0) -> Tensor:
    return KINDS[kind][0](places(count, first), noise_keys(*counters))


def correlation(one: Tensor, other: Tensor) -> float:
    """Return the correlation in standard deviations of that of independent numbers."""
    return abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])) * one.numel() ** 0.5


def hashed(index: int, keys: tuple[int, int]) -> int:
    """Compute the hash on Python's integers."""
    word = 0xFFFFFFFF
    bits = (index * 0x9E3779B9 + keys[0]) & word
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & word
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & word
    bits = ((bits ^ (bits >> 16)) + keys[1]) & word
    return ((bits ^ (bits >> 16)) * 0x21F0AAAD) & word


@pytest.mark.parametrize("keys", [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0x80000000, 1), noise_keys(7), noise_keys(1, 2)])
def test_bits_are_those_of_the_hash(keys: tuple[int, int]) -> None:
    edges = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    indices = edges + [random.Random(0).getrandbits(32) for _ in range(2000)]
    found = mixed(torch.tensor(indices).to(torch.int32), keys)
    assert found.dtype == torch.int32
    expected = [hashed(index, keys) for index in indices]
    assert [bits & 0xFFFFFFFF for bits in found.tolist()] == expected
    uniform = uniform_noise(torch.tensor(indices).to(torch.int32), keys)
    assert uniform.tolist() == [((bits >> 9) + 0.5) / 2**23 for bits in expected]


def test_places_count_on_modulo_two_to_the_32() -> None:
    assert places(3).tolist() == [0, 1, 2] and places(0).tolist() == []
    assert places(4, 2**31 - 2).tolist() == [2**31 - 2, 2**31 - 1, -(2**31), -(2**31) + 1]
    assert places(3, 2**32 - 1).tolist() == [-1, 0, 1]
    assert places(2).dtype == torch.int32


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_layer_is_that_part(kind: str) -> None:
    whole = draw(kind, 1, 2, count=1000)
    assert torch.equal(draw(kind, 1, 2, count=37, first=501), whole[501:538])
    assert torch.equal(KINDS[kind][0](places(1000).view(10, 100), noise_keys(1, 2)).flatten(), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [slice(None), slice(0, None, 2), slice(1, None, 2), slice(0, None, 6), slice(0, 2000)])
def test_distribution(kind: str, part: slice) -> None:
    for counters in ((7,), (0, 0, 0, 0), (1, 299, 7, 200)):
        sample = draw(kind, *counters)[part].double().numpy()
        assert stats.kstest(sample, KINDS[kind][1]).pvalue > 1e-3


def test_one_place_over_the_steps_has_the_distribution() -> None:
    """The distribution holds for one group over the steps, and for one place over layers and micro-batches."""
    for counters in (itertools.product([0], range(3000), [0], [0]), itertools.product([0], [0], range(30), range(100))):
        sample = torch.cat([uniform_noise(places(3, 12345), noise_keys(*key)) for key in counters]).view(-1, 3)
        for column in sample.T:
            assert stats.kstest(column.double().numpy(), "uniform").pvalue > 1e-3
            assert correlation(column[:-1], column[1:]) < 4
        assert correlation(sample[:, 0], sample[:, 1]) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_independent(kind: str) -> None:
    sample = draw(kind, 3)
    for lag in (1, 2, 3, 4, 6, 16, 64, 1024):
        assert correlation(sample[:-lag], sample[lag:]) < 4


@pytest.mark.parametrize("plane", [4096, 6144, 10007])
def test_the_six_of_a_group_are_independent(plane: int) -> None:
    six = draw("gumbel", 0, 1, 2, 3, count=6 * plane).view(6, plane)
    for one, other in itertools.combinations(six, 2):
        assert correlation(one, other) < 4
    # Each of the six is equally likely to be the largest, and so is each order of three of them.
    assert stats.chisquare(six.argmax(0).bincount(minlength=6).numpy()).pvalue > 1e-3
    for three in itertools.combinations(six, 3):
        order = torch.stack(three).argsort(0)
        assert stats.chisquare((order[0] * 3 + order[1]).bincount(minlength=9)[[1, 2, 3, 5, 6, 7]]).pvalue > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", ["seed", "step", "micro-batch", "layer", "tiles"])
def test_what_differs_in_one_counter_is_uncorrelated(kind: str, changed: str) -> None:
    base = (0, 5, 1, 2)
    if changed == "tiles":
        others = [(*base, TILES)]
    else:
        place = ["seed", "step", "micro-batch", "layer"].index(changed)
        others = [tuple(value + by * (i == place) for i, value in enumerate(base)) for by in (1, 2, 16, 256, 65536)]
    sample = draw(kind, *base)
    for other in others:
        noise = draw(kind, *other)
        assert (noise == sample).float().mean() < 0.001
        assert correlation(sample, noise) < 4
        # Neither is a shifted copy of the other.
        assert correlation(sample[1:], noise[:-1]) < 4 and correlation(sample[:-1], noise[1:]) < 4
        assert abs(stats.spearmanr(sample.numpy(), noise.numpy()).statistic) * COUNT**0.5 < 4


def test_keys_are_distinct() -> None:
    counters = list(itertools.product(range(3), range(30), range(4), range(10)))
    keys = [noise_keys(*key) for key in counters] + [noise_keys(*key, TILES) for key in counters]
    assert len(set(keys)) == len(keys) == 2 * 3600
    assert all(0 <= value < 2**32 for pair in keys for value in pair)
    # Chance collisions among n draws of 32 bits: n^2 / 2^33.
    for half in zip(*keys, strict=True):
        assert len(set(half)) >= len(half) - 2
    assert noise_keys(1, 2, 3, 4) == noise_keys(1, 2, 3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_counters(kind: str) -> None:
    state = torch.get_rng_state()
    first, again, other = draw(kind, 5, count=1000), draw(kind, 5, count=1000), draw(kind, 6, count=1000)
    assert torch.equal(first, again)
    assert (first == other).float().mean() < 0.01
    assert torch.equal(torch.get_rng_state(), state), "the global generator must not move"
    assert first.dtype == torch.float32


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7])
def test_small_and_odd_counts(count: int) -> None:
    index = places(count)
    for function, _ in KINDS.values():
        assert function(index, noise_keys(0)).shape == (count,)
        assert function(index.view(count, 1), noise_keys(0)).shape == (count, 1)
    assert torch.equal(index, places(count)), "the indices are not changed"


def test_finite_everywhere() -> None:
    uniform = draw("uniform", 1, count=2_000_000)
    assert uniform.min() > 0 and uniform.max() < 1
    for kind in ("gumbel", "logistic"):
        assert draw(kind, 1, count=2_000_000).isfinite().all()


@pytest.fixture(params=["compiled", "eager"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    module = {"compiled": compiled, "eager": eager}[request.param]
    if module is compiled:
        try:
            compiled.load()
        except compiled.NoCompiler as error:
            pytest.skip(str(error))
    return module


def chosen(kernel: ModuleType, logits: Tensor, sampling: Sampling, *counters: int) -> Tensor:
    """Return the frequency of each of the six patterns as the likeliest in a kernel."""
    masked = masked_ones(kernel, logits, 1, replace(sampling, hard=True), noise_keys(*counters))
    is_pattern = (masked[:, None] == SIX).all(2)
    assert (is_pattern.sum(1) == 1).all()
    return is_pattern.sum(0)


def masked_ones(kernel: ModuleType, logits: Tensor, groups: int, sampling: Sampling, keys: tuple[int, int]) -> Tensor:
    """Return a kernel's masks of rows of ``groups`` groups, a group a row: `[rows * groups, 4]`."""
    rows = logits.shape[1] // groups
    layer = Layer(torch.ones(rows, 4 * groups), logits, None, None, (1, 4), sampling, keys)
    masked = torch.empty(rows, 4 * groups)
    kernel.forward(layer, 0, masked)
    return masked.view(-1, 4)


def test_equal_logits_choose_every_pattern_equally_often(kernel: ModuleType) -> None:
    """The likeliest of the six patterns is uniform at any temperature, by the Gumbel-max trick."""
    counts = chosen(kernel, torch.zeros(6, 30_000), Sampling(100.0, 0.05), 11)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_patterns_follow_the_softmax_of_the_logits(kernel: ModuleType) -> None:
    groups = 30_000
    logits = torch.tensor([0.0, 0.5, 1.0, -1.0, 0.2, -0.4])
    scaled = (logits[:, None] / 10).repeat(1, groups)
    expected = logits.double().softmax(0).numpy() * groups
    counts = chosen(kernel, scaled, Sampling(10.0, 1.0), 2)
    assert stats.chisquare(counts.numpy(), expected).pvalue > 1e-3


@pytest.mark.parametrize("groups", [1, 5, 48])
def test_kernels_draw_the_noise_of_this_module(groups: int, kernel: ModuleType) -> None:
    """Ratios of probabilities without logits, at temperature one, are those of exponential variables."""
    count, keys = 40 * groups, noise_keys(4, 5)
    masked = masked_ones(kernel, torch.zeros(6, count), groups, Sampling(1.0, 1.0), keys)
    rates = -1 / uniform_noise(places(6 * count), keys).double().view(6, count).log()
    torch.testing.assert_close(masked.double(), (rates / rates.sum(0)).T @ SIX.double(), rtol=5e-6, atol=1e-30)


def keys_of_first(bits: int) -> tuple[int, int]:
    """Return keys for which the first place has these bits, by the inverse hash."""
    bits = bits * pow(0x21F0AAAD, -1, 2**32) & 0xFFFFFFFF
    bits ^= bits >> 16
    # Without a first key the first half of the hash leaves a zero.
    return 0, bits


@pytest.mark.parametrize("bits", [0, 0x200, 0x80000000, 0xFFFFFC00, 0xFFFFFFFF])
def test_the_ends_of_the_distribution(bits: int, kernel: ModuleType) -> None:
    keys = keys_of_first(bits)
    assert mixed(places(1), keys).item() & 0xFFFFFFFF == bits
    uniform = torch.tensor((bits >> 9) + 0.5).double() / 2**23
    torch.testing.assert_close(gumbel_noise(places(1), keys)[0].double(), -(-uniform.log()).log(), rtol=1e-6, atol=0)
    logistic = uniform.log() - (-uniform).log1p()
    torch.testing.assert_close(logistic_noise(places(1), keys)[0].double(), logistic, rtol=1e-6, atol=1e-7)
    masked = masked_ones(kernel, torch.zeros(6, 1), 1, Sampling(1.0, 1.0), keys)
    rates = torch.tensor([-1 / math.log(((hashed(k, keys) >> 9) + 0.5) / 2**23) for k in range(6)]).double()
    torch.testing.assert_close(masked[0].double(), rates / rates.sum() @ SIX.double(), rtol=3e-6, atol=0)


def test_dense_tiles_follow_the_sigmoid_of_the_logits() -> None:
    count = 40_000
    tile_density = sample_tiles(torch.full((count,), 0.04), Sampling(25.0, 0.05), draw("logistic", 4, count=count))
    dense = int((tile_density > 0.5).sum())
    expected = torch.tensor(0.04 * 25).double().sigmoid().item()
    assert stats.binomtest(dense, count, expected).pvalue > 1e-3


def test_tile_noise_is_not_the_pattern_noise() -> None:
    """Tiles and patterns with the same counters draw different noise."""
    tiles = 2_000
    mask = LearnableMask(torch.Size((4 * tiles, 4)), torch.zeros(6, 4 * tiles), None, torch.zeros(tiles, 1), 4)
    begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [(123,)])
    noise = mask.tile_density.detach().logit().flatten()
    assert stats.kstest(noise.double().numpy(), "logistic").pvalue > 1e-3
    for kind in KINDS:
        pattern_noise = draw(kind, 123, count=tiles)
        assert abs(stats.spearmanr(noise.numpy(), pattern_noise.numpy()).statistic) < 0.1
