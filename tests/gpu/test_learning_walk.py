"""Learning on `device: cuda`: no waiting in a step but for its numbers, and the masks of a CPU."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from patch.data.tokenization import Separator
from patch.learning.learn import learn
from patch.learning.learning_settings import Learning
from patch.learning.proxsparse import proxsparse
from patch.masks.nm import NM
from patch.masks.packed import MaskSet
from patch.models.loading import prunable_linears, weight_matrix
from patch.pruning.magnitude import magnitude

from .conftest import LAYERS
from .cuda_walk import CudaWalk


def _settings(method: str, micro_batches: int, **changes: Any) -> Learning:
    values: dict[str, Any] = {"steps": 3, "batch_size": 2 * micro_batches, "micro_batch_size": 2, "seqlen": 12}
    values |= {"lr": 0.01, "warmup_steps": 1, "prox_strength": 1e-3, "held_out_sequences": 0}
    return Learning(**values | changes)


@pytest.fixture
def run(sequences: Callable, tmp_path: Path) -> Callable[..., MaskSet]:
    """Return a function that learns the masks of a model."""

    def run(model: Any, method: str, settings: Learning, folder: str = "run", **more: Any) -> MaskSet:
        files = {"folder": tmp_path / folder, "curve": tmp_path / f"{folder}.jsonl"}
        if method == "proxsparse":
            return proxsparse(model, sequences(40), settings, **files)
        start = {name: magnitude(weight_matrix(one), NM(2, 4)).cpu() for name, one in prunable_linears(model).items()}
        options = more | ({"frozen": start} if method == "patch-tile" else {"pattern_prior": start})
        sparsity, tile = (0.5, None) if method == "maskllm" else (0.25, 16)
        return learn(
            model, method, sequences(40), settings, sparsity, tile, **options, **files, separator=Separator(eos=0)
        )

    return run


class Step(NamedTuple):
    """Counts of one step by line of code."""

    waits: Counter[str]
    launches: Counter[str]


@pytest.fixture
def counted_step(
    walk: CudaWalk, llama: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Step]:
    """Return a function that counts the second step of a run; the first one fills caches."""

    def count(method: str, blocks: int, micro_batches: int, offload: bool = False, **changes: Any) -> Step:
        found: list[Step] = []

        def two_steps(steps: int, step_fn: Callable, *arguments: Any, **options: Any) -> None:
            step_fn(0)
            walk.synchronizations.clear(), walk.launches.clear()
            step_fn(1)
            found.append(Step(walk.synchronizations.copy(), walk.launches.copy()))

        for module in ("learn", "proxsparse"):
            monkeypatch.setattr(importlib.import_module(f"patch.learning.{module}"), "run_steps", two_steps)
        more = {"offload": True} if offload else {}
        run(llama(blocks), method, _settings(method, micro_batches, **changes), **more)
        return found[0]

    return count


def _own_and_library(waits: Counter[str]) -> tuple[int, int]:
    """Return how often the host waits in a step in this package's code, and in that of transformers."""
    library = sum(count for line, count in waits.items() if " in transformers/" in line)
    return sum(waits.values()) - library, library


# Launches of a step for each linear layer and micro-batch, with those of attention, norms, activations and optimizer.
@pytest.mark.parametrize(
    "method, launches", [("maskllm", 22), ("patch-joint", 28), ("patch-tile", 28), ("proxsparse", 22)]
)
def test_a_step_waits_once_for_its_numbers(method: str, launches: int, counted_step: Callable[..., Step]) -> None:
    counts = {size: counted_step(method, *size) for size in ((1, 1), (2, 1), (4, 1), (2, 3))}
    for (_, micro_batches), step in counts.items():
        # transformers examines the positions of a forward pass.
        assert _own_and_library(step.waits) == (1, micro_batches), step.waits
    one, two, four = (sum(counts[blocks, 1].launches.values()) for blocks in (1, 2, 4))
    assert four - two == 2 * (two - one)
    assert (two - one) / LAYERS <= launches, (two - one) / LAYERS


@pytest.mark.parametrize(
    "changes",
    [
        {"max_grad_norm": 1e-3},
        {"cut_attention": True},
        {"offload": True, "max_grad_norm": 1e-3},
        {"gradient_checkpointing": True},
        {"hard": True, "target": "block", "target_reduction": "mean", "weight_reg_form": "norm_ratio"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_no_setting_adds_waiting(changes: dict[str, Any], counted_step: Callable[..., Step]) -> None:
    waits = counted_step("patch-joint", 2, 2, **changes).waits
    assert _own_and_library(waits) == (1, 2), waits


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_layer_has_one_mask_kernel_each_way(recomputed: bool, counted_step: Callable[..., Step]) -> None:
    launches = counted_step("patch-joint", 2, 3, gradient_checkpointing=recomputed).launches
    kernels = sum(count for line, count in launches.items() if line.endswith(": mask kernel"))
    assert kernels == (3 if recomputed else 2) * 3 * 2 * LAYERS


def test_offloaded_state_is_in_page_locked_memory(
    walk: CudaWalk, llama: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_module, model, settings = (
        importlib.import_module("patch.learning.learn"),
        llama(),
        _settings("patch-joint", 2),
    )
    run_steps = learn_module.run_steps

    def checked(steps: int, step_fn: Callable, state: dict[str, Any], *arguments: Any, **options: Any) -> None:
        run_steps(steps, step_fn, state, *arguments, **options)
        values = state["optimizer"].state_dict()["state"]
        for number, (name, parameter) in enumerate(state["masks"].named_parameters()):
            offloaded = name.endswith("pattern_logits")
            assert parameter.is_cuda and not (offloaded and parameter.grad is not None), name
            assert values[number]["exp_avg"].is_cuda == values[number]["exp_avg_sq"].is_cuda == (not offloaded), name

    expected = run(model, "patch-joint", settings, "device")
    monkeypatch.setattr(learn_module, "run_steps", checked)
    # The second run finds the checkpoint of the first one's end.
    for _ in range(2):
        found = run(model, "patch-joint", settings, "host", offload=True)
        assert all((mask == expected.masks[name]).all() for name, mask in found.masks.items())


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile", "proxsparse"])
def test_a_run_and_a_resumed_one_give_the_masks_of_a_cpu(
    method: str, llama: Callable, run: Callable, tmp_path: Path
) -> None:
    settings = _settings(method, 2, held_out_sequences=2, held_out_measurements=2, keep="best", prox_strength=0.5)
    expected = run(llama(device="cpu"), method, settings, "cpu")
    # The second run finds the checkpoint of the first one's end.
    for _ in range(2):
        masks = run(llama(), method, settings, "cuda")
        assert masks.tiles.keys() == expected.tiles.keys()
        for name, mask in masks.masks.items():
            assert (mask == expected.masks[name]).float().mean() > 0.99, name
    first, second = (
        [json.loads(line)["loss"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("cpu", "cuda")
    )
    assert first == pytest.approx(second, rel=1e-3)
