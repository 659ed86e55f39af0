"""Tests of MaskPro: its distribution and gradients by enumeration in float64, and runs against a plain loop."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from patch.distributed.signals import EXIT_RESUMABLE
from patch.learning.learning_settings import METHOD_DEFAULTS
from patch.learning.maskpro import Policy, log_probability_gradient, maskpro
from patch.learning.schedules import batch_indices, held_out_rows
from patch.masks.kernels.eager import unpack_bits
from patch.masks.nm import NM
from patch.masks.packed import MaskSet, apply_masks
from patch.models.loading import prunable_linears, weight_matrix
from patch.pruning.magnitude import magnitude

maskpro_module = importlib.import_module("patch.learning.maskpro")
PAIRS = list(itertools.combinations(range(4), 2))
OFTEN = 1e-9  # minutes: a checkpoint after every step


def pair_probability(logits: torch.Tensor, pair: tuple[int, int]) -> torch.Tensor:
    """Return the probability of drawing the pair in either order, each draw from the softmax of what is left."""
    total = torch.zeros((), dtype=torch.float64)
    for first, second in (pair, pair[::-1]):
        rest = [k for k in range(4) if k != first]
        total = total + logits.softmax(0)[first] * logits[rest].softmax(0)[rest.index(second)]
    return total


@pytest.fixture
def run(
    tiny_model: Callable, sequences: Callable, learning_settings: Callable, tmp_path: Path
) -> Callable[..., tuple[MaskSet, list[dict[str, Any]], dict[str, Any]]]:
    """Return a function that returns masks, curve and final state of a tiny run; keywords change the settings."""

    def start(
        model: torch.nn.Module | None = None, folder: str = "run", seed: int = 0, **changes: Any
    ) -> tuple[MaskSet, list[dict[str, Any]], dict[str, Any]]:
        model, curve = model or tiny_model(), tmp_path / f"{folder}.jsonl"
        initial = {name: magnitude(weight_matrix(linear), NM(2, 4)) for name, linear in prunable_linears(model).items()}
        settings = learning_settings(**{"steps": 4, "lr": 300.0, "initial_logit": 2.0} | changes)
        masks = maskpro(model, sequences(10), settings, initial, seed, tmp_path / folder, curve)
        lines = [json.loads(line) for line in curve.read_text().splitlines()]
        times = ("seconds", "tokens_per_second", "peak_memory_mb")
        state = torch.load(max((tmp_path / folder).glob("*.pt")), weights_only=True)["state"]["policy"]
        return masks, [{key: value for key, value in line.items() if key not in times} for line in lines], state

    return start


@given(st.lists(st.floats(-12, 12), min_size=4, max_size=4), st.sampled_from(PAIRS))
def test_gradient_of_the_log_probability(values: list[float], pair: tuple[int, int]) -> None:
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    pair_probability(logits, pair).log().backward()
    kept = torch.tensor([[k in pair for k in range(4)]])
    found = log_probability_gradient(logits.detach()[None], kept)[0]
    torch.testing.assert_close(found, logits.grad, rtol=1e-5, atol=1e-6)


def test_gradients_of_extreme_logits_are_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, 0.0, 0.0], [1e4, 1e4, -1e4, 0.0], [0.0, 0.0, -1e4, -1e4]])
    for pair in PAIRS:
        kept = torch.tensor([[k in pair for k in range(4)]]).expand(3, 4)
        assert log_probability_gradient(logits, kept).isfinite().all()


def test_samples_have_the_probabilities_of_two_draws(learning_settings: Callable) -> None:
    count, logits = 40_000, torch.tensor([1.5, 0.0, -1.0, 0.7], dtype=torch.float64)
    policy = Policy({"a": torch.zeros(count, 4, dtype=torch.bool)}, learning_settings(lr=1.0), seed=3)
    policy.logits["a"] += logits.float()
    kept = unpack_bits(policy.sample(5)["a"].bits, 0, 4 * count).view(count, 4)
    assert (kept.sum(1) == 2).all()
    for pair in PAIRS:
        wanted = pair_probability(logits, pair).item()
        error = math.sqrt(wanted * (1 - wanted) / count)
        assert kept[:, list(pair)].all(1).double().mean().item() == pytest.approx(wanted, abs=4 * error)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_run_equals_the_plain_loop(
    family: str, run: Callable, tiny_model: Callable, sequences: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop has float64 losses of models with zeroed weights, and gradients by autograd of enumerated draws."""
    samples: list[dict[str, torch.Tensor]] = []
    real = Policy.sample

    def spy(self: Policy, step: int) -> dict:
        found = real(self, step)
        shapes = {name: logits.shape for name, logits in self.logits.items()}
        samples.append({n: unpack_bits(m.bits, 0, shapes[n].numel()).view(shapes[n]) for n, m in found.items()})
        return found

    monkeypatch.setattr(Policy, "sample", spy)
    masks, curve, state = run(tiny_model(family), steps=3, held_out_sequences=0)
    linears = prunable_linears(tiny_model(family))
    start = {name: magnitude(weight_matrix(linear), NM(2, 4)) for name, linear in linears.items()}
    logits, tracker, ids = {name: 2.0 * mask.double() for name, mask in start.items()}, 0.0, sequences(10)

    def loss(keep: dict[str, torch.Tensor], rows: Any) -> float:
        model = tiny_model(family).double()
        apply_masks(model, MaskSet(keep, "2:4"))
        tokens = torch.as_tensor(ids[rows].astype("int64"))
        scores = model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
        return F.cross_entropy(scores, tokens[:, 1:].flatten()).item()

    for step, sample in enumerate(samples):
        rows = batch_indices(step, 4, len(ids), 0)
        residual = loss(sample, rows) - loss(start, rows)
        tracker = 0.99 * tracker + 0.01 * residual
        assert curve[step]["residual"] == pytest.approx(residual, abs=1e-5)
        assert curve[step]["tracker"] == pytest.approx(tracker, abs=1e-6)
        for name, values in logits.items():
            groups = values.reshape(-1, 4).clone().requires_grad_()
            first, second = sample[name].reshape(-1, 4).nonzero()[:, 1].view(-1, 2).unbind(1)
            p, row = groups.softmax(1), torch.arange(len(groups))
            one, two = p[row, first], p[row, second]
            (one * two / (1 - one) + two * one / (1 - two)).log().sum().backward()
            logits[name] = values - 300.0 * (residual - tracker) * groups.grad.view_as(values)
    for name, values in logits.items():
        torch.testing.assert_close(state["logits"][name].double(), values, rtol=1e-3, atol=5e-3)
    masks.verify()
    assert masks.sparsity == 0.5 and state["tracker"].item() == pytest.approx(tracker, abs=1e-6)


def test_the_model_is_unchanged_and_the_initial_mask_is_the_given_one(run: Callable, tiny_model: Callable) -> None:
    model = tiny_model()
    masks, _, _ = run(model, lr=1e-6)
    for name, value in tiny_model().state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    for name, linear in prunable_linears(model).items():
        assert torch.equal(masks.masks[name], magnitude(linear.weight, NM(2, 4)))


def test_the_policy_finds_the_weights_that_matter(learning_settings: Callable) -> None:
    """The loss of a mask is the sum of what it removes; the best mask keeps the largest values."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 16, generator=generator)
    initial = torch.tensor([True, True, False, False]).repeat(4, 4)
    settings = learning_settings(lr=0.05, initial_logit=1.0, tracker_decay=0.9)
    policy = Policy({"a": initial}, settings, seed=0)
    losses = []
    for step in range(3000):
        masks = policy.sample(step)
        kept = unpack_bits(masks["a"].bits, 0, 64).view(4, 16)
        losses.append(float(values[~kept].sum()))
        policy.update(masks, losses[-1] - float(values[~initial].sum()))
    best = float(values.reshape(-1, 4).topk(2, dim=1, largest=False).values.sum())
    assert sum(losses[-50:]) / 50 < best + 0.1 * (sum(losses[:50]) / 50 - best)


@pytest.mark.parametrize("how", ["signal", "crash"])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    how: str, run: Callable, same_masks: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, curve, state = run(folder="whole")
    pending = [2]

    def spy(step: int, *rest: Any) -> Any:
        if [step] == pending:
            pending.clear()
            if how == "crash":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_indices(step, *rest)

    monkeypatch.setattr(maskpro_module, "batch_indices", spy)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
        run(checkpoint_minutes=OFTEN)
    assert how == "crash" or stopped.value.code == EXIT_RESUMABLE
    resumed, resumed_curve, resumed_state = run(checkpoint_minutes=OFTEN)
    same_masks(resumed, masks)
    assert resumed_curve == curve and torch.equal(resumed_state["tracker"], state["tracker"])
    assert all(torch.equal(logits, state["logits"][name]) for name, logits in resumed_state["logits"].items())


def test_several_processes_get_the_masks_of_one(run: Callable, same_masks: Callable, in_processes: Callable) -> None:
    masks, curve, _ = run(folder="one", micro_batch_size=1)
    for found, found_curve, _ in in_processes(2, lambda rank: run(folder="many", micro_batch_size=1)):
        same_masks(found, masks)
        assert found_curve == curve


def test_held_out_sequences_are_not_learned_on(run: Callable, sequences: Callable) -> None:
    masks, curve, _ = run(held_out_sequences=1, held_out_measurements=2)
    assert len(held_out_rows(10, 0, 1)) == 1
    assert ["held_out_loss" in line for line in curve] == [False, True, False, True]
    assert masks.header["held_out"]["final"] == curve[-1]["held_out_loss"]


def test_published_settings(learning_settings: Callable) -> None:
    settings = learning_settings(**METHOD_DEFAULTS["maskpro"])
    assert (settings.lr, settings.initial_logit, settings.tracker_decay) == (50.0, 10.0, 0.99)
