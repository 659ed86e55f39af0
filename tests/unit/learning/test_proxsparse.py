"""Tests of ProxSparse against plain autograd, a hand-written AdamW and a search of each group's minimum."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from patch.distributed.signals import EXIT_RESUMABLE
from patch.errors import InputError
from patch.learning import objective
from patch.learning.schedules import batch_indices, linear_rate
from patch.models.loading import prunable_linears, weight_matrix

OFTEN = 1e-9  # minutes: a checkpoint after every step


@pytest.fixture
def gpt2() -> torch.nn.Module:
    """Return a model with transposed layers, tied embeddings, and dropout in training mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 50, "initializer_range": 0.2}
    config = AutoConfig.for_model("gpt2", **sizes, bos_token_id=0, eos_token_id=0)
    return AutoModelForCausalLM.from_config(config).requires_grad_(False)


def searched(groups: Tensor, strength: float) -> Tensor:
    """Return the proximal operator of `[n, 4]` float64 by the best pair, or descent in a larger support."""
    size = groups.abs()
    generator = torch.Generator().manual_seed(0)
    triples = [list(three) for three in combinations(range(4), 3)]
    found = [torch.zeros_like(size).index_fill(1, torch.tensor(pair), 1) * size for pair in combinations(range(4), 2)]
    for support in [*triples, [0, 1, 2, 3]] * 4:
        w = size * torch.rand(size.shape, generator=generator, dtype=torch.float64)
        w[:, [i for i in range(4) if i not in support]] = 0
        for _ in range(60):
            for i in support:
                products = sum(w[:, a] * w[:, b] for a, b in combinations([j for j in range(4) if j != i], 2))
                w[:, i] = (size[:, i] - strength * products).clamp(min=0)
        found.append(w)
    every = torch.stack(found)
    objective = (every - size).square().sum(-1) / 2 + strength * sum(every[..., three].prod(-1) for three in triples)
    return every[objective.argmin(0), torch.arange(len(size))].copysign(groups)


def fine_tuned(model: torch.nn.Module, sequences: Any, rates: list[float], strength: float) -> list[float]:
    """Run over batches of four in float64, in place, and return the gradient norms."""
    weights, norms = list(model.requires_grad_(True).parameters()), []
    first = [torch.zeros_like(weight) for weight in weights]
    second = [torch.zeros_like(weight) for weight in weights]
    for step, rate in enumerate(rates):
        tokens = torch.as_tensor(sequences[batch_indices(step, 4, len(sequences), 0)].astype("int64"))
        logits = model(tokens, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        gradients = torch.autograd.grad(loss, weights)
        norms.append(sum(gradient.square().sum() for gradient in gradients).sqrt().item())
        for weight, gradient, m, v in zip(weights, gradients, first, second, strict=True):
            gradient = gradient * min(1.0, 1.0 / norms[-1])
            m.mul_(0.9).add_(0.1 * gradient)
            v.mul_(0.95).add_(0.05 * gradient**2)
            change = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
            weight.data -= rate * change
        matrices = [linear.weight.data.view(-1, 4) for linear in prunable_linears(model).values()]
        minima = searched(torch.cat(matrices), strength).split([len(matrix) for matrix in matrices])
        for matrix, minimum in zip(matrices, minima, strict=True):
            matrix.copy_(minimum)
    return norms


@pytest.mark.parametrize("strength", [0.3, 3.0])
def test_a_run_against_float64(
    strength: float, run_proxsparse: Callable, tiny_model: Callable, sequences: Callable, saved: Callable
) -> None:
    masks, curve = run_proxsparse(prox_strength=strength, lr=0.003, held_out_sequences=0)
    model = tiny_model().double()
    rates = [0.003, 0.003, 0.002, 0.001]
    norms = fine_tuned(model, sequences(10), rates, strength)
    assert max(norms) > 1 and [line["lr"] for line in curve] == pytest.approx(rates)
    weights = saved()["model"]
    for name, linear in prunable_linears(model).items():
        expected, group = linear.weight.data, linear.weight.data.abs().reshape(-1, 4)
        wrong = (weights[f"{name}.weight"] - expected).abs() > 1e-4
        # The first steps of Adam have the rate's size also where a gradient is nothing but rounding.
        assert wrong.double().mean() < 0.002
        ranked = group.sort(dim=1).values
        clear = ranked[:, 2] - ranked[:, 1] > 1e-3
        assert clear.double().mean() > 0.9
        kept = group >= ranked[:, 2:3]
        same = (masks.masks[name].reshape(-1, 4) == kept).all(1)
        assert same[clear & ~wrong.reshape(-1, 4).any(1)].all()


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_comes_back_unchanged(
    family: str, dtype: torch.dtype, run_proxsparse: Callable, tiny_model: Callable
) -> None:
    model, fresh = tiny_model(family).to(dtype), tiny_model(family).to(dtype).state_dict()
    parameters = dict(model.named_parameters())
    masks, _ = run_proxsparse(model.train(), steps=2, gradient_checkpointing=dtype == torch.bfloat16)
    assert_unchanged(model, parameters, fresh)
    masks.verify()
    assert masks.pattern == "2:4" and list(masks.masks) == list(prunable_linears(model))
    assert all((mask.reshape(-1, 4).sum(1) == 2).all() for mask in masks.masks.values())


def assert_unchanged(model: torch.nn.Module, parameters: dict[str, Tensor], fresh: dict[str, Tensor]) -> None:
    assert not any(part.training for part in model.modules())
    after = dict(model.named_parameters())
    assert set(after) == set(parameters)
    for name, parameter in after.items():
        assert parameter is parameters[name] and parameter.dtype == fresh[name].dtype
        assert torch.equal(parameter, fresh[name]) and not parameter.requires_grad and parameter.grad is None


def test_a_failed_run_leaves_the_model_unchanged(
    run_proxsparse: Callable, tiny_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "cross_entropy", lambda model, tokens: model(tokens).logits.sum() * float("nan"))
    model = tiny_model()
    with pytest.raises(InputError, match="at step 0 of 4; lower the learning rate"):
        run_proxsparse(model)
    assert_unchanged(model, dict(model.named_parameters()), tiny_model().state_dict())


def test_every_parameter_is_trained_in_fp32(run_proxsparse: Callable, tiny_model: Callable, saved: Callable) -> None:
    masks, curve = run_proxsparse(tiny_model().bfloat16(), steps=2, held_out_sequences=0)
    trained, before = saved()["model"], tiny_model().bfloat16().state_dict()
    for name, value in trained.items():
        assert value.dtype == torch.float32 and not torch.equal(value, before[name].float())
    assert torch.equal(trained["lm_head.weight"], trained["model.embed_tokens.weight"])
    fp32 = tiny_model().bfloat16().float()
    again, same_curve = run_proxsparse(fp32, folder="fp32", steps=2, held_out_sequences=0)
    assert curve == same_curve and all(torch.equal(mask, again.masks[name]) for name, mask in masks.masks.items())


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("how", ["signal", "crash"])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    step: int, how: str, run_proxsparse: Callable, same_masks: Callable, saved: Callable, at_step: Callable
) -> None:
    def stop() -> None:
        if how == "crash":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    masks, curve = run_proxsparse(folder="whole")
    at_step(step, stop)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
        run_proxsparse(checkpoint_minutes=OFTEN if how == "crash" else 10.0)
    assert how == "crash" or stopped.value.code == EXIT_RESUMABLE
    resumed, resumed_curve = run_proxsparse(checkpoint_minutes=OFTEN if how == "crash" else 10.0)
    same_masks(resumed, masks)
    assert resumed_curve == curve
    whole, parts = saved("whole"), saved()
    assert all(torch.equal(value, whole["model"][name]) for name, value in parts["model"].items())
    for number, moments in parts["optimizer"]["state"].items():
        assert all(torch.equal(value, whole["optimizer"]["state"][number][key]) for key, value in moments.items())


@pytest.mark.parametrize("change", [{"prox_strength": 0.6}, {"seed": 1}, {"upstream": "another model"}])
def test_a_checkpoint_of_another_run_is_not_resumed(
    change: dict[str, Any], run_proxsparse: Callable, capsys: pytest.CaptureFixture
) -> None:
    run_proxsparse(steps=1)
    run_proxsparse(steps=1, **change)
    assert "resuming" not in capsys.readouterr().out


def test_accumulation_changes_nothing(run_proxsparse: Callable, saved: Callable) -> None:
    _, curve = run_proxsparse(folder="4", micro_batch_size=4, lr=0.001)
    for micro in (2, 1):
        _, other = run_proxsparse(folder=str(micro), micro_batch_size=micro, lr=0.001)
        for line, expected in zip(other, curve, strict=True):
            assert line == pytest.approx(expected, rel=1e-4)
        for name, value in saved(str(micro))["model"].items():
            assert ((value - saved("4")["model"][name]).abs() > 1e-5).double().mean() < 0.01


def test_transposed_layers_and_recomputed_blocks_without_dropout(
    gpt2: torch.nn.Module, run_proxsparse: Callable
) -> None:
    fresh = copy.deepcopy(gpt2.state_dict())
    masks, curve = run_proxsparse(gpt2)
    masks.verify()
    again, same_curve = run_proxsparse(gpt2.train(), folder="again", gradient_checkpointing=True)
    assert curve == same_curve and all(torch.equal(mask, again.masks[name]) for name, mask in masks.masks.items())
    for name, linear in prunable_linears(gpt2).items():
        assert masks.masks[name].shape == weight_matrix(linear).shape
    assert all(torch.equal(value, fresh[name]) for name, value in gpt2.state_dict().items())


def test_loss_and_penalty_fall_and_groups_become_two_four(run_proxsparse: Callable, saved: Callable) -> None:
    masks, curve = run_proxsparse(steps=40, lr=0.003, prox_strength=0.3)
    losses, penalties, fractions = ([line[key] for line in curve] for key in ("loss", "penalty", "sparse_groups"))
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    assert penalties[-1] < 0.2 * penalties[0] and 0 <= fractions[0] < 0.2 < 0.5 < fractions[-1] <= 1
    # What is left is what the mask keeps.
    kept = total = 0
    for name, mask in masks.masks.items():
        energy = saved()["model"][f"{name}.weight"].square()
        kept, total = kept + energy[mask].sum(), total + energy.sum()
    assert kept > 0.99 * total


@pytest.mark.parametrize(("strength", "fraction"), [(0.0, 0.0), (1e6, 1.0)])
def test_extreme_strengths(strength: float, fraction: float, run_proxsparse: Callable) -> None:
    masks, curve = run_proxsparse(steps=2, prox_strength=strength)
    masks.verify()
    assert all(line["sparse_groups"] == fraction and (line["penalty"] > 0) == (fraction == 0) for line in curve)


def test_rate_is_linear_up_and_down() -> None:
    assert [linear_rate(step, 6, 2) for step in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [linear_rate(step, 2, 0) for step in range(2)] == [1.0, 0.5]
    assert linear_rate(0, 1, 4) == 0.25
