"""Tests of sparse fine-tuning against dense autograd in float64 with a hand-written AdamW."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from patch.distributed.signals import EXIT_RESUMABLE
from patch.errors import InputError
from patch.learning.finetune import finetune
from patch.learning.finetuning_settings import Finetuning
from patch.learning.schedules import batch_indices
from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet
from patch.models.loading import is_transposed, prunable_linears, weight_matrix

module = importlib.import_module("patch.learning.finetune")
OFTEN = 1e-9  # minutes: a checkpoint after every step
KINDS = pytest.mark.parametrize("kind", ["full", "lora"])


def settings_of(**changes: Any) -> Finetuning:
    values = {"steps": 3, "batch_size": 4, "micro_batch_size": 2, "seqlen": 12, "lr": 0.01, "warmup_steps": 1}
    use = {"corpus": "text", "split": "train"}
    return Finetuning(**{"use": use, "lora_rank": 3, "lora_alpha": 6.0} | values | changes)


def random_masks(model: nn.Module) -> MaskSet:
    generator = torch.Generator().manual_seed(7)
    shapes = {name: weight_matrix(linear).shape for name, linear in prunable_linears(model).items()}
    return MaskSet(
        {name: nm_mask(torch.rand(shape, generator=generator), NM(2, 4)) for name, shape in shapes.items()}, "2:4"
    )


@pytest.fixture
def tune(tiny_model: Callable, sequences: Callable, tmp_path: Path) -> Callable[..., tuple[nn.Module, list[dict]]]:
    """Return a function that returns a fine-tuned model and the curve without times; keywords change the settings."""

    def run(
        kind: str,
        model: nn.Module | None = None,
        folder: str = "run",
        seed: int = 0,
        upstream: str = "",
        **changes: Any,
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        model, curve = model or tiny_model(), tmp_path / f"{folder}.jsonl"
        files = {"folder": tmp_path / folder, "curve": curve, "upstream": upstream}
        finetune(model, random_masks(model), kind, sequences(10), settings_of(**changes), seed, **files)
        lines = [json.loads(line) for line in curve.read_text().splitlines()]
        times = ("seconds", "tokens_per_second", "peak_memory_mb")
        return model, [{key: value for key, value in line.items() if key not in times} for line in lines]

    return run


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight_matrix(linear).detach().clone() for name, linear in prunable_linears(model).items()}


def adamw(parameters: list[Tensor], gradients: Callable[[int], list[Tensor]], rates: list[float], decay: float) -> None:
    """Update parameters in place by the gradients of each step, clipped to a norm of 1."""
    first = [torch.zeros_like(parameter) for parameter in parameters]
    second = [torch.zeros_like(parameter) for parameter in parameters]
    for step, rate in enumerate(rates, 1):
        found = gradients(step - 1)
        norm = sum(gradient.square().sum() for gradient in found).sqrt()
        for parameter, gradient, m, v in zip(parameters, found, first, second, strict=True):
            gradient = gradient * min(1.0, 1.0 / norm.item())
            m.mul_(0.9).add_(0.1 * gradient)
            v.mul_(0.999).add_(0.001 * gradient**2)
            change = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            parameter.data -= rate * (change + decay * parameter.data)


def slow(
    kind: str, model: nn.Module, tokens: Any, rates: list[float], factors: list[Tensor], decay: float
) -> tuple[dict[str, Tensor], list[float]]:
    """Fine-tune in float64 with explicit masked matrices; return the weights, and the losses before each step."""
    model = model.double()
    masks = {name: mask.double() for name, mask in random_masks(model).masks.items()}
    frozen = {name: weight.double() for name, weight in weights_of(model).items()}
    if kind == "full":
        trained = [(frozen[name] * masks[name]).requires_grad_() for name in frozen]
    else:
        trained = [factor.double().requires_grad_() for factor in factors]
    losses = []

    def effective() -> dict[str, Tensor]:
        if kind == "full":
            return {name: weight * masks[name] for name, weight in zip(frozen, trained, strict=True)}
        pairs = zip(trained[::2], trained[1::2], strict=True)
        return {
            name: (frozen[name] + 6.0 / 3 * b @ a) * masks[name] for name, (a, b) in zip(frozen, pairs, strict=True)
        }

    def gradients(step: int) -> list[Tensor]:
        batch = torch.as_tensor(tokens[batch_indices(step, 4, len(tokens), 0)].astype("int64"))
        linears = prunable_linears(model)
        stored = {
            f"{name}.weight": weight.T if is_transposed(linears[name]) else weight
            for name, weight in effective().items()
        }
        logits = functional_call(model, stored, (batch,), {"use_cache": False}).logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        losses.append(loss.item())
        return list(torch.autograd.grad(loss, trained))

    adamw(trained, gradients, rates, decay)
    return {name: weight.detach() for name, weight in effective().items()}, losses


def initial_factors(model: nn.Module, monkeypatch: pytest.MonkeyPatch, tune: Callable) -> list[Tensor]:
    """Return the factors A, B of each layer at the start of a run."""
    found: list[Tensor] = []
    real = module._masked_weights

    def spy(*arguments: Any) -> dict:
        weights = real(*arguments)
        found.extend(parameter.detach().clone() for weight in weights.values() for parameter in weight.parameters)
        return weights

    monkeypatch.setattr(module, "_masked_weights", spy)
    tune("lora", model, folder="start", steps=1)
    monkeypatch.setattr(module, "_masked_weights", real)
    return found


@KINDS
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma3_text"])
@pytest.mark.parametrize(("rates", "decay"), [([0.01], 0.0), ([0.01, 0.01, 0.005], 0.1)])
def test_steps_equal_float64(
    kind: str,
    family: str,
    rates: list[float],
    decay: float,
    tune: Callable,
    tiny_model: Callable,
    sequences: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factors = initial_factors(tiny_model(family), monkeypatch, tune) if kind == "lora" else []
    assert all(not b.any() and a.any() for a, b in zip(factors[::2], factors[1::2], strict=True))
    expected, losses = slow(kind, tiny_model(family), sequences(10), rates, factors, decay)
    model, curve = tune(kind, tiny_model(family), steps=len(rates), weight_decay=decay)
    assert [line["lr"] for line in curve] == pytest.approx(rates)
    assert [line["loss"] for line in curve] == pytest.approx(losses, rel=1e-5)
    for name, weight in weights_of(model).items():
        wrong = (weight.double() - expected[name]).abs() > 2e-5
        # Adam's first steps have the size of the rate even where a gradient is only rounding error.
        assert wrong.double().mean() < 0.01, name


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_stay_zeros_and_nothing_else_changes(
    kind: str, dtype: torch.dtype, tune: Callable, tiny_model: Callable
) -> None:
    before = tiny_model().to(dtype)
    model, curve = tune(kind, tiny_model().to(dtype).train(), steps=8, weight_decay=0.5)
    masks, linears = random_masks(before).masks, prunable_linears(model)
    for name, weight in weights_of(model).items():
        assert weight.dtype == dtype and not weight[~masks[name]].any()
        changed = weight[masks[name]] != weights_of(before)[name][masks[name]]
        assert changed.double().mean() > 0.5, name
    trained = {f"{name}.weight" for name in linears}
    for name, value in before.state_dict().items():
        assert name in trained or torch.equal(value, model.state_dict()[name]), name
    assert not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(linear.forward.__func__ is type(linear).forward for linear in linears.values())
    assert curve[-1]["loss"] < curve[0]["loss"]


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_of_the_last_forward_pass_is_the_result(
    kind: str, dtype: torch.dtype, tune: Callable, tiny_model: Callable, sequences: Callable, monkeypatch: Any
) -> None:
    """Compare logits in training after all steps with those of the plain model that remains, bit for bit."""
    seen: list[Tensor] = []
    tokens, real = torch.as_tensor(sequences(3, seed=5).astype("int64")), module.run_steps

    def spy(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        with torch.no_grad():
            seen.append(model(tokens).logits)

    monkeypatch.setattr(module, "run_steps", spy)
    model = tiny_model("llama").to(dtype)
    tune(kind, model)
    assert torch.equal(model(tokens).logits, seen[0])


@KINDS
@pytest.mark.parametrize("how", ["signal", "crash"])
@pytest.mark.parametrize("step", [0, 2])
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    kind: str, how: str, step: int, tune: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = [1]

    def spy(number: int, *rest: Any) -> Any:
        if number == step and pending:
            pending.pop()
            if how == "crash":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_indices(number, *rest)

    often = {"checkpoint_minutes": OFTEN} if how == "crash" else {}
    whole, curve = tune(kind, folder="whole", steps=4, **often)
    monkeypatch.setattr(module, "batch_indices", spy)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
        tune(kind, steps=4, **often)
    assert how == "crash" or stopped.value.code == EXIT_RESUMABLE
    resumed, resumed_curve = tune(kind, steps=4, **often)
    assert resumed_curve == curve
    assert all(torch.equal(weight, weights_of(whole)[name]) for name, weight in weights_of(resumed).items())


@pytest.mark.parametrize("change", [{"kind": "full"}, {"seed": 1}, {"upstream": "x"}, {"lora_rank": 2}])
def test_a_checkpoint_of_another_run_is_not_resumed(change: dict, tune: Callable, capsys: Any) -> None:
    tune("lora", steps=1)
    tune(**{"kind": "lora", "steps": 1} | change)
    assert "resuming" not in capsys.readouterr().out


@KINDS
def test_accumulation_and_recomputed_blocks_change_nothing(kind: str, tune: Callable) -> None:
    expected, _ = tune(kind, folder="4", micro_batch_size=4)
    other, _ = tune(kind, folder="1", micro_batch_size=1, gradient_checkpointing=True)
    for name, weight in weights_of(other).items():
        assert ((weight - weights_of(expected)[name]).abs() > 1e-4).double().mean() < 0.01


@KINDS
def test_two_processes_are_one_process(kind: str, tune: Callable, in_processes: Callable) -> None:
    expected, curve = tune(kind, folder="one")
    for model, found in in_processes(2, lambda rank: tune(kind, folder="two")):
        assert found == curve
        assert all(torch.equal(weight, weights_of(expected)[name]) for name, weight in weights_of(model).items())


def test_bad_input(tune: Callable, tiny_model: Callable, sequences: Callable) -> None:
    with pytest.raises(ValidationError, match="micro_batch_size 3 does not divide batch_size 4"):
        settings_of(micro_batch_size=3)
    with pytest.raises(InputError, match=r"2, which 4 processes .* use 2 of them"):
        settings_of().micro_batches(processes=4)
    with pytest.raises(InputError, match="at step 1 of 3; lower the learning rate"):
        tune("full", tiny_model(), lr=1e30)
    with pytest.raises(InputError, match="the masks are of another model"):
        finetune(tiny_model(), random_masks(tiny_model("llama")), "full", sequences(4), settings_of())


def test_settings_that_a_kind_does_not_read() -> None:
    assert settings_of().used_by("full") == settings_of(lora_rank=8, lora_alpha=16.0)
    assert settings_of().used_by("lora") == settings_of()
