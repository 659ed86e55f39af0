"""Tests of whole learning runs: loss, gradients, results and files."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from patch.learning.model_masks import target_units
from patch.masks import learnable
from patch.masks.nm import NM
from patch.masks.noise import TILES, gumbel_noise, logistic_noise, noise_keys, places
from patch.models.loading import is_transposed, prunable_linears, weight_matrix
from patch.pruning.magnitude import magnitude

# The package exports a function of the same name; the tests patch the module.
learn_module = importlib.import_module("patch.learning.learn")
SIX = torch.tensor([(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)])


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Record parameters and gradients at every optimizer step."""
    steps: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    class Recorder(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            steps.append([(p.detach().clone(), p.grad.clone()) for p in parameters])
            super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    return steps


@pytest.mark.parametrize("weight_reg_decay", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_first_loss_and_gradient_against_float64(
    family: str,
    weight_reg_decay: bool,
    recorded: list,
    run_learning: Callable,
    tiny_model: Callable,
    sequences: Callable,
) -> None:
    """Compare with a step in float64 by autograd: masks from the plain formula, loss from the model's own logits."""
    rows = learn_module.batch_indices(0, 4, 10, 0)
    options = {"sparsity_reg": 3.0, "weight_reg": 2.0, "weight_reg_decay": weight_reg_decay, "micro_batch_size": 4}
    _, curve = run_learning(model=tiny_model(family), steps=2, **options)
    model = tiny_model(family).double()
    linears = prunable_linears(model)
    leaves = [value.double().requires_grad_() for value, _ in recorded[0]]
    kept = total = dense = size = 0
    replaced = {}
    pairs = zip(linears.items(), leaves[::2], leaves[1::2], strict=True)
    for layer, ((name, linear), pattern, tiles) in enumerate(pairs):
        weight = weight_matrix(linear)
        gumbel = gumbel_noise(places(pattern.numel()), noise_keys(0, 0, 0, layer)).double().view_as(pattern)
        logistic = logistic_noise(places(tiles.numel()), noise_keys(0, 0, 0, layer, TILES)).double().view_as(tiles)
        soft = (torch.softmax((100.0 * pattern + gumbel) / 4.0, 0).T @ SIX.double()).reshape(weight.shape)
        density = torch.sigmoid((25.0 * tiles + logistic) / 2.0)
        density = torch.kron(density, torch.ones(4, 4, dtype=torch.float64))
        mask = density + (1 - density) * soft
        replaced[f"{name}.weight"] = (mask * weight).T if is_transposed(linear) else mask * weight
        kept = kept + (mask * weight).square().sum()
        total += weight.square().sum()
        dense = dense + mask.sum()
        size += mask.numel()
    tokens = torch.as_tensor(sequences(10)[rows].astype("int64"))
    logits = torch.func.functional_call(model, replaced, (tokens,), {"use_cache": False}).logits
    entropy = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
    loss = entropy + 3.0 * (dense / size - 0.6).abs() - 2.0 * kept / total
    loss.backward()
    assert curve[0]["cross_entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert curve[0]["density"] == pytest.approx((dense / size).item(), rel=1e-6)
    assert curve[0]["kept_norm"] == pytest.approx((kept / total).item(), rel=1e-5)
    assert curve[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for leaf, (_, gradient) in zip(leaves, recorded[0], strict=True):
        torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-3, atol=1e-4 * float(leaf.grad.abs().max()))


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
def test_accumulation_changes_nothing(
    method: str, recorded: list, run_learning: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 4 x 1, 2 x 2 and 1 x 4 sequences with the same noise give the same loss, gradients and terms."""

    def same_for_all(seed: int, step: int, micro: int, *rest: int) -> tuple[int, int]:
        return noise_keys(seed, step, 0, *rest)

    monkeypatch.setattr(learnable, "noise_keys", same_for_all)
    results = []
    for micro in (4, 2, 1):
        recorded.clear()
        _, curve = run_learning(method, folder=f"micro{micro}", micro_batch_size=micro, steps=2, weight_reg=2.0)
        results.append((curve[0], [gradient for _, gradient in recorded[0]]))
    (curve, gradients), *others = results
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    for other_curve, other_gradients in others:
        for key in ("loss", "cross_entropy", "density", "kept_norm"):
            assert other_curve[key] == pytest.approx(curve[key], rel=1e-5)
        for one, other in zip(gradients, other_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_micro_batches_have_noise_of_their_own(run_learning: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def spy(*counters: int) -> tuple[int, int]:
        seen.append(counters)
        return noise_keys(*counters)

    monkeypatch.setattr(learnable, "noise_keys", spy)
    run_learning(steps=3, micro_batch_size=1)
    # Gradients of the patterns and of the tiles.
    assert len(seen) == len(set(seen)) == 3 * 4 * 14 * 2
    assert len({noise_keys(*counters) for counters in seen}) == len(seen)


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("weight_reg_decay", [False, True])
def test_curve_adds_up(method: str, hard: bool, weight_reg_decay: bool, run_learning: Callable) -> None:
    masks, curve = run_learning(method, hard=hard, weight_reg_decay=weight_reg_decay, weight_reg=2.0, sparsity_reg=5.0)
    masks.verify()
    assert [line["step"] for line in curve] == [0, 1, 2, 3, 4]
    for line in curve:
        decay = 1 - line["step"] / 5 if weight_reg_decay else 1
        penalty = 0 if method == "maskllm" else 5 * abs(line["density"] - 0.6)
        expected = line["cross_entropy"] - 2 * decay * line["kept_norm"]
        if method == "maskllm":
            assert line["loss"] == pytest.approx(expected, rel=1e-5)
            assert line["density"] == 0.5 and line["target_density"] is None
        else:
            # The penalty is a mean over micro-batches, and |mean| <= mean of ||.
            assert line["loss"] >= expected + penalty - 1e-5
            assert line["target_density"] == pytest.approx(0.6)
        assert 0 < line["kept_norm"] <= 1 + 1e-6
    if method != "patch-tile":
        assert curve[0]["pattern_temperature"] == 4.0 and curve[-1]["pattern_temperature"] == pytest.approx(0.05)
    if method != "maskllm":
        assert curve[0]["tile_temperature"] == 2.0 and curve[-1]["tile_temperature"] == pytest.approx(0.05)


def test_maskllm_is_two_of_four_everywhere(run_learning: Callable) -> None:
    masks, _ = run_learning("maskllm")
    assert masks.pattern == "2:4" and masks.sparsity == 0.5
    assert all((mask.reshape(-1, 4).sum(1) == 2).all() for mask in masks.masks.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.45, 0.5])
def test_patch_tile_keeps_its_frozen_mask(
    sparsity: float, run_learning: Callable, tiny_model: Callable, priors: Callable
) -> None:
    masks, _ = run_learning("patch-tile", sparsity)
    frozen = priors(tiny_model(), sparsity)["frozen"]
    for name, mask in masks.masks.items():
        assert (mask | frozen[name] == mask).all()
        dense = torch.kron(masks.tiles[name].int(), torch.ones(4, 4).int()).bool()
        assert torch.equal(mask, frozen[name] | dense)
    assert masks.sparsity == pytest.approx(sparsity, abs=4 / sum(mask.numel() for mask in masks.masks.values()))


@pytest.mark.parametrize("target", ["global", "block", "layer"])
def test_patch_joint_meets_its_target(target: str, run_learning: Callable, tiny_model: Callable) -> None:
    masks, _ = run_learning("patch-joint", 0.35, target=target)
    masks.verify()
    for unit in target_units(tiny_model(), target):
        kept, size = (
            sum(int(part) for part in parts)
            for parts in zip(*((masks.masks[name].sum(), masks.masks[name].numel()) for name in unit), strict=True)
        )
        assert abs(1 - kept / size - 0.35) * size <= 4, "half of a tile's zeros"


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen3"])
def test_other_families(family: str, method: str, run_learning: Callable, tiny_model: Callable, recorded: list) -> None:
    """Transposed weights, biases, learned positions: masks are of the `[out, in]` matrix, and gradients reach all."""
    masks, curve = run_learning(method, 0.35, model=tiny_model(family), steps=2)
    masks.verify()
    shapes = {name: weight_matrix(linear).shape for name, linear in prunable_linears(tiny_model(family)).items()}
    assert {name: mask.shape for name, mask in masks.masks.items()} == shapes
    assert all(line["loss"] is not None for line in curve)
    assert all(bool(gradient.abs().sum() > 0) for _, gradient in recorded[0])


def test_a_transposed_weight_is_masked_like_a_plain_one(tiny_model: Callable, run_learning: Callable) -> None:
    """GPT-2 with its layers replaced by ordinary ones, of the same weights, learns the same masks."""
    masks, curve = run_learning(model=tiny_model("gpt2"), folder="transposed")
    model = tiny_model("gpt2")
    for name, linear in prunable_linears(model).items():
        parent, _, child = name.rpartition(".")
        plain = nn.Linear(*reversed(weight_matrix(linear).shape)).requires_grad_(False)
        plain.weight.copy_(weight_matrix(linear))
        plain.bias.copy_(linear.bias)
        setattr(model.get_submodule(parent), child, plain)
    expected, expected_curve = run_learning(model=model, folder="plain")
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in masks.masks.items())
    assert [line["loss"] for line in curve] == pytest.approx([line["loss"] for line in expected_curve], rel=1e-5)


@pytest.mark.parametrize("method", ["patch-joint", "patch-tile"])
@pytest.mark.parametrize("tile", [24, 2**20])
def test_tiles_up_to_the_whole_matrix(tile: int, method: str, run_learning: Callable, tiny_model: Callable) -> None:
    """Layers of one tile stay dense as a whole, as many as bring the model nearest to its target."""
    masks, curve = run_learning(method, 0.35, tile=tile, model=tiny_model("llama"))
    masks.verify()
    shapes = {name: linear.weight.shape for name, linear in prunable_linears(tiny_model("llama")).items()}
    for name, (rows, columns) in shapes.items():
        assert masks.tiles[name].shape == (-(-rows // tile), -(-columns // tile))
    if tile > 48:
        assert {mask.float().mean().item() for mask in masks.masks.values()} == {0.5, 1.0}
    largest = max(min(rows, tile) * min(columns, tile) for rows, columns in shapes.values())
    total = sum(rows * columns for rows, columns in shapes.values())
    assert masks.sparsity == pytest.approx(0.35, abs=0.25 * largest / total + 1e-9)
    assert 0.5 <= curve[0]["density"] <= 1


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_model_comes_back_unchanged(
    family: str, checkpointing: bool, run_learning: Callable, tiny_model: Callable
) -> None:
    model = tiny_model(family)
    parameters = dict(model.named_parameters())
    run_learning(model=model, steps=2, gradient_checkpointing=checkpointing)
    assert not any(module.training or getattr(module, "gradient_checkpointing", False) for module in model.modules())
    after, fresh = dict(model.named_parameters()), tiny_model(family).state_dict()
    assert set(after) == set(parameters)
    for name, parameter in after.items():
        assert parameter is parameters[name] and torch.equal(parameter, fresh[name])
        assert not parameter.requires_grad and parameter.grad is None
    assert [type(m) for m in prunable_linears(model).values()] == [
        type(m) for m in prunable_linears(tiny_model(family)).values()
    ]


def test_gradient_checkpointing_changes_nothing(recorded: list, run_learning: Callable) -> None:
    _, plain = run_learning(folder="plain")
    gradients = [gradient for _, gradient in recorded[0]]
    recorded.clear()
    _, recomputed = run_learning(folder="recomputed", gradient_checkpointing=True)
    for one, (_, other) in zip(gradients, recorded[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
    assert [line["loss"] for line in recomputed] == pytest.approx([line["loss"] for line in plain], rel=1e-3)


def test_logits_and_optimizer_are_float32_on_a_bfloat16_model(
    recorded: list, run_learning: Callable, tiny_model: Callable
) -> None:
    masks, _ = run_learning(model=tiny_model().bfloat16(), steps=2)
    masks.verify()
    assert all(value.dtype == gradient.dtype == torch.float32 for value, gradient in recorded[0])


def test_runs_repeat_and_seeds_differ(run_learning: Callable, same_masks: Callable) -> None:
    masks, curve = run_learning(folder="a")
    again, same = run_learning(folder="b")
    _, other = run_learning(folder="c", seed=1)
    assert curve == same and curve != other
    same_masks(masks, again)


def test_the_global_generator_plays_no_part(run_learning: Callable) -> None:
    torch.manual_seed(1)
    _, one = run_learning(folder="a")
    torch.manual_seed(2)
    _, other = run_learning(folder="b")
    assert one == other


def test_sparsity_is_learned(run_learning: Callable) -> None:
    """The penalty alone brings the thresholded mask from density 0.75 to the target."""
    options = {"steps": 40, "lr": 0.02, "tile_prior": "none", "weight_reg": 0.0, "sparsity_reg": 20.0}
    for sparsity in (0.45, 0.1):
        masks, curve = run_learning(sparsity=sparsity, folder=f"s{sparsity}", finalize="threshold", **options)
        assert abs(curve[0]["density"] - 0.75) < 0.05
        assert masks.sparsity == pytest.approx(sparsity, abs=0.05)


def test_the_kept_norm_regularizer_leads_to_the_largest_weights(run_learning: Callable, tiny_model: Callable) -> None:
    """The kept-norm regularizer alone leads to the patterns of the largest squared weights."""
    options = {"steps": 60, "lr": 0.02, "pattern_prior_strength": 0.0, "weight_reg": 1000.0}
    masks, curve = run_learning("maskllm", **options)
    agree = count = 0
    for name, linear in prunable_linears(tiny_model()).items():
        same = (masks.masks[name] == magnitude(linear.weight, NM(2, 4))).reshape(-1, 4).all(1)
        agree, count = agree + int(same.sum()), count + len(same)
    assert agree / count > 0.8, "chance is one in six"
    assert curve[-1]["kept_norm"] > curve[0]["kept_norm"] + 0.1


def test_files_are_left_tidy(run_learning: Callable, tmp_path: Path) -> None:
    run_learning(folder="run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.jsonl"]
    # The log, and the final state, which is kept until the caller has saved the masks.
    assert sorted(path.suffix for path in (tmp_path / "run").iterdir()) == [".jsonl", ".pt"]


@pytest.mark.parametrize("hard", [False, True])
def test_hard_counts_whole_tiles(hard: bool, run_learning: Callable) -> None:
    masks, curve = run_learning(hard=hard, micro_batch_size=4)
    tiles = sum(part.numel() for part in masks.tiles.values())
    dense = [(2 * line["density"] - 1) * tiles for line in curve[:2]]
    whole = [abs(count - round(count)) < 1e-2 for count in dense]
    assert all(whole) == hard
