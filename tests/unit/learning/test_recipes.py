"""Comparison of both recipes with slow versions in float64, written from docs/deviations.md, with the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patch.learning.learning_settings import method_defaults
from patch.learning.schedules import batch_indices
from patch.masks.noise import TILES, gumbel_noise, logistic_noise, noise_keys, places
from patch.models.loading import prunable_linears

SIX = torch.tensor([(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)]).double()
STEPS, WARMUP, LR, TILE, DENSITY, LAMBDA1, LAMBDA2 = 4, 2, 0.01, 4, 0.6, 7.0, 20.0
METHODS = ["maskllm", "patch-joint", "patch-tile"]


@dataclass
class Rules:
    """Values of one recipe and method in docs/deviations.md; the defaults are the paper's for PATCH."""

    std: float = 0.01
    noise_stays: bool = True
    tile_temperature: float = 2.0
    clip: float = math.inf
    weight_decay: float = 0.0
    root: bool = False
    ratio: bool = True
    decays: bool = False
    first_rate: int = 1
    ramp_steps: int = STEPS - 1


def rules(method: str, recipe: str) -> Rules:
    if recipe == "paper":
        return Rules(decays=method == "maskllm")
    found = Rules(0.014, False, 4.0, 1.0, 0.0, True, True, True, 0, STEPS)
    if method == "maskllm":
        found.weight_decay, found.ratio = 0.1, False
    return found


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[Tensor, Tensor]]]:
    """Record parameters and gradients in float64 at every optimizer step."""
    steps: list[list[tuple[Tensor, Tensor]]] = []

    class Recorder(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            steps.append([(p.detach().double(), p.grad.double()) for p in parameters])
            super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    return steps


def initial_logits(linears: dict[str, nn.Module], method: str, of: Rules, start: dict) -> list[Tensor]:
    """Return the logits at the start, layer by layer: of the patterns, of the tiles."""
    generator, found = torch.Generator().manual_seed(0), []
    for name, linear in linears.items():
        rows, columns = linear.weight.shape
        if method != "patch-tile":
            noise = torch.randn(6, rows * columns // 4, generator=generator).double() * of.std
            overlap = SIX @ start["pattern_prior"][name].double().view(-1, 4).T
            found.append((overlap - 1) * 3 * of.std + (noise if of.noise_stays else 0))
        if method != "maskllm":
            noise = torch.randn(rows // TILE, columns // TILE, generator=generator).double() * 0.014
            kept = start["tile_prior"][name].double().view(rows // TILE, TILE, -1, TILE).sum((1, 3)).flatten()
            shift = torch.full_like(kept, -3 * 0.014)
            order = sorted(range(len(kept)), key=lambda tile: -kept[tile].item())
            shift[order[: round((2 * DENSITY - 1) * len(kept))]] *= -1
            found.append(noise + shift.view_as(noise))
    return found


def masks_of(
    linears: dict[str, nn.Module], method: str, of: Rules, start: dict, step: int, leaves: list[Tensor]
) -> dict[str, Tensor]:
    """Return the soft masks of a step."""
    left, masks = iter(leaves), {}
    progress = step / of.ramp_steps
    for layer, (name, linear) in enumerate(linears.items()):
        two_four, dense = torch.zeros(linear.weight.shape).double(), torch.zeros(linear.weight.shape).double()
        if method != "patch-tile":
            logits = next(left)
            gumbel = gumbel_noise(places(logits.numel()), noise_keys(0, step, 0, layer)).double().view_as(logits)
            scale, temperature = 100 + 400 * progress, 4 - 3.95 * progress
            two_four = (torch.softmax((scale * logits + gumbel) / temperature, 0).T @ SIX).view_as(dense)
        else:
            two_four = start["frozen"][name].double()
        if method != "maskllm":
            logits = next(left)
            noise = logistic_noise(places(logits.numel()), noise_keys(0, step, 0, layer, TILES)).double()
            first, last = (100, 500) if method == "patch-tile" else (25, 350)
            temperature = of.tile_temperature + (0.05 - of.tile_temperature) * progress
            score = (first + (last - first) * progress) * logits + noise.view_as(logits)
            dense = torch.kron(torch.sigmoid(score / temperature), torch.ones(TILE, TILE).double())
        masks[name] = dense + (1 - dense) * two_four
    return masks


def loss_terms(
    model: nn.Module, masks: dict[str, Tensor], tokens: Tensor, of: Rules, step: int, target: str
) -> dict[str, Tensor]:
    """Return the terms of the loss; without tiles, the density is always one half and has no target."""
    weights = {name: linear.weight for name, linear in prunable_linears(model).items()}
    replaced = {f"{name}.weight": masks[name] * weights[name] for name in masks}
    logits = torch.func.functional_call(model, replaced, (tokens,), {"use_cache": False}).logits
    entropy = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    power = 1 if of.root else 2
    kept = sum((masks[name] * weights[name]).norm() ** power for name in masks)
    if of.ratio:
        kept = kept / sum(weight.norm() ** power for weight in weights.values())
    unit = (lambda name: name.split(".")[2]) if target == "block" else (lambda name: "")
    differences = []
    for chosen in sorted({unit(name) for name in masks}):
        parts = [mask for name, mask in masks.items() if unit(name) == chosen]
        differences.append(abs(sum(m.sum() for m in parts) / sum(m.numel() for m in parts) - DENSITY))
    decay = 1 - step / STEPS if of.decays else 1
    return {
        "cross_entropy": entropy,
        "sparsity_term": LAMBDA1 * sum(differences),
        "weight_term": -LAMBDA2 * decay * kept,
        "kept_norm": kept,
    }


def optimizer_steps(gradients: list[list[Tensor]], values: list[Tensor], of: Rules) -> list[list[Tensor]]:
    """Return the values before each step of AdamW, in plain formulas."""
    first, second, found = [0.0] * len(values), [0.0] * len(values), [values]
    for step, given in enumerate(gradients[:-1]):
        warm = (step + of.first_rate) / WARMUP
        rate = LR * (warm if step < WARMUP else (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2)
        values = list(values)
        for index, gradient in enumerate(given):
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.95 * second[index] + 0.05 * gradient**2
            mean, square = first[index] / (1 - 0.9 ** (step + 1)), second[index] / (1 - 0.95 ** (step + 1))
            shrunk = values[index] * (1 - rate * of.weight_decay)
            values[index] = shrunk - rate * mean / (square.sqrt() + 1e-8)
        found.append(values)
    return found


@pytest.mark.parametrize("recipe", ["paper", "public-code"])
@pytest.mark.parametrize(
    ("method", "target"),
    [("maskllm", "global"), ("patch-joint", "global"), ("patch-joint", "block"), ("patch-tile", "block")],
)
def test_every_step_of_a_recipe(
    method: str,
    target: str,
    recipe: str,
    recorded: list,
    run_learning: Callable,
    tiny_model: Callable,
    priors: Callable,
    sequences: Callable,
) -> None:
    of, model = rules(method, recipe), tiny_model().double()
    linears, start = prunable_linears(model), priors(tiny_model(), 1 - DENSITY)
    options = {"steps": STEPS, "warmup_steps": WARMUP, "lr": LR, "micro_batch_size": 4, "target": target}
    options |= {"sparsity_reg": LAMBDA1, "weight_reg": LAMBDA2, "held_out_sequences": 0}
    _, curve = run_learning(method, **method_defaults(method, recipe) | options)

    for found, expected in zip(recorded[0], initial_logits(linears, method, of, start), strict=True):
        torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-8)
    norms, largest = [], [0.0] * len(recorded[0])
    for step in range(STEPS):
        leaves = [value.clone().requires_grad_() for value, _ in recorded[step]]
        masks = masks_of(linears, method, of, start, step, leaves)
        tokens = torch.as_tensor(sequences(10)[batch_indices(step, 4, 10, 0)].astype("int64"))
        terms = loss_terms(model, masks, tokens, of, step, target)
        kept_norm = terms.pop("kept_norm")
        if method == "maskllm":
            terms["sparsity_term"] = torch.zeros(())
        sum(terms.values()).backward()
        for name, value in [*terms.items(), ("kept_norm", kept_norm)]:
            assert curve[step][name] == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
        norms.append(math.sqrt(sum(leaf.grad.square().sum().item() for leaf in leaves)))
        factor = min(1.0, of.clip / norms[-1])
        for index, (leaf, (_, gradient)) in enumerate(zip(leaves, recorded[step], strict=True)):
            expected = leaf.grad * factor
            # At low temperatures nearly all choices are made, and what is left of their gradient is rounding.
            largest[index] = max(largest[index], float(expected.abs().max()))
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=3e-4 * largest[index])
    assert max(norms) > 1, "clipping must matter"
    gradients = [[gradient for _, gradient in step] for step in recorded]
    expected = optimizer_steps(gradients, [value for value, _ in recorded[0]], of)
    for found, values in zip(recorded, expected, strict=True):
        for (value, _), wanted in zip(found, values, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
