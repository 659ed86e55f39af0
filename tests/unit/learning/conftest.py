"""Fixtures: learning runs of a few steps on a tiny model."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from patch.errors import InputError
from patch.learning.learn import learn
from patch.learning.learning_settings import Learning
from patch.learning.proxsparse import proxsparse
from patch.learning.schedules import batch_indices
from patch.learning.trackers import UNTRACKED, Tracking
from patch.masks.nm import NM, Unstructured, nm_mask
from patch.masks.packed import MaskSet
from patch.models.loading import prunable_linears, weight_matrix
from patch.pruning.magnitude import magnitude

learn_module = importlib.import_module("patch.learning.learn")
proxsparse_module = importlib.import_module("patch.learning.proxsparse")
# Values that depend on the machine.
TIMES = ("seconds", "tokens_per_second", "peak_memory_mb")


@pytest.fixture
def learning_settings() -> Callable[..., Learning]:
    """Return a function that makes the settings of a tiny run with the given keys changed."""

    def make(**changes: Any) -> Learning:
        values = {
            "use": {"corpus": "text", "split": "train"},
            "steps": 5,
            "batch_size": 4,
            "micro_batch_size": 2,
            "seqlen": 12,
            "lr": 0.01,
            "warmup_steps": 1,
        }
        return Learning(**values | changes)

    return make


@pytest.fixture
def priors() -> Callable[[torch.nn.Module, float], dict[str, dict[str, torch.Tensor]]]:
    """Return a function that makes the initial and frozen masks of a model as arguments of `learn`."""

    def make(model: torch.nn.Module, sparsity: float) -> dict[str, dict[str, torch.Tensor]]:
        weights = {name: weight_matrix(linear) for name, linear in prunable_linears(model).items()}
        generator = torch.Generator().manual_seed(42)
        return {
            "pattern_prior": {name: magnitude(weight, NM(2, 4)) for name, weight in weights.items()},
            "tile_prior": {name: magnitude(weight, Unstructured(sparsity)) for name, weight in weights.items()},
            "frozen": {
                name: nm_mask(torch.randn(weight.shape, generator=generator), NM(2, 4))
                for name, weight in weights.items()
            },
        }

    return make


@pytest.fixture
def run_learning(
    tiny_model: Callable, sequences: Callable, learning_settings: Callable, priors: Callable, tmp_path: Path
) -> Callable[..., tuple[MaskSet, list[dict[str, Any]]]]:
    """Return a function that learns and returns masks and curve without times; keywords change the settings."""

    def run(
        method: str = "patch-joint",
        sparsity: float = 0.4,
        folder: str = "run",
        seed: int = 0,
        model: torch.nn.Module | None = None,
        upstream: str = "",
        tile: int = 4,
        tracking: Tracking = UNTRACKED,
        offload: bool = False,
        **changes: Any,
    ) -> tuple[MaskSet, list[dict[str, Any]]]:
        model = model or tiny_model()
        hybrid = method != "maskllm"
        curve = tmp_path / f"{folder}.jsonl"
        masks = learn(
            model,
            method,
            sequences(10),
            learning_settings(**changes),
            sparsity if hybrid else 0.5,
            tile if hybrid else None,
            seed,
            folder=tmp_path / folder,
            curve=curve,
            upstream=upstream,
            tracking=tracking,
            offload=offload,
            **priors(model, sparsity),
        )
        lines = [json.loads(line) for line in curve.read_text().splitlines()]
        return masks, [{key: value for key, value in line.items() if key not in TIMES} for line in lines]

    return run


@pytest.fixture
def run_proxsparse(
    tiny_model: Callable, sequences: Callable, learning_settings: Callable, tmp_path: Path
) -> Callable[..., tuple[MaskSet, list[dict[str, Any]]]]:
    """Return a function that returns masks and curve without times of a tiny run; keywords change the settings."""

    def run(
        model: torch.nn.Module | None = None, folder: str = "run", seed: int = 0, upstream: str = "", **changes: Any
    ) -> tuple[MaskSet, list[dict[str, Any]]]:
        settings = learning_settings(**{"steps": 4, "prox_strength": 0.5} | changes)
        curve = tmp_path / f"{folder}.jsonl"
        masks = proxsparse(model or tiny_model(), sequences(10), settings, seed, tmp_path / folder, curve, upstream)
        lines = [json.loads(line) for line in curve.read_text().splitlines()]
        return masks, [{key: value for key, value in line.items() if key not in TIMES} for line in lines]

    return run


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that reads a ProxSparse run's newest checkpoint in one file."""

    def load(folder: str = "run") -> dict[str, Any]:
        return torch.load(max((tmp_path / folder).glob("*.pt")), weights_only=True)["state"]

    return load


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Return a function that runs an action once in the middle of a step."""

    def arrange(wanted: int, action: Callable[[], None]) -> None:
        pending = [action]

        def spy(step: int, *rest: Any) -> Any:
            if step == wanted and pending:
                pending.pop()()
            return batch_indices(step, *rest)

        monkeypatch.setattr(proxsparse_module, "batch_indices", spy)

    return arrange


def assert_same_masks(one: MaskSet, other: MaskSet) -> None:
    """Assert that two sets of masks are equal bit for bit."""
    assert set(one.masks) == set(other.masks) and set(one.tiles) == set(other.tiles)
    assert all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())
    assert all(torch.equal(tiles, other.tiles[name]) for name, tiles in one.tiles.items())


@pytest.fixture
def same_masks() -> Callable[[MaskSet, MaskSet], None]:
    """Return `assert_same_masks`."""
    return assert_same_masks


@pytest.fixture
def in_processes(tmp_path: Path) -> Callable[[int, Callable[[int], Any]], list[Any]]:
    """Return a function that calls another in the ranks of a process group and returns their results.

    An `InputError` or `SystemExit` is a result, too; the result of a process that died or failed otherwise is None.
    """
    if torch.cuda.is_available():
        pytest.skip("autograd cannot be forked where there is a GPU")
    groups = iter(range(100))

    def run(count: int, function: Callable[[int], Any]) -> list[Any]:
        group = next(groups)
        results = [tmp_path / f"group-{group}-{rank}" for rank in range(count)]
        pids = [_fork(rank, count, tmp_path / f"store-{group}", function, results[rank]) for rank in range(count)]
        deadline = time.monotonic() + 60
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while running := [pid for pid in pids if os.waitid(os.P_PID, pid, ended) is None]:
            if time.monotonic() > deadline:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                pytest.fail(f"{len(running)} of {count} processes hang")
            time.sleep(0.01)
        for pid in pids:
            os.waitpid(pid, 0)
        return [pickle.loads(path.read_bytes()) if path.exists() else None for path in results]

    return run


class Moments:
    """Profiler that counts calls and returns, those of C functions too, and kills its process at a given count."""

    def __init__(self, last: int = 0) -> None:
        self.count, self.last = 0, last

    def __call__(self, *event: Any) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def during(self, function: Callable[[], Any]) -> int:
        sys.setprofile(self)
        try:
            function()
        finally:
            sys.setprofile(None)
        return self.count


@pytest.fixture
def moments() -> type[Moments]:
    """Return the profiler that kills a process at a given count."""
    return Moments


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Return a function that runs an action at the beginning of a step in forked processes."""
    real = learn_module.batch_indices

    def arrange(wanted: int, action: Callable[[], None]) -> None:
        def batch_indices(step: int, *rest: Any) -> Any:
            if step == wanted:
                action()
            return real(step, *rest)

        monkeypatch.setattr(learn_module, "batch_indices", batch_indices)

    return arrange


def _fork(rank: int, count: int, store: Path, function: Callable[[int], Any], result: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        # A fork lacks the threads of its parent, and waiting for them would never end.
        torch.set_num_threads(1)
        method, timeout = f"file://{store}", timedelta(seconds=30)
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=count, timeout=timeout)
        try:
            value = function(rank)
        except (InputError, SystemExit) as error:
            value = error
        result.write_bytes(pickle.dumps(value))
        dist.barrier()
    except BaseException:  # noqa: BLE001 - a fork must never come back as a second test session
        traceback.print_exc()
    os._exit(0)
