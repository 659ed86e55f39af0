"""The loop that every optimisation shares: steps, checkpoints, signals, progress."""

from __future__ import annotations

import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from patch.errors import InputError
from patch.io import atomic_file
from patch.learning.checkpoint import Checkpoints, StepLog

# Distinct from every other exit, so that a scheduler can requeue: EX_TEMPFAIL of sysexits.h.
EXIT_RESUMABLE = 75


class Stateful(Protocol):
    """What has a state that a checkpoint holds: a module, an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class _StopRequest:
    """Turns SIGTERM and SIGUSR1 into a flag that is looked at between steps."""

    def __init__(self) -> None:
        self.requested = False
        self._previous = {name: signal.signal(name, self._handle) for name in (signal.SIGTERM, signal.SIGUSR1)}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def restore(self) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)


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

    Args:
        steps: number of optimizer steps.
        step_fn: does one step, returns what to log; the key `loss` must be finite.
        state: what checkpoints hold.
        folder: of the checkpoints and the growing log; the caller removes it once the run's result is saved.
        identity: of the run, see `Checkpoints`.
        curve: where the finished log goes.
        checkpoint_minutes: wall time between checkpoints.
        log_every: steps between log lines.
        name: what the progress line is headed with.

    Raises:
        InputError: the loss or the state is not finite; says at which step. The last good checkpoint stays.
        SystemExit: with `EXIT_RESUMABLE`, after SIGTERM or SIGUSR1 and a checkpoint.
    """
    checkpoints = Checkpoints(folder, identity)
    first = _resume(checkpoints, state)
    log = StepLog(folder / "log.jsonl", first)
    stop = _StopRequest()
    started = saved = shown = time.monotonic()
    try:
        for step in range(first, steps):
            metrics = step_fn(step)
            loss = metrics["loss"]
            if loss is None or not math.isfinite(loss):
                kept = f"the last checkpoint is kept in {folder}"
                raise InputError(f"the loss is {loss} at step {step} of {steps}; lower the learning rate ({kept})")
            now = time.monotonic()
            if step % log_every == 0 or step == steps - 1:
                log.write({"step": step, **metrics, "seconds": round(now - started, 3)})
            if now - shown > 5 or step == steps - 1:
                shown = now
                _progress(name, step + 1, steps, loss, (now - started) / (step + 1 - first))
            if stop.requested or step == steps - 1 or now - saved > 60 * checkpoint_minutes:
                _save(checkpoints, step + 1, {key: part.state_dict() for key, part in state.items()})
                saved = time.monotonic()
            if stop.requested:
                print(f"stopped by a signal after step {step + 1} of {steps}; run again to go on", flush=True)
                sys.exit(EXIT_RESUMABLE)
    finally:
        stop.restore()
        log.close()
    with atomic_file(curve) as temporary:
        shutil.copyfile(log.path, temporary)


def _save(checkpoints: Checkpoints, step: int, state: dict[str, Any]) -> None:
    """Save a state that can be gone on from: gradients can be NaN one step before the loss is."""
    for key, part in state.items():
        if not all(tensor.isfinite().all() for tensor in _tensors(part)):
            raise InputError(f"the state `{key}` is not finite after step {step - 1}; lower the learning rate")
    checkpoints.save(step, state)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _resume(checkpoints: Checkpoints, state: dict[str, Stateful]) -> int:
    found = checkpoints.latest()
    if found is None:
        return 0
    step, saved = found
    for key, part in state.items():
        part.load_state_dict(saved[key])
    print(f"resuming at step {step}", flush=True)
    return step


def _progress(name: str, done: int, steps: int, loss: float, seconds_per_step: float) -> None:
    left = (steps - done) * seconds_per_step
    print(f"{name} {done}/{steps}  loss {loss:.4f}  {seconds_per_step:.3f} s/step  {left:.0f} s left", flush=True)
