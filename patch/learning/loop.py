"""The loop that every optimisation shares: steps, checkpoints, signals, progress."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from patch.distributed import any_of, from_first, is_first, on_first
from patch.errors import InputError
from patch.io import atomic_file
from patch.learning.checkpoint import Checkpoints, StepLog
from patch.signals import EXIT_RESUMABLE, stop_request

# The growing log, in the folder of the checkpoints.
LOG = "log.jsonl"


class Stateful(Protocol):
    """What has a state that a checkpoint holds: a module, an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def run_steps(
    steps: int,
    step_fn: Callable[[int], dict[str, float | None]],
    state: dict[str, Stateful],
    folder: Path,
    identity: str,
    curve: Path,
    checkpoint_minutes: float = 10.0,
    log_every: int = 1,
    name: str = "step",
) -> None:
    """Run ``step_fn`` for every step, resuming from the newest checkpoint in ``folder``.

    Of several processes (see `patch.distributed`) all take every step and stop after the same one; the first
    writes and prints.

    Args:
        steps: number of optimizer steps.
        step_fn: does one step, returns what to log; the key `loss` must be finite. The loss of several processes
            is one number.
        state: what checkpoints hold; the same in all processes.
        folder: of the checkpoints and the growing log; the caller removes it once the run's result is saved.
        identity: of the run, see `Checkpoints`.
        curve: where the finished log goes.
        checkpoint_minutes: wall time between checkpoints.
        log_every: steps between log lines.
        name: what the progress line is headed with.

    Raises:
        InputError: the loss or the state is not finite; says at which step. The last good checkpoint stays.
        SystemExit: with `EXIT_RESUMABLE`, after SIGTERM, SIGUSR1 or SIGUSR2 and a checkpoint.
    """
    checkpoints = Checkpoints(folder, identity)
    first = _resume(checkpoints, state)
    log = StepLog(folder / LOG, first) if is_first() else None
    started = saved = shown = time.monotonic()
    with stop_request() as stop, log or nullcontext():
        for step in range(first, steps):
            metrics = step_fn(step)
            loss = metrics["loss"]
            if loss is None or not math.isfinite(loss):
                kept = f"the last checkpoint is kept in {folder}"
                raise InputError(f"the loss is {loss} at step {step} of {steps}; lower the learning rate ({kept})")
            now = time.monotonic()
            last = step == steps - 1
            if log and (step % log_every == 0 or last):
                log.write({"step": step, **metrics, "seconds": round(now - started, 3)})
            if is_first() and (now - shown > 5 or last):
                shown = now
                _progress(name, step + 1, steps, loss, (now - started) / (step + 1 - first))
            # A signal reaches some processes a step before others, and their clocks differ.
            leave, due = any_of(stop.requested, is_first() and now - saved > 60 * checkpoint_minutes)
            if leave or due or last:
                on_first(partial(_save, checkpoints, step + 1, state))
                saved = time.monotonic()
            if leave:
                if is_first():
                    print(f"stopped by a signal after step {step + 1} of {steps}; run again to go on", flush=True)
                sys.exit(EXIT_RESUMABLE)
    # All wait: the curve is there for whoever returns.
    on_first(partial(_copy, folder / LOG, curve))


def _save(checkpoints: Checkpoints, step: int, state: dict[str, Stateful]) -> None:
    """Save a state that can be gone on from: gradients can be NaN one step before the loss is."""
    values = {key: part.state_dict() for key, part in state.items()}
    for key, part in values.items():
        if not all(tensor.isfinite().all() for tensor in _tensors(part)):
            raise InputError(f"the state `{key}` is not finite after step {step - 1}; lower the learning rate")
    checkpoints.save(step, values)


def _copy(source: Path, target: Path) -> None:
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _resume(checkpoints: Checkpoints, state: dict[str, Stateful]) -> int:
    found = checkpoints.latest() if is_first() else None
    step = from_first(found[0] if found else 0)
    if not step:
        return 0
    # The first has read the file to know that it is good; the others read the same one.
    saved = found[1] if found else checkpoints.read(step)
    for key, part in state.items():
        part.load_state_dict(saved[key])
    if is_first():
        print(f"resuming at step {step}", flush=True)
    return step


def _progress(name: str, done: int, steps: int, loss: float, seconds_per_step: float) -> None:
    left = (steps - done) * seconds_per_step
    print(f"{name} {done}/{steps}  loss {loss:.4f}  {seconds_per_step:.3f} s/step  {left:.0f} s left", flush=True)
