"""Tests of the initial logits, the regularizers and the final masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.learning.model_masks import (
    attached,
    build_masks,
    density_penalty,
    finalize,
    initial_pattern_logits,
    initial_tile_logits,
    kept_norm_regularizer,
    target_units,
)
from patch.masks.learnable import LearnableMask, Sampling, begin_pass
from patch.masks.nm import NM, nm_mask
from patch.models.loading import prunable_linears, weight_matrix

SIX = [(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)]
SHAPES = {"a": (8, 12), "b": (4, 4), "c": (12, 8)}
UNITS = {"global": [["a", "b", "c"]], "block": [["a", "b"], ["c"]], "layer": [["a"], ["b"], ["c"]]}


def layers(seed: int = 0, tile: int | None = 4) -> dict[str, LearnableMask]:
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, (rows, columns) in SHAPES.items():
        patterns = torch.randn(6, rows * columns // 4, generator=generator)
        tiles = torch.randn(rows // 4, columns // 4, generator=generator) if tile else None
        masks[name] = LearnableMask(torch.Size((rows, columns)), patterns, None, tiles, tile)
    return masks


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.35, 0.45, 0.5])
@pytest.mark.parametrize("target", ["global", "block", "layer"])
def test_exact_keeps_the_largest(sparsity: float, target: str, learning_settings: Callable) -> None:
    masks = layers()
    final = finalize(masks, sparsity, learning_settings(target=target, finalize="exact"), UNITS[target])
    final.verify()
    for group in UNITS[target]:
        logits = torch.cat([masks[name].tile_logits.detach().flatten() for name in group])
        dense = torch.cat([final.tiles[name].flatten() for name in group])
        count = round((1 - 2 * sparsity) * len(logits))
        assert dense.sum() == count
        if 0 < count < len(logits):
            assert logits[dense].min() > logits[~dense].max()
        kept = sum(int(final.masks[name].sum()) for name in group)
        size = sum(final.masks[name].numel() for name in group)
        # To the tile: half of half a tile of sixteen weights.
        assert abs(1 - kept / size - sparsity) * size <= 4 + 1e-6
    if target == "global":
        assert final.pattern == "hybrid" and final.tile == 4


def test_threshold_keeps_what_is_positive(learning_settings: Callable) -> None:
    masks = layers()
    final = finalize(masks, 0.45, learning_settings(finalize="threshold"), UNITS["global"])
    for name, mask in masks.items():
        assert torch.equal(final.tiles[name], mask.tile_logits.detach() > 0)
    final.verify()


def test_sparse_tiles_hold_the_likeliest_patterns(learning_settings: Callable) -> None:
    masks = layers()
    final = finalize(masks, 0.35, learning_settings(), UNITS["global"])
    for name, mask in masks.items():
        dense = torch.kron(final.tiles[name].int(), torch.ones(4, 4).int()).bool()
        assert final.masks[name][dense].all()
        assert torch.equal(final.masks[name][~dense], mask.final_pattern()[~dense])


def test_without_tiles_everything_is_two_of_four(learning_settings: Callable) -> None:
    final = finalize(layers(tile=None), 0.5, learning_settings(), UNITS["global"])
    assert final.pattern == "2:4" and final.tiles == {} and final.sparsity == 0.5
    final.verify()


@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("target", [0.55, 0.95])
def test_penalties_of_units(target: float, units: list[list[str]]) -> None:
    masks = layers()
    for mask in masks.values():
        begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [(5,)])
    sizes = {name: rows * columns for name, (rows, columns) in SHAPES.items()}
    kept = {
        name: sizes[name] * (1 + mask.tile_density.detach().double().mean().item()) / 2 for name, mask in masks.items()
    }
    differences, weights = [], []
    for unit in units:
        size = sum(sizes[name] for name in unit)
        differences.append(abs(sum(kept[name] for name in unit) / size - target))
        weights.append(size / sum(sizes.values()))
    summed, reported = density_penalty(masks, target, units, "sum")
    assert reported.item() == pytest.approx(sum(kept.values()) / sum(sizes.values()), rel=1e-6)
    assert summed.item() == pytest.approx(sum(differences), rel=1e-5)
    mean = sum(weight * difference for weight, difference in zip(weights, differences, strict=True))
    assert density_penalty(masks, target, units, "mean")[0].item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_units_of_a_model(family: str, tiny_model: Callable) -> None:
    model = tiny_model(family)
    names = list(prunable_linears(model))
    assert target_units(model, "global") == [names]
    assert target_units(model, "layer") == [[name] for name in names]
    first, second = target_units(model, "block")
    assert first + second == names and len(first) == len(second)
    assert all(".0." in name for name in first) and all(".1." in name for name in second)


def test_penalty_pushes_towards_the_target() -> None:
    masks = layers()
    for mask in masks.values():
        begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [(5,)])
    density_penalty(masks, 0.99, UNITS["global"], "sum")[0].backward()
    assert all((mask.tile_logits.grad < 0).all() for mask in masks.values()), "too sparse: logits must rise"


@pytest.mark.parametrize("form", ["squared_ratio", "norm_ratio", "squared_sum", "norm_sum"])
def test_forms_of_the_kept_norm(form: str) -> None:
    masks, total, kept = layers(tile=None), [], []
    generator = torch.Generator().manual_seed(1)
    for name, mask in masks.items():
        begin_pass([mask], Sampling(1e6, 0.05, True), Sampling(1.0, 1.0), [(5,)])
        weight = torch.randn(SHAPES[name], generator=generator)
        mask.linear(torch.zeros(1, SHAPES[name][1]), weight, None)
        total.append(weight.double().square().sum().item())
        kept.append(weight.double()[mask.final_pattern()].square().sum().item())
    power = 0.5 if form.startswith("norm") else 1
    expected = sum(value**power for value in kept)
    if form.endswith("ratio"):
        expected /= sum(value**power for value in total)
    assert kept_norm_regularizer(masks, torch.tensor(total), form).item() == pytest.approx(expected, rel=1e-5)


def test_a_layer_of_zeros_has_no_gradient_of_its_norm() -> None:
    masks = layers(tile=None)
    for mask in masks.values():
        begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [(5,)])
    for name, mask in masks.items():
        weight = torch.zeros(SHAPES[name]) if name == "b" else torch.ones(SHAPES[name])
        mask.linear(torch.zeros(1, SHAPES[name][1]), weight, None)
    kept_norm_regularizer(masks, torch.tensor([96.0, 0.0, 96.0]), "norm_sum").backward()
    assert all(mask.pattern_logits.grad.isfinite().all() for mask in masks.values())
    assert not masks["b"].pattern_logits.grad.any() and masks["a"].pattern_logits.grad.any()


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_masks_are_attached_and_taken_off(family: str, tiny_model: Callable, learning_settings: Callable) -> None:
    model, tokens = tiny_model(family), torch.arange(12)[None]
    linears = prunable_linears(model)
    identities = {name: (type(linear), linear.weight, set(vars(linear))) for name, linear in linears.items()}
    masks = build_masks(model, "patch-joint", learning_settings(), 0.45, 4, 0)
    before = model(tokens).logits
    for mask in masks.values():
        begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [(0,)])
    with attached(model, masks):
        assert not torch.allclose(model(tokens).logits, before)
        assert set(prunable_linears(model)) == set(linears)
        assert all("forward" in vars(linear) for linear in linears.values())
    assert torch.equal(model(tokens).logits, before)
    with pytest.raises(RuntimeError), attached(model, masks):
        raise RuntimeError
    assert torch.equal(model(tokens).logits, before)
    for name, linear in prunable_linears(model).items():
        kind, weight, attributes = identities[name]
        assert type(linear) is kind and linear.weight is weight and not weight.requires_grad
        assert set(vars(linear)) == attributes and linear.forward.__func__ is kind.forward
        assert [n for n, _ in linear.named_parameters() if n != "bias"] == ["weight"]


@pytest.mark.parametrize("family", ["qwen2", "opt", "gpt2"])
def test_a_masked_model_is_that_of_masked_weights(
    family: str, tiny_model: Callable, learning_settings: Callable
) -> None:
    """Hard choices in float64 give the kept weights and zeros."""
    model, tokens = tiny_model(family), torch.arange(12)[None]
    masks = build_masks(model, "patch-joint", learning_settings(), 0.35, 4, 0)
    expected = tiny_model(family).double()
    # So decided that the noise plays no part.
    hard = Sampling(1e9, 1.0, True)
    for name, linear in prunable_linears(expected).items():
        begin_pass([masks[name]], hard, hard, [(0,)])
        dense = torch.kron(masks[name].tile_logits.detach() > 0, torch.ones(4, 4)).bool()
        weight_matrix(linear).mul_(masks[name].final_pattern() | dense)
    with attached(model, masks):
        found = model(tokens).logits
    torch.testing.assert_close(found.double(), expected(tokens).logits, rtol=1e-4, atol=1e-4)
    for name, linear in prunable_linears(expected).items():
        norm = weight_matrix(linear).square().sum()
        assert masks[name].kept_norm.item() == pytest.approx(norm.item(), rel=1e-5)


def test_initial_masks_use_their_priors(tiny_model: Callable, learning_settings: Callable) -> None:
    model = tiny_model()
    shapes = {name: linear.weight.shape for name, linear in prunable_linears(model).items()}
    prior = {name: nm_mask(torch.randn(shape), NM(2, 4)) for name, shape in shapes.items()}
    ranks = {name: torch.zeros(shape).bool() for name, shape in shapes.items()}
    for mask in ranks.values():
        mask[:4] = True
    strong = learning_settings(pattern_prior_strength=1000, tile_prior_strength=1000)
    joint = build_masks(model, "patch-joint", strong, 0.4, 4, 0, prior, ranks)
    for name, mask in joint.items():
        assert torch.equal(mask.final_pattern(), prior[name])
        tiles = mask.tile_logits.numel()
        assert int((mask.tile_logits > 0).sum()) == round(0.2 * tiles)
        assert (mask.tile_logits[0] > 0).any()
    tile = build_masks(model, "patch-tile", strong, 0.4, 4, 0, None, ranks, prior)
    assert all(
        mask.pattern_logits is None and torch.equal(mask.final_pattern(), prior[name]) for name, mask in tile.items()
    )
    plain = build_masks(model, "maskllm", learning_settings(), 0.5, None, 0)
    assert all(mask.tile_logits is None and mask.tile is None for mask in plain.values())


def test_random_tile_prior_ignores_masks_and_follows_the_seed(
    tiny_model: Callable, learning_settings: Callable
) -> None:
    model, settings = tiny_model(), learning_settings(tile_prior="random", tile_prior_strength=1000)

    def dense(seed: int) -> torch.Tensor:
        masks = build_masks(model, "patch-joint", settings, 0.25, 4, seed)
        return torch.cat([(mask.tile_logits > 0).flatten() for mask in masks.values()])

    assert torch.equal(dense(0), dense(0)) and not torch.equal(dense(0), dense(1))
    assert dense(0).float().mean().item() == pytest.approx(0.5, abs=0.01)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
def test_overlap_bonus_of_every_pattern(rows: int, groups: int, seed: int) -> None:
    shape = torch.Size((rows, 4 * groups))
    initial = nm_mask(torch.randn(shape, generator=generator(seed)), NM(2, 4))
    noise = initial_pattern_logits(shape, 0.01, None, 3.0, generator(seed))
    logits = initial_pattern_logits(shape, 0.01, initial, 3.0, generator(seed))
    assert logits.dtype == torch.float32 and logits.shape == (6, rows * groups)
    kept = initial.int().reshape(-1, 4).tolist()
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


def test_a_mask_replaces_the_noise() -> None:
    shape = torch.Size((8, 16))
    initial = nm_mask(torch.randn(shape, generator=generator(1)), NM(2, 4))
    logits = initial_pattern_logits(shape, 0.014, initial, 3.0, generator(2), "replace")
    overlap = torch.tensor(SIX).double() @ initial.double().view(-1, 4).T
    torch.testing.assert_close(logits.double(), (overlap - 1) * 0.042, rtol=1e-6, atol=0)
    noise = initial_pattern_logits(shape, 0.014, None, 3.0, generator(2))
    for nothing, strength in ((None, 3.0), (initial, 0.0)):
        kept = initial_pattern_logits(shape, 0.014, nothing, strength, generator(2), "replace")
        assert torch.equal(kept, noise), "without an initialization the noise stays"


def test_a_strong_prior_starts_at_its_mask() -> None:
    shape = torch.Size((8, 16))
    initial = nm_mask(torch.randn(shape, generator=generator(1)), NM(2, 4))
    best = initial_pattern_logits(shape, 0.01, initial, 100.0, generator(2)).argmax(0)
    assert torch.equal(torch.tensor(SIX)[best].bool().reshape(shape), initial)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([4, 8]), st.floats(0, 0.5), st.integers(0, 100))
def test_tiles_that_keep_most_start_dense(rows: int, columns: int, tile: int, sparsity: float, seed: int) -> None:
    shape = torch.Size((rows * tile, columns * tile))
    initial = torch.rand(shape, generator=generator(seed)) < 0.6
    noise = initial_tile_logits(shape, tile, sparsity, 0.014, None, 3.0, generator(seed))
    logits = initial_tile_logits(shape, tile, sparsity, 0.014, initial, 3.0, generator(seed))
    assert logits.dtype == torch.float32 and logits.shape == (rows, columns) and logits.isfinite().all()
    raised = (logits - noise) > 0
    torch.testing.assert_close((logits - noise).abs(), torch.full_like(noise, 3 * 0.014), rtol=0, atol=1e-7)
    # 2 rho - 1 = 1 - 2 s of the tiles are dense.
    assert int(raised.sum()) == round((2 * (1 - sparsity) - 1) * rows * columns)
    kept = [
        [int(initial[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile].sum()) for j in range(columns)]
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
    initial = torch.rand(12, 16, generator=generator()) < 0.5
    logits = initial_tile_logits(torch.Size((12, 16)), 4, sparsity, 0.014, initial, 1000.0, generator())
    assert int((logits > 0).sum()) == dense


def test_scores_rank_as_well_as_masks() -> None:
    scores = torch.zeros(8, 8)
    scores[4:, :4] = 0.25
    logits = initial_tile_logits(torch.Size((8, 8)), 4, 0.375, 0.014, scores, 1000.0, generator())
    assert (logits > 0).tolist() == [[False, False], [True, False]]
