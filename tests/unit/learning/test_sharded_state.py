"""Tests of sharded checkpoints: only complete ones are valid, and any number of processes resumes from them."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patch.distributed import collectives as distributed
from patch.distributed.signals import EXIT_RESUMABLE
from patch.errors import InputError
from patch.learning import checkpoint, loop
from patch.learning.checkpoint import Checkpoints, read_states
from patch.learning.loop import run_steps
from patch.learning.sharded_state import StateShard, assemble

OFTEN = 1e-9  # minutes: a checkpoint after every step
# Few: processes that share a core take milliseconds for each exchange.
RUN = {"batch_size": 2, "micro_batch_size": 1, "steps": 5}


def files_of(step: int, parts: int) -> list[str]:
    return [f"step-{step:08d}-part-{part}-of-{parts}.pt" for part in range(parts)]


@pytest.fixture
def stopped(in_step: Callable, in_processes: Callable, run_learning: Callable) -> Callable[..., None]:
    """Return a function that learns in several processes up to step 3, with checkpoints of steps 2 and 3."""

    def run(processes: int, **changes: Any) -> None:
        in_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        results = in_processes(processes, lambda rank: run_learning(checkpoint_minutes=OFTEN, **RUN | changes))
        assert [result.code for result in results] == [EXIT_RESUMABLE] * processes
        in_step(-1, lambda: None)

    return run


@pytest.mark.parametrize(
    ("before", "after", "method"), [(4, 1, "patch-joint"), (1, 3, "maskllm"), (2, 4, "patch-joint")]
)
def test_another_number_of_processes_resumes_bit_for_bit(
    before: int,
    after: int,
    method: str,
    stopped: Callable,
    in_processes: Callable,
    run_learning: Callable,
    same_masks: Callable,
    tmp_path: Path,
) -> None:
    changes = {"method": method, "batch_size": 12 if 3 in (before, after) else 4}
    options: dict[str, Any] = RUN | changes
    masks, curve = run_learning(folder="whole", **options)
    stopped(before, **changes)
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pt"))
    wanted = [*files_of(2, before), *files_of(3, before)] if before > 1 else ["step-00000002.pt", "step-00000003.pt"]
    assert names == wanted
    for found, found_curve in in_processes(after, lambda rank: run_learning(checkpoint_minutes=OFTEN, **options)):
        same_masks(found, masks)
        assert found_curve == curve


def test_kill_one_or_all_at_random_moments(
    in_processes: Callable, run_learning: Callable, same_masks: Callable, moments: type, tmp_path: Path
) -> None:
    masks, curve = run_learning(folder="whole", **RUN)

    def counted(rank: int) -> int:
        return moments().during(lambda: run_learning(folder="counted", checkpoint_minutes=OFTEN, **RUN))

    counts, chance, found = in_processes(2, counted), random.Random(3), set()
    for number in range(6):
        folder, fraction, victims = f"run{number}", (number + chance.random()) / 6.5, [{0}, {1}, {0, 1}][number % 3]

        def dies(rank: int, folder: str = folder, fraction: float = fraction, victims: set[int] = victims) -> Any:
            last = max(1, int(fraction * counts[rank])) if rank in victims else 0
            moments(last).during(lambda: run_learning(folder=folder, checkpoint_minutes=OFTEN, **RUN))

        # If one process stops, the other fails or finishes.
        assert {in_processes(2, dies)[victim] for victim in victims} == {None}
        steps = {path.name[:13] for path in (tmp_path / folder).glob("step-*.pt")}
        found.add(max(steps, default=""))
        resume = lambda rank, folder=folder: run_learning(folder=folder, checkpoint_minutes=OFTEN, **RUN)  # noqa: E731
        for resumed, resumed_curve in in_processes(2, resume) if number % 2 else [resume(0)]:
            same_masks(resumed, masks)
            assert resumed_curve == curve
        assert not list((tmp_path / folder).glob(".*")), "halves of files stay"
    assert len(found) >= 3, "the moments are spread over the run"


@pytest.mark.parametrize("damage", ["truncated", "missing", "of another moment"])
def test_a_step_of_which_a_part_is_no_good_is_passed_over(
    damage: str,
    stopped: Callable,
    in_processes: Callable,
    run_learning: Callable,
    same_masks: Callable,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    masks, curve = run_learning(folder="whole", **RUN)
    stopped(2)
    part = tmp_path / "run" / files_of(3, 2)[1]
    if damage == "truncated":
        part.write_bytes(part.read_bytes()[:-200])
    elif damage == "missing":
        part.unlink()
    else:
        torch.save(torch.load(part, weights_only=True) | {"moment": "before"}, part)
    capfd.readouterr()
    for found, found_curve in in_processes(2, lambda rank: run_learning(checkpoint_minutes=OFTEN, **RUN)):
        same_masks(found, masks)
        assert found_curve == curve
    assert "resuming at step 2" in capfd.readouterr().out
    left = [*files_of(4, 2), *files_of(5, 2)]
    assert sorted(path.name for path in (tmp_path / "run").glob("*.pt")) == left


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_in_one_keeps_the_last_step_of_all(
    full: int,
    in_processes: Callable,
    run_learning: Callable,
    same_masks: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks, curve = run_learning(folder="whole", **RUN)
    real, saved = torch.save, []

    def save(content: Any, path: Path) -> None:
        saved.append(path)
        if len(saved) > 2 and distributed.rank() == full:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(content, path)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        results = in_processes(2, lambda rank: run_learning(checkpoint_minutes=OFTEN, **RUN))
    assert all(isinstance(error, InputError) for error in results) and len({str(error) for error in results}) == 1
    assert "checkpoint of step 3" in str(results[0]) and "the last checkpoint is kept" in str(results[0])
    assert sorted(os.listdir(tmp_path / "run")) == ["log.jsonl", *files_of(1, 2), *files_of(2, 2)]
    for found, found_curve in in_processes(2, lambda rank: run_learning(checkpoint_minutes=OFTEN, **RUN)):
        same_masks(found, masks)
        assert found_curve == curve


class Held:
    """State of one tensor."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["x"]


def run_held(state: Held, rank: int, folder: Path, steps: int = 2) -> None:
    shards = {"x": StateShard(2 * rank, 2, 4)}
    step = lambda number, may_stop: {"loss": 1.0}  # noqa: E731
    run_steps(steps, step, {"held": state}, folder, "me", folder / "curve.jsonl", OFTEN, shards=shards)


@pytest.mark.parametrize("spoiled", [0, 1])
def test_a_part_that_is_not_finite_stops_all(spoiled: int, in_processes: Callable, tmp_path: Path) -> None:
    def run(rank: int) -> None:
        run_held(Held(torch.full((3, 2), float("nan") if rank == spoiled else 1.0)), rank, tmp_path / "run")

    results = in_processes(2, run)
    assert {str(error) for error in results} == {"the state `held` is not finite after step 0; lower the learning rate"}
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_part_that_the_first_does_not_see_stops_all(
    in_processes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes with separate folders of one name are refused, and the last visible checkpoint stays."""
    monkeypatch.setattr(checkpoint, "VISIBLE_TIMEOUT", 0.2)
    folders = [tmp_path / "a", tmp_path / "b"]
    results = in_processes(2, lambda rank: run_held(Held(torch.ones(3, 2)), rank, folders[rank]))
    assert all("must share the folder" in str(error) for error in results)
    assert files_of(1, 2)[1] in str(results[1]), "names the file"


def test_a_step_that_is_given_up_again_is_not_written_again(
    stopped: Callable,
    in_step: Callable,
    in_processes: Callable,
    run_learning: Callable,
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    """A step that is abandoned right after a resume does not rewrite its checkpoint."""
    stopped(2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.pt")}
    monkeypatch.setattr(loop, "GRACE_PERIOD", 0.0)
    # Between the micro-batches of the first step, which is the one that was saved.
    in_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    results = in_processes(2, lambda rank: run_learning(checkpoint_minutes=OFTEN, **RUN))
    assert [result.code for result in results] == [EXIT_RESUMABLE] * 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.pt")} == before


def test_a_checkpoint_of_one_file_of_before(tmp_path: Path) -> None:
    """Checkpoints of earlier versions are resumed."""
    (tmp_path / "c").mkdir()
    torch.save({"identity": "me", "step": 4, "state": {"x": torch.ones(2)}}, tmp_path / "c/step-00000004.pt")
    step, files = Checkpoints(tmp_path / "c", "me").latest()
    assert step == 4 and torch.equal(read_states(files)[0]["x"], torch.ones(2))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_parts_make_any_other_parts(before: list[int], after: list[int]) -> None:
    width = sum(before)
    after = [*(min(size, width // len(after)) for size in after)]
    after.append(width - sum(after))
    whole = torch.randn(6, width)
    parts = [{0: {"m": m, "step": torch.tensor(3.0)}, "tiles": torch.ones(6, 2)} for m in whole.split(before, 1)]
    first = 0
    for size in after:
        found = assemble(parts, {0: StateShard(first, size, width)})
        assert torch.equal(found[0]["m"], whole[:, first : first + size]) and found[0]["step"] == 3
        assert torch.equal(found["tiles"], torch.ones(6, 2)), "what is not shared out is the same in all"
        assert not any(found[0]["m"].data_ptr() == part[0]["m"].data_ptr() for part in parts if found[0]["m"].numel())
        first += size


def test_parts_of_another_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shards of \[2, 3\] columns do not make 6"):
        assemble([{"x": torch.ones(6, 2)}, {"x": torch.ones(6, 3)}], {"x": StateShard(0, 3, 6)})
