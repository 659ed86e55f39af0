"""Tests of ProxSparse in several processes: the masks and weights of one process, at any step, from sharded memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.distributed import collectives as distributed
from patch.distributed.signals import EXIT_RESUMABLE
from patch.learning.checkpoint import read_states
from patch.learning.trainable_copy import row_bounds, trainable_copy
from patch.models.loading import prunable_linears

OFTEN = 1e-9  # minutes: a checkpoint after every step
# ProxSparse's own batch. Processes that share a core take milliseconds for each exchange.
ONE = {"batch_size": 1, "micro_batch_size": 1, "steps": 3}
# Shards of whole vectors: a CPU rounds the remainder of a tensor otherwise in Adam's step.
SIZES: dict[str, dict[str, int]] = {
    "qwen2": {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 4},
    "llama": {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 4},
    "gemma3_text": {"hidden_size": 64, "intermediate_size": 80, "head_dim": 32},
    "gpt2": {"n_embd": 64, "n_inner": 64, "n_head": 4},
}


@pytest.fixture
def model(tiny_model: Callable) -> Callable[..., torch.nn.Module]:
    """Return a function that makes a model of a family in the sizes above."""
    return lambda family="qwen2", **changes: tiny_model(family, **SIZES[family] | changes)


def shards(folder: Path) -> list[dict[str, Any]]:
    """Return the states of all processes at the newest step."""
    newest = max(folder.glob("*.pt")).name[:13]
    return read_states(sorted(folder.glob(f"{newest}*.pt")))


def assert_shards_of(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """Assert that parts side by side, along the one dimension that is cut, are a whole state bit for bit."""
    for name, value in whole["model"].items():
        assert_parts([part["model"][name] for part in parts], value)
    for number, moments in whole["optimizer"]["state"].items():
        for key, value in moments.items():
            assert_parts([part["optimizer"]["state"][number][key] for part in parts], value)


def assert_parts(parts: list[torch.Tensor], whole: torch.Tensor) -> None:
    if not whole.dim() or parts[0].shape == whole.shape:
        assert all(torch.equal(part, whole) for part in parts)
    else:
        dim = next(dim for dim in range(whole.dim()) if parts[0].shape[dim] != whole.shape[dim])
        assert torch.equal(torch.cat(parts, dim), whole)


def is_sharded(parts: list[dict[str, Any]], whole: dict[str, Any]) -> bool:
    held = [sum(tensor.numel() for tensor in part["model"].values()) for part in parts]
    # Rows that do not divide evenly, of which there are few.
    return max(held) < 1.3 * sum(tensor.numel() for tensor in whole["model"].values()) / len(parts)


@pytest.mark.parametrize(
    ("family", "processes", "changes"),
    [
        ("qwen2", 2, {}),  # biases
        ("llama", 4, {"gradient_checkpointing": True}),
        ("gpt2", 4, {}),  # transposed layers
        ("gemma3_text", 2, {"gradient_checkpointing": True}),
        ("qwen2", 4, {"batch_size": 2, "weight_decay": 0.1}),  # two divide, two repeat
        ("qwen2", 2, {"batch_size": 4, "micro_batch_size": 2}),
    ],
)
def test_several_processes_are_one_bit_for_bit(
    family: str,
    processes: int,
    changes: dict[str, Any],
    in_processes: Callable,
    run_proxsparse: Callable,
    same_masks: Callable,
    model: Callable,
    saved: Callable,
    tmp_path: Path,
) -> None:
    options = ONE | changes
    masks, curve = run_proxsparse(model(family), folder="one", **options)
    results = in_processes(processes, lambda rank: run_proxsparse(model(family), folder="many", **options))
    for found, found_curve in results:
        same_masks(found, masks)
        for line, expected in zip(found_curve, curve, strict=True):
            # The penalty is a sum in fp64 over shards.
            assert line == expected | {"penalty": pytest.approx(expected["penalty"], rel=1e-12)}
    parts = shards(tmp_path / "many")
    assert len(parts) == processes and is_sharded(parts, saved("one"))
    assert_shards_of(parts, saved("one"))


def test_uneven_shards(
    in_processes: Callable,
    run_proxsparse: Callable,
    same_masks: Callable,
    model: Callable,
    saved: Callable,
    tmp_path: Path,
) -> None:
    """Four processes divide 50 rows of the tied embedding as 13, 13, 13, 11, and 6 of the keys as 2, 2, 2, 0."""
    sizes = {"hidden_size": 192, "num_attention_heads": 32, "num_key_value_heads": 1, "num_hidden_layers": 1}
    make = lambda: model("llama", tie_word_embeddings=True, **sizes)  # noqa: E731
    masks, _ = run_proxsparse(make(), folder="one", **ONE)
    for found, _ in in_processes(4, lambda rank: run_proxsparse(make(), folder="many", **ONE)):
        same_masks(found, masks)
    parts = shards(tmp_path / "many")
    lengths = {"lm_head.weight": [13, 13, 13, 11], "model.layers.0.self_attn.k_proj.weight": [2, 2, 2, 0]}
    for name, expected in lengths.items():
        assert [len(part["model"][name]) for part in parts] == expected
    assert_shards_of(parts, saved("one"))


@pytest.mark.parametrize("processes", [2, 4])
def test_more_micro_batches_differ_by_rounding(
    processes: int, in_processes: Callable, run_proxsparse: Callable, saved: Callable, tmp_path: Path
) -> None:
    """Four micro-batches are added as (a + b) + (c + d), or in any order, not as ((a + b) + c) + d."""
    options = ONE | {"batch_size": 4, "lr": 0.001}
    masks, curve = run_proxsparse(folder="one", **options)
    for found, found_curve in in_processes(processes, lambda rank: run_proxsparse(folder="many", **options)):
        for line, expected in zip(found_curve, curve, strict=True):
            assert line == pytest.approx(expected, rel=1e-4)
        for name, mask in masks.masks.items():
            assert (found.masks[name] != mask).double().mean() < 0.01
    parts = shards(tmp_path / "many")
    for name, value in saved("one")["model"].items():
        together = torch.cat([part["model"][name] for part in parts])
        # Where a gradient is nothing but rounding, Adam's step has the size of the rate and any sign.
        assert ((together - value).abs() > 1e-5).double().mean() < 0.01


@pytest.mark.parametrize(("how", "after"), [("signal", 1), ("kill", 2), ("signal", 4)])
def test_a_stopped_run_of_two_ends_as_if_it_had_not_been(
    how: str,
    after: int,
    in_processes: Callable,
    run_proxsparse: Callable,
    same_masks: Callable,
    saved: Callable,
    at_step: Callable,
    model: Callable,
    tmp_path: Path,
) -> None:
    options = ONE | {"steps": 4, "checkpoint_minutes": OFTEN}
    masks, curve = run_proxsparse(model(), folder="whole", **options)

    def stop() -> None:
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM if how == "signal" else signal.SIGKILL)

    at_step(2, stop)
    results = in_processes(2, lambda rank: run_proxsparse(model(), **options))
    at_step(-1, stop)
    assert results[1] is None if how == "kill" else results[1].code == EXIT_RESUMABLE
    assert max((tmp_path / "run").glob("*.pt")).name == f"step-{2 + (how == 'signal'):08d}-part-1-of-2.pt"
    for found, found_curve in in_processes(after, lambda rank: run_proxsparse(model(), **options)):
        same_masks(found, masks)
        assert [line["loss"] for line in found_curve] == [line["loss"] for line in curve]
    assert_shards_of(shards(tmp_path / "run"), saved("whole"))


def test_a_model_comes_back_unchanged(in_processes: Callable, run_proxsparse: Callable, tiny_model: Callable) -> None:
    def run(rank: int) -> bool:
        model = tiny_model().bfloat16()
        before, parameters = tiny_model().bfloat16().state_dict(), list(model.parameters())
        run_proxsparse(model, **ONE)
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return same and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))

    assert in_processes(2, run) == [True, True]


def test_rows_of_the_processes(in_processes: Callable, tiny_model: Callable) -> None:
    """A matrix has the rows that torch gives its process, also where these are none."""

    def rows(rank: int) -> list[bool]:
        with trainable_copy(tiny_model("gpt2", n_embd=20, n_inner=40, n_head=2)) as trained:
            linears = prunable_linears(trained.model)
            return [
                len(linear.weight.to_local().T) == row_bounds(linear.nf)[rank + 1] - row_bounds(linear.nf)[rank]
                for linear in linears.values()
            ]

    assert all(map(all, in_processes(4, rows)))
    assert in_processes(4, lambda rank: row_bounds(9)) == [[0, 3, 6, 9, 9]] * 4
    assert row_bounds(9) == [0, 9]
