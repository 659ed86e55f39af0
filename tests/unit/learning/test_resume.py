"""Tests of resumption: a stopped run ends as an uninterrupted one, or names the reason why it cannot."""

from __future__ import annotations

import errno
import importlib
import os
import random
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.errors import InputError
from patch.files import io
from patch.learning import loop
from patch.learning.checkpoint import Checkpoints, StepLog, read_states
from patch.learning.loop import EXIT_RESUMABLE, run_steps

learn_module = importlib.import_module("patch.learning.learn")
OFTEN = 1e-9  # minutes: a checkpoint after every step


class Crash(Exception):
    """Simulated death of the process."""


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Return a function that runs an action once in the middle of a step."""
    real = learn_module.batch_indices

    def arrange(wanted: int, action: Callable[[], None]) -> None:
        pending = [action]

        def batch_indices(step: int, *rest: Any) -> Any:
            if step == wanted and pending:
                pending.pop()()
            return real(step, *rest)

        monkeypatch.setattr(learn_module, "batch_indices", batch_indices)

    return arrange


def crash() -> None:
    raise Crash


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def in_fork() -> Callable[[Callable[[], Any]], int]:
    """Return a function that calls another in a forked process and returns the signal that ended it, or 0."""
    if torch.cuda.is_available():
        pytest.skip("autograd cannot be forked where there is a GPU")

    def run(function: Callable[[], Any]) -> int:
        pid = os.fork()
        if not pid:
            try:
                torch.set_num_threads(1)
                function()
            except BaseException:  # noqa: BLE001 - a fork must never come back as a second test session
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    return run


@pytest.fixture
def killed(
    run_learning: Callable, tiny_model: Callable, in_fork: Callable, moments: type, tmp_path: Path
) -> Callable[[str, float], None]:
    """Return a function that learns in a process that is killed after a given fraction of the run."""
    model = tiny_model()
    whole = lambda: run_learning(folder="counted", model=model, checkpoint_minutes=OFTEN)  # noqa: E731
    in_fork(lambda: (tmp_path / "moments").write_text(str(moments().during(whole))))
    count = int((tmp_path / "moments").read_text())

    def learn_and_die(folder: str, fraction: float) -> None:
        last = max(1, int(fraction * count))
        run = lambda: run_learning(folder=folder, model=model, checkpoint_minutes=OFTEN)  # noqa: E731
        assert in_fork(lambda: moments(last).during(run)) == signal.SIGKILL

    return learn_and_die


def test_kill_at_random_moments(killed: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path) -> None:
    masks, curve = run_learning(folder="whole")
    chance, found = random.Random(0), set()
    for number in range(20):
        folder = f"run{number}"
        killed(folder, 0.98 * chance.random())
        found.add(len(list((tmp_path / folder).glob("*.pt"))) and max((tmp_path / folder).glob("*.pt")).name)
        resumed, resumed_curve = run_learning(folder=folder, checkpoint_minutes=OFTEN)
        same_masks(resumed, masks)
        assert resumed_curve == curve
        assert not list((tmp_path / folder).glob(".*")), "halves of files stay"
    assert len(found) >= 4, "the moments are spread over the run"


def test_kill_again_and_again(killed: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path) -> None:
    """The resumed run is killed as well, even while it reads the checkpoint or rewrites the log."""
    masks, curve = run_learning(folder="whole")
    chance = random.Random(1)
    killed("run", 0.6)
    for _ in range(8):
        killed("run", 0.15 * chance.random())
    resumed, resumed_curve = run_learning(checkpoint_minutes=OFTEN)
    same_masks(resumed, masks)
    assert resumed_curve == curve


@pytest.mark.parametrize("moment", ["begun", "half", "written", "moved"])
def test_kill_in_the_middle_of_a_checkpoint(
    moment: str, in_fork: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    masks, curve = run_learning(folder="whole")
    real_save, real_sync, saves = torch.save, io._fsync, []

    def save(content: Any, path: Path) -> None:
        saves.append(path)
        if len(saves) == 3 and moment == "begun":
            die()
        real_save(content, path)
        if len(saves) == 3 and moment == "half":
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def sync(path: Path) -> None:
        if len(saves) == 3 and path.is_dir() == (moment == "moved"):
            die()
        real_sync(path)

    def run() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch, "save", save)
            patched.setattr(io, "_fsync", sync)
            run_learning(checkpoint_minutes=OFTEN)

    assert in_fork(run) == signal.SIGKILL
    newest = max((tmp_path / "run").glob("step-*.pt")).name
    assert newest == ("step-00000003.pt" if moment == "moved" else "step-00000002.pt")
    assert len(list((tmp_path / "run").glob(".step-*"))) == (moment != "moved")
    resumed, resumed_curve = run_learning(checkpoint_minutes=OFTEN)
    same_masks(resumed, masks)
    assert resumed_curve == curve
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("step", [0, 3])
def test_a_long_step_is_given_up(
    step: int,
    at_step: Callable,
    run_learning: Callable,
    same_masks: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state before a long step is saved between two micro-batches."""
    masks, curve = run_learning(folder="whole")
    real, micro_batches = learn_module.cross_entropy, []

    def cross_entropy(*arguments: Any) -> torch.Tensor:
        micro_batches.append(1)
        if len(micro_batches) == 2 * step + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "GRACE_PERIOD", 0.0)
        patched.setattr(learn_module, "cross_entropy", cross_entropy)
        with pytest.raises(SystemExit) as stopped:
            run_learning()
    assert stopped.value.code == EXIT_RESUMABLE
    assert len(micro_batches) == 2 * step + 1
    assert [path.name for path in (tmp_path / "run").glob("*.pt")] == [f"step-{step:08d}.pt"]
    resumed, resumed_curve = run_learning()
    same_masks(resumed, masks)
    assert resumed_curve == curve


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_signal_at_any_step(
    method: str, number: int, step: int, at_step: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    masks, curve = run_learning(method, folder="whole")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    at_step(step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        run_learning(method)
    assert stopped.value.code == EXIT_RESUMABLE == 75
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == handlers
    assert [path.name for path in (tmp_path / "run").glob("*.pt")] == [f"step-{step + 1:08d}.pt"]
    assert not (tmp_path / "run.jsonl").exists()
    resumed, resumed_curve = run_learning(method)
    same_masks(resumed, masks)
    assert resumed_curve == curve
    # The final state is kept until the caller has saved the masks, so a second call trains no step.
    again, again_curve = run_learning(method)
    same_masks(again, masks)
    assert again_curve == curve


@pytest.mark.parametrize("step", [0, 1, 4])
def test_a_crash_at_any_step(
    step: int, at_step: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    masks, curve = run_learning(folder="whole")
    at_step(step, crash)
    with pytest.raises(Crash):
        run_learning(checkpoint_minutes=OFTEN)
    found = sorted(path.name for path in (tmp_path / "run").glob("*.pt"))
    assert found == [f"step-{number:08d}.pt" for number in range(max(1, step - 1), step + 1)]
    resumed, resumed_curve = run_learning(checkpoint_minutes=OFTEN)
    same_masks(resumed, masks)
    assert resumed_curve == curve


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "no-mapping"])
def test_a_broken_newest_checkpoint_is_passed_over(
    damage: str,
    at_step: Callable,
    run_learning: Callable,
    same_masks: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    masks, curve = run_learning(folder="whole")
    at_step(3, crash)
    with pytest.raises(Crash):
        run_learning(checkpoint_minutes=OFTEN)
    newest = tmp_path / "run" / "step-00000003.pt"
    if damage == "truncated":
        newest.write_bytes(newest.read_bytes()[:-200])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "foreign":
        torch.save({"model": torch.ones(2)}, newest)
    else:
        torch.save([1, 2, 3], newest)
    capsys.readouterr()
    resumed, resumed_curve = run_learning(checkpoint_minutes=OFTEN)
    assert "resuming at step 2" in capsys.readouterr().out
    assert "is skipped" in caplog.text
    same_masks(resumed, masks)
    assert resumed_curve == curve


@pytest.mark.parametrize(
    "change", [{"lr": 0.02}, {"seed": 1}, {"sparsity": 0.3}, {"upstream": "another model"}, {"weight_reg": 1.0}]
)
def test_a_checkpoint_of_other_settings_is_not_resumed(
    change: dict[str, Any], at_step: Callable, run_learning: Callable, capsys: pytest.CaptureFixture
) -> None:
    _, expected = run_learning(folder="whole", **change)
    at_step(3, crash)
    with pytest.raises(Crash):
        run_learning(checkpoint_minutes=OFTEN)
    capsys.readouterr()
    _, curve = run_learning(checkpoint_minutes=10.0, **change)
    assert "resuming" not in capsys.readouterr().out
    assert curve == expected


def test_checkpoints_of_other_settings_do_not_crowd_out_its_own(
    at_step: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    masks, curve = run_learning(folder="whole", lr=0.02)
    at_step(4, crash)
    with pytest.raises(Crash):
        run_learning(checkpoint_minutes=OFTEN)
    at_step(2, crash)
    with pytest.raises(Crash):
        run_learning(checkpoint_minutes=OFTEN, lr=0.02)
    capsys.readouterr()
    resumed, resumed_curve = run_learning(checkpoint_minutes=OFTEN, lr=0.02)
    assert "resuming at step 2" in capsys.readouterr().out
    same_masks(resumed, masks)
    # The result does not depend on the checkpoint interval.
    assert resumed_curve == curve


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step(
    value: float, run_learning: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = learn_module.cross_entropy, []

    def spoiled(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (value if len(calls) > 6 else 1)

    monkeypatch.setattr(learn_module, "cross_entropy", spoiled)
    with pytest.raises(InputError, match="at step 3 of 5; lower the learning rate"):
        run_learning(checkpoint_minutes=OFTEN)
    newest = sorted((tmp_path / "run").glob("*.pt"))[-1]
    assert newest.name == "step-00000003.pt"
    state = torch.load(newest, weights_only=True)["state"]["masks"]
    assert all(logits.isfinite().all() for logits in state.values())


def test_a_full_disk_keeps_the_last_checkpoint(
    run_learning: Callable, same_masks: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, curve = run_learning(folder="whole")
    real, saved = torch.save, []

    def full(content: Any, path: Path) -> None:
        saved.append(path)
        if len(saved) > 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, path)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(InputError, match="No space left.*the last checkpoint is kept"):
            run_learning(checkpoint_minutes=OFTEN)
    assert sorted(os.listdir(tmp_path / "run")) == ["log.jsonl", "step-00000001.pt", "step-00000002.pt"]
    resumed, resumed_curve = run_learning()
    same_masks(resumed, masks)
    assert resumed_curve == curve


def test_a_file_system_that_takes_no_more(
    in_fork: Callable, run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    """The operating system's limit ends the third checkpoint in the middle."""
    masks, curve = run_learning(folder="whole")
    real, saved = torch.save, []

    def save(content: Any, path: Path) -> None:
        saved.append(path)
        if len(saved) == 3:
            size = os.path.getsize(tmp_path / "run/step-00000002.pt")
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        real(content, path)

    def run() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch, "save", save)
            with pytest.raises(InputError) as error:
                run_learning(checkpoint_minutes=OFTEN)
        (tmp_path / "message").write_text(str(error.value))

    assert in_fork(run) == 0
    message = (tmp_path / "message").read_text()
    assert "checkpoint of step 3 could not be written" in message and "the last checkpoint is kept" in message
    assert sorted(os.listdir(tmp_path / "run")) == ["log.jsonl", "step-00000001.pt", "step-00000002.pt"]
    resumed, resumed_curve = run_learning(checkpoint_minutes=OFTEN)
    same_masks(resumed, masks)
    assert resumed_curve == curve


def test_a_log_that_takes_no_more(in_fork: Callable, tmp_path: Path) -> None:
    def write() -> None:
        log = StepLog(tmp_path / "log.jsonl", 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
        with pytest.raises(InputError, match="log.jsonl could not be written: File too large.*the last checkpoint"):
            for step in range(10):
                log.write({"step": step})
        log.close()

    assert in_fork(write) == 0
    assert (tmp_path / "log.jsonl").stat().st_size == 50
    StepLog(tmp_path / "log.jsonl", 10).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_the_newest_two_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", "me")
    assert checkpoints.latest() is None
    for step in (1, 9, 10, 100):
        checkpoints.save(step, {"x": torch.tensor(step)})
    assert sorted(os.listdir(tmp_path / "c")) == ["step-00000010.pt", "step-00000100.pt"]
    step, files = checkpoints.latest()
    assert step == 100 and read_states(files)[0]["x"] == 100
    assert Checkpoints(tmp_path / "c", "other").latest() is None


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    """A pickle that names a callable is skipped and not executed."""

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "c").mkdir()
    torch.save({"identity": "me", "step": 1, "state": Evil()}, tmp_path / "c" / "step-00000001.pt")
    assert Checkpoints(tmp_path / "c", "me").latest() is None
    assert not (tmp_path / "owned").exists()


def test_log_drops_the_steps_that_are_done_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0, "a": 1}\n{"step": 1, "a": 2}\n{"step": 2, "a": 3}\n{"step": 3, "a"')
    log = StepLog(path, 2)
    log.write({"step": 2, "a": 4})
    log.close()
    assert path.read_text() == '{"step": 0, "a": 1}\n{"step": 1, "a": 2}\n{"step": 2, "a": 4}\n'
    StepLog(path, 0).close()
    assert path.read_text() == ""


def test_log_every(tmp_path: Path) -> None:
    run_steps(8, lambda step, may_stop: {"loss": 1.0}, {}, tmp_path / "c", "me", tmp_path / "curve.jsonl", log_every=3)
    steps = [line.split(",")[0] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert steps == ['{"step": 0', '{"step": 3', '{"step": 6', '{"step": 7']


def test_missing_loss_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the loss is None at step 0 of 1"):
        run_steps(1, lambda step, may_stop: {"loss": None}, {}, tmp_path / "c", "me", tmp_path / "curve.jsonl")
