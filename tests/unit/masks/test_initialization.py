"""Initial logits: noise of the right size, and the prior's bonus where it belongs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.masks.initialization import initial_pattern_logits, initial_tile_logits
from patch.masks.nm import NM, nm_mask

SIX = [(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
def test_overlap_bonus_of_every_pattern(rows: int, groups: int, seed: int) -> None:
    shape = torch.Size((rows, 4 * groups))
    prior = nm_mask(torch.randn(shape, generator=generator(seed)), NM(2, 4))
    noise = initial_pattern_logits(shape, 0.01, None, 3.0, generator(seed))
    logits = initial_pattern_logits(shape, 0.01, prior, 3.0, generator(seed))
    assert logits.dtype == torch.float32 and logits.shape == (6, rows * groups)
    kept = prior.int().reshape(-1, 4).tolist()
    for group in range(rows * groups):
        for k, pattern in enumerate(SIX):
            overlap = sum(a * b for a, b in zip(pattern, kept[group], strict=True))
            bonus = (logits - noise)[k, group].item()
            assert bonus == pytest.approx((overlap - 1) * 0.01 * 3, abs=1e-7)


def test_noise_of_the_pattern_logits() -> None:
    logits = initial_pattern_logits(torch.Size((100, 400)), 0.01, None, 3.0, generator())
    assert logits.std().item() == pytest.approx(0.01, rel=0.02) and abs(logits.mean().item()) < 2e-4
    assert torch.equal(logits, initial_pattern_logits(torch.Size((100, 400)), 0.01, None, 3.0, generator()))
    assert not torch.equal(logits, initial_pattern_logits(torch.Size((100, 400)), 0.01, None, 3.0, generator(1)))


def test_a_strong_prior_starts_at_its_mask() -> None:
    shape = torch.Size((8, 16))
    prior = nm_mask(torch.randn(shape, generator=generator(1)), NM(2, 4))
    best = initial_pattern_logits(shape, 0.01, prior, 100.0, generator(2)).argmax(0)
    assert torch.equal(torch.tensor(SIX)[best].bool().reshape(shape), prior)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([4, 8]), st.floats(0, 0.5), st.integers(0, 100))
def test_tiles_that_keep_most_start_dense(rows: int, columns: int, tile: int, sparsity: float, seed: int) -> None:
    shape = torch.Size((rows * tile, columns * tile))
    prior = torch.rand(shape, generator=generator(seed)) < 0.6
    noise = initial_tile_logits(shape, tile, sparsity, 0.014, None, 3.0, generator(seed))
    logits = initial_tile_logits(shape, tile, sparsity, 0.014, prior, 3.0, generator(seed))
    assert logits.dtype == torch.float32 and logits.shape == (rows, columns) and logits.isfinite().all()
    raised = (logits - noise) > 0
    torch.testing.assert_close((logits - noise).abs(), torch.full_like(noise, 3 * 0.014), rtol=0, atol=1e-7)
    # 2 rho - 1 = 1 - 2 s of the tiles are dense.
    assert int(raised.sum()) == round((2 * (1 - sparsity) - 1) * rows * columns)
    kept = [
        [int(prior[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile].sum()) for j in range(columns)]
        for i in range(rows)
    ]
    kept = torch.tensor(kept)
    if raised.any() and not raised.all():
        assert kept[raised].min() >= kept[~raised].max()


@pytest.mark.parametrize(("sparsity", "sign"), [(0.5, -1), (0.3, -1), (0.25, -1), (0.2, 1), (0.0, 1)])
def test_a_layer_of_one_tile(sparsity: float, sign: int) -> None:
    logits = initial_tile_logits(torch.Size((8, 8)), 8, sparsity, 0.014, torch.ones(8, 8).bool(), 100.0, generator())
    assert logits.shape == (1, 1) and logits.isfinite().all()
    assert logits.sign().item() == sign


@pytest.mark.parametrize(("sparsity", "dense"), [(0.5, 0), (0.0, 12), (0.25, 6), (0.45, 1)])
def test_ends_of_the_range(sparsity: float, dense: int) -> None:
    prior = torch.rand(12, 16, generator=generator()) < 0.5
    logits = initial_tile_logits(torch.Size((12, 16)), 4, sparsity, 0.014, prior, 1000.0, generator())
    assert int((logits > 0).sum()) == dense


def test_scores_rank_as_well_as_masks() -> None:
    scores = torch.zeros(8, 8)
    scores[4:, :4] = 0.25
    logits = initial_tile_logits(torch.Size((8, 8)), 4, 0.375, 0.014, scores, 1000.0, generator())
    assert (logits > 0).tolist() == [[False, False], [True, False]]
