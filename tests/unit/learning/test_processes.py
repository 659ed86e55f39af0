"""Tests of several processes: the results of one process, and common decisions to save, stop and fail."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.distributed import collectives as distributed
from patch.distributed.signals import EXIT_RESUMABLE
from patch.errors import InputError
from patch.learning import loop
from patch.learning.checkpoint import read_states

learn_module = importlib.import_module("patch.learning.learn")
METHODS = ["maskllm", "patch-joint", "patch-tile"]
OFTEN = 1e-9  # minutes: a checkpoint after every step


def files_of(step: int, parts: int) -> list[str]:
    names = [f"-part-{part}-of-{parts}" for part in range(parts)] if parts > 1 else [""]
    return [f"step-{step:08d}{name}.pt" for name in names]


def logits(folder: Path, step: int = 5, parts: int = 1) -> dict[str, torch.Tensor]:
    """Return the pattern logits of all processes side by side, and the replicated tile logits."""
    states = [torch.load(folder / file, weights_only=True)["state"]["masks"] for file in files_of(step, parts)]
    for name in states[0]:
        assert name.endswith("pattern_logits") or all(torch.equal(states[0][name], state[name]) for state in states)
    shared = {name: [state[name] for state in states] for name in states[0] if name.endswith("pattern_logits")}
    return states[0] | {name: torch.cat(parts, 1) for name, parts in shared.items()}


@pytest.mark.parametrize("method", METHODS)
def test_two_micro_batches_on_two_processes_are_one_process_bit_for_bit(
    method: str, in_processes: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    masks, curve = run_learning(method, folder="one")
    results = in_processes(2, lambda rank: run_learning(method, folder="two"))
    for found, found_curve in results:
        same_masks(found, masks)
        assert found_curve == curve
    expected = logits(tmp_path / "one")
    parts = 1 if method == "patch-tile" else 2
    assert all(torch.equal(value, expected[name]) for name, value in logits(tmp_path / "two", 5, parts).items())
    assert sorted(os.listdir(tmp_path / "two")) == ["log.jsonl", *files_of(5, parts)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (2, {}),
        (4, {"weight_decay": 0.1, "max_grad_norm": 0.01, "weight_reg_form": "norm_ratio"}),
        (2, {"max_grad_norm": 0.01, "target": "block", "weight_reg_form": "norm_sum"}),
        (4, {"gradient_checkpointing": True}),
        (3, {"micro_batch_size": 2, "hard": True}),
    ],
)
def test_any_number_of_processes_learns_the_same_bit_for_bit(
    processes: int,
    changes: dict[str, Any],
    method: str,
    in_processes: Callable,
    run_learning: Callable,
    same_masks: Callable,
    tmp_path: Path,
) -> None:
    """The cases include several micro-batches a process, and fewer rows of tiles than processes."""
    options = {"batch_size": 12, "micro_batch_size": 1, "steps": 3} | changes
    masks, curve = run_learning(method, folder="one", **options)
    results = in_processes(processes, lambda rank: run_learning(method, folder="many", **options))
    for found, found_curve in results:
        same_masks(found, masks)
        assert found_curve == curve
    expected = logits(tmp_path / "one", 3)
    for name, value in logits(tmp_path / "many", 3, 1 if method == "patch-tile" else processes).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_the_balance_of_loss_and_regularisers_is_that_of_one_process(
    method: str, in_processes: Callable, run_learning: Callable
) -> None:
    """Four accumulations in one process and one in each of four give the same terms of the loss."""
    options = {"batch_size": 4, "micro_batch_size": 1, "steps": 3, "sparsity_reg": 7.0, "weight_reg": 10.0}
    _, curve = run_learning(method, folder="accumulated", **options)
    for _, found in in_processes(4, lambda rank: run_learning(method, folder="shared", **options)):
        assert len(found) == len(curve) == 3
        for line, expected in zip(found, curve, strict=True):
            for part in ("loss", "cross_entropy", "density", "kept_norm"):
                assert line[part] == pytest.approx(expected[part], rel=1e-5), part


def test_micro_batches_that_cannot_be_shared(in_processes: Callable, run_learning: Callable) -> None:
    results = in_processes(2, lambda rank: run_learning(batch_size=6))
    for error in results:
        assert isinstance(error, InputError)
        assert "6 in micro-batches of 2 makes 3, which 2 processes" in str(error)
        assert "make micro_batch_size 1, or use 1 of them" in str(error)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "hint"),
    [(8, 8, 2, "make micro_batch_size 4, or use 1 "), (10, 1, 4, "make batch_size a multiple of 4, or use 2 ")],
)
def test_what_would_be_right(batch: int, micro: int, processes: int, hint: str, learning_settings: Callable) -> None:
    with pytest.raises(InputError, match=hint):
        learning_settings(batch_size=batch, micro_batch_size=micro).micro_batches(0, processes)


def test_micro_batches_are_shared_out_in_order(learning_settings: Callable) -> None:
    settings = learning_settings(batch_size=12, micro_batch_size=2)
    assert settings.micro_batches() == range(6)
    assert [list(settings.micro_batches(rank, 3)) for rank in range(3)] == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_stops_all_after_the_same_step(
    number: int,
    asked: int,
    in_processes: Callable,
    in_step: Callable,
    run_learning: Callable,
    same_masks: Callable,
    tmp_path: Path,
) -> None:
    masks, curve = run_learning(folder="whole")
    in_step(2, lambda: os.kill(os.getpid(), number) if distributed.rank() == asked else None)
    results = in_processes(2, lambda rank: run_learning())
    assert [stopped.code for stopped in results] == [EXIT_RESUMABLE] * 2
    assert sorted(path.name for path in (tmp_path / "run").glob("*.pt")) == files_of(3, 2)
    # One process resumes the run of two.
    in_step(-1, lambda: None)
    resumed, resumed_curve = run_learning()
    same_masks(resumed, masks)
    assert resumed_curve == curve


def test_all_give_up_the_same_step(
    in_processes: Callable,
    run_learning: Callable,
    same_masks: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks, curve = run_learning(folder="whole", micro_batch_size=1)
    real, calls = learn_module.cross_entropy, []

    def cross_entropy(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "GRACE_PERIOD", 0.0)
        patched.setattr(learn_module, "cross_entropy", cross_entropy)
        results = in_processes(2, lambda rank: run_learning(micro_batch_size=1))
    assert [stopped.code for stopped in results] == [EXIT_RESUMABLE] * 2
    assert sorted(path.name for path in (tmp_path / "run").glob("*.pt")) == files_of(2, 2)
    for found, found_curve in in_processes(2, lambda rank: run_learning(micro_batch_size=1)):
        same_masks(found, masks)
        assert found_curve == curve


def test_all_resume_from_what_the_first_finds_good(
    in_processes: Callable, in_step: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    masks, curve = run_learning(folder="whole")
    in_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run_learning(checkpoint_minutes=OFTEN)
    in_step(-1, lambda: None)
    newest = tmp_path / "run/step-00000004.pt"
    newest.write_bytes(newest.read_bytes()[:-200])
    for found, found_curve in in_processes(2, lambda rank: run_learning(checkpoint_minutes=OFTEN)):
        same_masks(found, masks)
        assert found_curve == curve


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spoiled", [0, 1])
def test_a_loss_that_is_not_finite_in_one_stops_all(
    value: float, spoiled: int, in_processes: Callable, run_learning: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = learn_module.cross_entropy, []

    def spoil(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (value if len(calls) > 3 and distributed.rank() == spoiled else 1)

    monkeypatch.setattr(learn_module, "cross_entropy", spoil)
    results = in_processes(2, lambda rank: run_learning())
    assert all(isinstance(error, InputError) for error in results)
    assert len({str(error) for error in results}) == 1
    assert f"the loss is {value} at step 3 of 5" in str(results[0])


def test_a_full_disk_stops_all(in_processes: Callable, run_learning: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    results = in_processes(2, lambda rank: run_learning(checkpoint_minutes=OFTEN))
    assert len({str(error) for error in results}) == 1
    assert isinstance(results[1], InputError) and "checkpoint of step 1" in str(results[1])


def test_a_folder_that_another_process_does_not_see(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="step-00000003.pt cannot be read on .*must share the folder"):
        read_states([tmp_path / "step-00000003.pt"])


@pytest.mark.parametrize("piece", [1, 4, 5, 1000])
def test_sums_in_pieces(piece: int, in_processes: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "PIECE", piece)
    shapes = [(3,), (4, 5), (1,), (2, 2), ()]

    def add(rank: int) -> list[list[float]]:
        tensors = [torch.arange(torch.Size(shape).numel()).reshape(shape) + 10.0**rank for shape in shapes]
        distributed.sum_over_processes(tensors)
        return [tensor.tolist() for tensor in tensors]

    expected = [(3 * torch.arange(torch.Size(shape).numel()).reshape(shape) + 111.0).tolist() for shape in shapes]
    assert in_processes(3, add) == [expected] * 3


def test_agreement(in_processes: Callable) -> None:
    def agree(rank: int) -> tuple:
        return distributed.any_of(rank == 1, False, rank < 2), distributed.from_first({"rank": rank})

    assert in_processes(2, agree) == [([True, False, True], {"rank": 0})] * 2


def test_alone_everything_is_local() -> None:
    value = torch.ones(3)
    distributed.sum_over_processes([value])
    assert value.tolist() == [1, 1, 1]
    assert list(distributed.any_of(True, False)) == [True, False]
    assert distributed.from_first("x") == "x"
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
