"""Tests of the held-out loss: its value, the initial mask, the best mask, resumption, several processes, warnings."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patch.errors import InputError
from patch.learning.held_out import held_out_sequences
from patch.masks.nm import NM
from patch.masks.packed import MaskSet, apply_masks
from patch.models.loading import prunable_linears
from patch.pruning.magnitude import magnitude

held_out_module = importlib.import_module("patch.learning.held_out")
learn_module = importlib.import_module("patch.learning.learn")
METHODS = ["maskllm", "patch-joint", "patch-tile", "proxsparse"]
OFTEN = 1e-9  # minutes: a checkpoint after every step
COUNT = 30


@pytest.fixture
def run(run_learning: Callable, run_proxsparse: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return a function that learns on a text of 30 sequences, of which three are held out."""

    def start(method: str, **options: Any) -> tuple[MaskSet, list[dict[str, Any]]]:
        return run_proxsparse(**options) if method == "proxsparse" else run_learning(method, **options)

    return start


@pytest.fixture
def sequences(sequences: Callable) -> Callable:
    """Return a function that makes 30 sequences whatever the number, so that three are held out."""
    return lambda count, **options: sequences(COUNT, **options)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[MaskSet, float]]:
    """Record the masks and the loss of every measurement."""
    found: list[tuple[MaskSet, float]] = []
    real = held_out_module.held_out_loss

    def spy(model: torch.nn.Module, masks: MaskSet, *rest: Any) -> float:
        found.append((masks, real(model, masks, *rest)))
        return found[-1][1]

    monkeypatch.setattr(held_out_module, "held_out_loss", spy)
    return found


def slow_loss(model: torch.nn.Module, masks: MaskSet, rows: np.ndarray) -> float:
    """Return the cross-entropy of a copy of the model with zeroed weights, in float64, token by token."""
    apply_masks(model.double(), masks)
    losses = []
    for row in rows.astype("int64"):
        logits = model(torch.as_tensor(row[None]), use_cache=False).logits[0]
        losses += [F.cross_entropy(logits[place], torch.tensor(row[place + 1])).item() for place in range(len(row) - 1)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_masked_models_in_float64(
    method: str,
    family: str,
    run: Callable,
    tiny_model: Callable,
    sequences: Callable,
    learning_settings: Callable,
    measured: list,
) -> None:
    masks, curve = run(method, model=tiny_model(family), steps=4, held_out_measurements=2)
    rows = held_out_sequences(sequences(0), learning_settings(), 0)
    assert len(rows) == 3
    assert ["held_out_loss" in line for line in curve] == [False, True, False, True]
    assert ["initial_held_out_loss" in line for line in curve] == [True, False, False, False]
    shown = [curve[0]["initial_held_out_loss"], curve[1]["held_out_loss"], curve[3]["held_out_loss"]]
    assert [loss for _, loss in measured] == shown
    for found, loss in measured:
        found.verify()
        assert loss == pytest.approx(slow_loss(tiny_model(family), found, rows), rel=1e-5)
    last = measured[-1][0]
    assert all(torch.equal(mask, last.masks[name]) for name, mask in masks.masks.items())
    header = masks.header["held_out"]
    assert (header["initial"], header["final"], header["sequences"]) == (shown[0], shown[2], 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_initial_mask_has_no_noise(
    method: str, run: Callable, tiny_model: Callable, priors: Callable, measured: list
) -> None:
    run(method, steps=1, **({} if method == "proxsparse" else {"pattern_std": 10.0, "pattern_prior_strength": 0.01}))
    masks, given = measured[0][0], priors(tiny_model(), 0.4)
    pattern = given["frozen" if method == "patch-tile" else "pattern_prior"]
    magnitudes = {name: magnitude(layer.weight, NM(2, 4)) for name, layer in prunable_linears(tiny_model()).items()}
    if not method.startswith("patch"):
        for name, mask in masks.masks.items():
            assert torch.equal(mask, (magnitudes if method == "proxsparse" else pattern)[name])
        return
    kept = total = 0
    for name, mask in masks.masks.items():
        ranks = given["tile_prior"][name].float().unfold(0, 4, 4).unfold(1, 4, 4).sum((2, 3))
        dense = masks.tiles[name]
        assert torch.equal(mask, pattern[name] | torch.kron(dense.int(), torch.ones(4, 4).int()).bool())
        # One tile may move between layers to meet the target of the model.
        assert (ranks[dense].min() < ranks[~dense].max()).sum() <= 1
        kept, total = kept + int(dense.sum()), total + dense.numel()
    assert kept == round(0.2 * total)


def test_an_initial_mask_without_initialization_is_that_of_the_noise(
    run_learning: Callable, measured: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict] = []
    real = learn_module.build_masks

    def spy(*arguments: Any) -> dict:
        made.append(real(*arguments))
        patterns.extend(mask.final_pattern() for mask in made[-1].values())
        return made[-1]

    patterns: list[torch.Tensor] = []
    monkeypatch.setattr(learn_module, "build_masks", spy)
    run_learning("maskllm", steps=1, pattern_prior_strength=0.0)
    assert all(torch.equal(*pair) for pair in zip(measured[0][0].masks.values(), patterns, strict=True))


@pytest.mark.parametrize("method", ["patch-joint", "proxsparse"])
def test_measurements_change_nothing_else(method: str, run: Callable, same_masks: Callable) -> None:
    """The run reads only a part of the text, so that holding out three sequences does not change its order."""
    options = {"steps": 4, "batch_size": 4, "micro_batch_size": 2}
    one, curve = run(method, folder="measured", **options)
    other, plain = run(method, folder="plain", held_out_sequences=0, **options)
    same_masks(one, other)
    keys = ("held_out_loss", "initial_held_out_loss")
    assert [{key: value for key, value in line.items() if key not in keys} for line in curve] == plain
    assert "held_out" not in other.header


@pytest.mark.parametrize("method", METHODS)
def test_the_best_mask_is_kept_of_a_destructive_run(
    method: str, run: Callable, measured: list, same_masks: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"lr": 0.3, "steps": 6, "held_out_measurements": 6, "micro_batch_size": 4}
    with caplog.at_level(logging.WARNING):
        last, _ = run(method, folder="last", **options)
    losses = [loss for _, loss in measured]
    header = last.header["held_out"]
    assert header["best_step"] == losses.index(min(losses)) and header["best"] == min(losses)
    worse = losses[-1] > losses[0]
    assert ("worse than its initial mask" in caplog.text) == worse
    measured.clear()
    caplog.clear()
    best, curve = run(method, folder="best", keep="best", **options)
    assert [loss for _, loss in measured] == losses, "the choice at the end does not change the run"
    same_masks(best, measured[losses.index(min(losses))][0])
    assert best.header["held_out"] == header | {"kept": "best"} and not caplog.text
    same_masks(last, measured[-1][0])


def test_a_destructive_rate_warns(run_proxsparse: Callable, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        masks, _ = run_proxsparse(lr=0.3, steps=6)
    header = masks.header["held_out"]
    assert header["final"] > header["initial"]
    assert f"held-out loss {header['final']:.3f}, initial {header['initial']:.3f}); lower `lr`" in caplog.text


@pytest.mark.parametrize("stopped", [1, 3, 5])
@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "proxsparse"])
def test_a_resumed_run_measures_once_and_keeps_the_best(
    stopped: int, method: str, run: Callable, same_masks: Callable, monkeypatch: pytest.MonkeyPatch, measured: list
) -> None:
    options = {"steps": 6, "lr": 0.1, "keep": "best", "held_out_measurements": 3, "checkpoint_minutes": OFTEN}
    whole, curve = run(method, folder="whole", **options)
    count, calls = len(measured), []
    assert count == 4
    measured.clear()
    module = importlib.import_module("patch.learning." + ("proxsparse" if method == "proxsparse" else "learn"))
    real = module.batch_indices

    def crash(step: int, *rest: Any) -> np.ndarray:
        if step == stopped and not calls:
            calls.append(step)
            raise RuntimeError("crash")
        return real(step, *rest)

    monkeypatch.setattr(module, "batch_indices", crash)
    with pytest.raises(RuntimeError, match="crash"):
        run(method, folder="stopped", **options)
    resumed, resumed_curve = run(method, folder="stopped", **options)
    assert resumed_curve == curve and len(measured) == count
    assert resumed.header == whole.header
    same_masks(resumed, whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_measures_the_same(
    processes: int,
    method: str,
    run: Callable,
    in_processes: Callable,
    same_masks: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_out_module, "TOKENS", 1)
    options = {"batch_size": 6, "micro_batch_size": 1, "steps": 3, "lr": 0.1, "keep": "best"}
    options |= {"batch_size": 1} if method == "proxsparse" else {}
    masks, curve = run(method, folder="one", **options)
    for found, found_curve in in_processes(processes, lambda rank: run(method, folder="many", **options)):
        same_masks(found, masks)
        assert found.header == masks.header
        for key in ("initial_held_out_loss", "held_out_loss"):
            assert [line.get(key) for line in found_curve] == [line.get(key) for line in curve]


def test_short_texts(
    run_learning: Callable,
    tiny_model: Callable,
    learning_settings: Callable,
    sequences: Callable,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = {"folder": tmp_path / "c", "curve": tmp_path / "curve.jsonl"}
    few = sequences(0)[:9]
    with caplog.at_level(logging.WARNING):
        masks = learn_module.learn(tiny_model(), "maskllm", few, learning_settings(steps=1), **files)
    assert "fewer than 10 sequences" in caplog.text and not masks.header
    assert "held_out_loss" not in json.loads((tmp_path / "curve.jsonl").read_text())
    with pytest.raises(InputError, match="`keep` is 'best', but none of the text's fewer than 10 sequences"):
        learn_module.learn(tiny_model(), "maskllm", few, learning_settings(steps=1, keep="best"), **files)


def test_the_progress_line(run_learning: Callable, capsys: pytest.CaptureFixture) -> None:
    _, curve = run_learning(steps=2)
    final, initial = curve[-1]["held_out_loss"], curve[0]["initial_held_out_loss"]
    assert f"held-out loss {final:.3f} (initial {initial:.3f})" in capsys.readouterr().out
