"""Training loop of all optimisations: steps, checkpoints, signals and progress."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from patch.distributed.collectives import any_of, from_first, is_first, on_all, on_first
from patch.distributed.signals import EXIT_RESUMABLE, StopRequest, stop_request
from patch.errors import InputError
from patch.files.io import atomic_file
from patch.learning.checkpoint import Checkpoints, StepLog, read_states
from patch.learning.curve import read_lines
from patch.learning.progress import Progress
from patch.learning.sharded_state import StateShard, assemble
from patch.learning.trackers import UNTRACKED, Trackers, Tracking

# File of the growing log, in the folder of the checkpoints.
LOG = "log.jsonl"
# Grace period for the current step, in seconds, when the run is to stop.
GRACE_PERIOD = 5.0
# Function of a step's number and of a callable that abandons the step, see `run_steps`.
StepFunction = Callable[[int, Callable[[], None]], dict[str, float | None]]


class Stateful(Protocol):
    """Object with a state that a checkpoint holds: a module or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def run_steps(
    steps: int,
    step_fn: StepFunction,
    state: dict[str, Stateful],
    folder: Path,
    identity: str,
    curve: Path,
    checkpoint_minutes: float = 10.0,
    log_every: int = 1,
    name: str = "step",
    tracking: Tracking = UNTRACKED,
    shards: Mapping[Hashable, StateShard] | None = None,
    note: Callable[[], str] = lambda: "",
) -> None:
    """Run ``step_fn`` for every step, resuming from the newest checkpoint in ``folder``.

    With several processes (see `patch.distributed`) all run every step and stop after the same one. The first prints,
    and writes all files but the other processes' shards of the checkpoints.

    Args:
        steps: number of optimizer steps.
        step_fn: runs one step and returns the values to log; the key `loss` must be finite, and the same in all
            processes. While it has not changed ``state`` yet, such as between micro-batches, it may call its second
            argument, equally often in all processes: a long step is abandoned there when the run is to stop.
        state: state that checkpoints hold; the same in all processes but for ``shards``.
        folder: folder of the checkpoints and the growing log; the caller removes it once the run's result is saved.
        identity: description of the run, see `Checkpoints`.
        curve: file of the finished log.
        checkpoint_minutes: wall time between checkpoints, in minutes.
        log_every: number of steps between log lines.
        name: label of the progress line.
        tracking: experiment trackers and progress reports.
        shards: the parts that this process holds of the sharded tensors in ``state``, see `assemble`.
        note: returns text to show with the progress, or an empty string.

    Raises:
        InputError: the loss or the state is not finite (the message names the step), the disk is full, or the log of
            the steps before every checkpoint is damaged. The last valid checkpoint stays.
        SystemExit: with `EXIT_RESUMABLE`, after SIGTERM, SIGUSR1 or SIGUSR2 and a checkpoint.
    """
    checkpoints = Checkpoints(folder, identity, sharded=bool(shards))
    logged = [step for step in range(steps) if step % log_every == 0 or step == steps - 1]
    first = _resume(checkpoints, state, shards or {}, lambda step: _gap(folder / LOG, logged, step))
    record = _Record(name, first, steps, logged, folder, tracking, note) if is_first() else None
    saved, saved_step = time.monotonic(), first or None
    with stop_request() as stop, record or nullcontext():
        may_stop = _abandon_when(stop)
        for step in range(first, steps):
            try:
                metrics = step_fn(step, may_stop)
            except _Abandoned:
                # An existing checkpoint is not replaced shard by shard.
                if step != saved_step:
                    _save(checkpoints, step, state, record)
                _leave(step, steps)
            loss = metrics["loss"]
            if loss is None or not math.isfinite(loss):
                kept = f"the last checkpoint is kept in {folder}"
                raise InputError(f"the loss is {loss} at step {step} of {steps}; lower the learning rate ({kept})")
            if record:
                record.add(step, metrics, loss)
            # A signal reaches some processes a step before others, and their clocks differ.
            elapsed = time.monotonic() - saved
            leave, due = any_of(stop.requested, is_first() and elapsed > 60 * checkpoint_minutes)
            if leave or due or step == steps - 1:
                _save(checkpoints, step + 1, state, record)
                saved, saved_step = time.monotonic(), step + 1
            if leave:
                _leave(step + 1, steps)
    # All processes wait, so that the curve exists when any of them returns.
    on_first(partial(_copy, folder / LOG, curve))


class _Abandoned(BaseException):
    """Signal that a step is abandoned; a BaseException, so that no handler of errors catches it."""


def _abandon_when(stop: StopRequest) -> Callable[[], None]:
    """Return a function that abandons a step that lasts over `GRACE_PERIOD` seconds after a stop request."""
    since = math.inf

    def check() -> None:
        nonlocal since
        now = time.monotonic()
        if stop.requested:
            since = min(since, now)
        if any_of(now - since >= GRACE_PERIOD)[0]:
            raise _Abandoned

    return check


class _Record:
    """Record of a run's steps: its log, its progress and its experiment trackers."""

    def __init__(
        self,
        name: str,
        first: int,
        steps: int,
        logged: list[int],
        folder: Path,
        tracking: Tracking,
        note: Callable[[], str],
    ) -> None:
        self.logged, self.started, self.note = set(logged), time.monotonic(), note
        self.log = StepLog(folder / LOG, first)
        self.trackers = Trackers(tracking, first, folder)
        self.progress = Progress(name, first, steps, tracking.on_progress)

    def add(self, step: int, metrics: dict[str, float | None], loss: float) -> None:
        if step in self.logged:
            line = {"step": step, **metrics, "seconds": round(time.monotonic() - self.started, 3)}
            self.log.write(line)
            self.trackers.log(step, line)
        self.progress.show(step + 1, loss, self.note())

    def __enter__(self) -> _Record:
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.close()
        self.log.close()
        self.trackers.close()


def _leave(done: int, steps: int) -> NoReturn:
    if is_first():
        print(f"stopped by a signal after step {done} of {steps}; run again to resume", flush=True)
    sys.exit(EXIT_RESUMABLE)


def _save(checkpoints: Checkpoints, step: int, state: dict[str, Stateful], record: _Record | None) -> None:
    """Save a state after checking that it is finite: gradients can be NaN one step before the loss is."""
    values = {key: part.state_dict() for key, part in state.items()}

    def check() -> None:
        for key, part in values.items():
            if not all(tensor.isfinite().all() for tensor in _tensors(part)):
                raise InputError(f"the state `{key}` is not finite after step {step - 1}; lower the learning rate")
        if record:
            # A log that ends before its checkpoint would leave a gap in the curve.
            record.log.sync()

    on_all(check)
    checkpoints.save(step, values)


def _copy(source: Path, target: Path) -> None:
    try:
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise InputError(f"the curve {target} could not be written: {error.strerror}; run again to resume") from error


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _gap(log: Path, logged: list[int], first: int) -> str:
    """Return the fault of the log before step ``first``, whose lines a resumed run does not write again."""
    lines, fault = read_lines(log)
    for index, step in enumerate(step for step in logged if step < first):
        if index == len(lines) and fault:
            return fault
        if index == len(lines) or lines[index].step != step:
            return f"{log}, line {index + 1}: no line of step {step}"
    return ""


def _resume(
    checkpoints: Checkpoints,
    state: dict[str, Stateful],
    shards: Mapping[Hashable, StateShard],
    gap: Callable[[int], str],
) -> int:
    """Load the newest checkpoint into ``state`` and return the step to resume at, or 0."""
    found: list[tuple[int, list[Path]] | None] = []
    on_first(lambda: found.append(checkpoints.latest(gap)))
    step, files = from_first(found[0] if found else None) or (0, [])
    if not step:
        return 0

    def load() -> None:
        saved = read_states(files)
        for key, part in state.items():
            part.load_state_dict(assemble([one[key] for one in saved], shards))

    on_all(load)
    if is_first():
        print(f"resuming at step {step}", flush=True)
    return step
