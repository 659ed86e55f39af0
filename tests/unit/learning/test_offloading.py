"""Tests of gradients and moments in host memory: the numbers of those on the device, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.errors import InputError
from patch.learning.checkpoint import read_states
from patch.masks import host_memory
from patch.masks.host_memory import HostMemory

CHANGES = [{}, {"batch_size": 8, "micro_batch_size": 2, "max_grad_norm": 0.01, "weight_decay": 0.1}]


def assert_equal(found: Any, expected: Any) -> None:
    """Assert that two states are equal bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def states(folder: Path) -> list[dict[str, Any]]:
    """Return the states of all processes in the newest checkpoint."""
    newest = max(path.name.split("-")[1].removesuffix(".pt") for path in folder.glob("*.pt"))
    return read_states(sorted(folder.glob(f"step-{newest}*.pt")))


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
@pytest.mark.parametrize("changes", CHANGES, ids=["plain", "clipped"])
def test_masks_curve_and_state_of_one_process(
    method: str, changes: dict[str, Any], run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    masks, curve = run_learning(method, folder="device", **changes)
    found, found_curve = run_learning(method, folder="host", offload=True, **changes)
    same_masks(found, masks)
    assert found_curve == curve
    assert_equal(states(tmp_path / "host"), states(tmp_path / "device"))


@pytest.mark.parametrize("changes", CHANGES, ids=["plain", "clipped"])
def test_masks_curve_and_state_of_two_processes(
    changes: dict[str, Any], in_processes: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    in_processes(2, lambda rank: run_learning(folder="device", **changes))
    masks, curve = run_learning(folder="one", **changes)
    for found, found_curve in in_processes(2, lambda rank: run_learning(folder="host", offload=True, **changes)):
        same_masks(found, masks)
        assert found_curve == curve
    assert len(states(tmp_path / "host")) == 2
    assert_equal(states(tmp_path / "host"), states(tmp_path / "device"))


@pytest.mark.parametrize("first", [False, True])
def test_a_run_resumes_with_and_without(
    first: bool, in_processes: Callable, in_step: Callable, run_learning: Callable, same_masks: Callable
) -> None:
    masks, curve = run_learning(folder="whole")
    in_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    in_processes(1, lambda rank: run_learning(offload=first))
    found, found_curve = run_learning(offload=not first)
    same_masks(found, masks)
    assert found_curve == curve


def test_tensors_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked tensors are parts of blocks, of which a tensor larger than a block has its own."""
    sizes: list[int] = []

    def allocate(count: int, pin_memory: bool) -> torch.Tensor:
        assert pin_memory
        sizes.append(count)
        return torch.full((count,), -1.0)

    memory = HostMemory(torch.device("cuda"))
    monkeypatch.setattr(host_memory, "BLOCK", 10)
    monkeypatch.setattr(torch, "empty", allocate)
    shapes = [(2, 3), (4,), (1, 3), (6, 4), (2,)]
    tensors = [memory.empty(torch.Size(shape)).fill_(number) for number, shape in enumerate(shapes)]
    assert [tuple(tensor.shape) for tensor in tensors] == shapes
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))
    assert sizes == [10, 10, 24]


def test_a_host_with_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(count: int, pin_memory: bool) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory\nand more lines")

    memory = HostMemory(torch.device("cuda"))
    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(InputError, match=r"4.0 GB of the host's memory .*\(CUDA error: out of memory\); ask for more"):
        memory.empty(torch.Size((10**9,)))
