"""Measurements in order, each step in a process of its own, within a limit of time.

A process that fails is replaced by a new one, because an error of a kernel or of memory may spoil later measurements of
the same process.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

from benchmarks.gpu import generation, gpu_tests, layers, learning, pretrained
from benchmarks.gpu.layers import first_line
from benchmarks.gpu.report import Entry, NotMeasuredError, Report, finish, read_report, update
from benchmarks.gpu.sizes import Sizes
from patch.pipeline.results.environment import git_commit

STEPS = (gpu_tests, layers, generation, learning, pretrained)
REQUIREMENTS = "benchmarks/gpu/requirements.txt"
# Seconds in which a stopped process ends what it started.
GRACE = 40
STOPPED_BY = (signal.SIGINT, signal.SIGTERM)
CUT_OFF = "the run was cut off"


@dataclass(frozen=True)
class Clock:
    """Start and limit of a run, in seconds of the system's monotonic clock."""

    started: float
    limit: float

    def elapsed(self) -> str:
        """Return the time since the start, as minutes and seconds."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"[{minutes:2d}:{seconds:02d}]"

    def left(self) -> float:
        """Return the seconds until the limit."""
        return self.started + self.limit - time.monotonic()


def run_steps(path: Path, sizes: Sizes, clock: Clock) -> Report:
    """Measure all that a report does not have yet, in order, until the time is over."""
    names = {step: [f"{step.NAME}/{name}" for name in step.measurements(sizes)] for step in STEPS}
    finished = read_report(path).results
    pending = {step: [name for name in own if name not in finished] for step, own in names.items()}
    update(path, not_measured={name: CUT_OFF for own in pending.values() for name in own})
    for step, own in pending.items():
        if before := len(names[step]) - len(own):
            print(f"{clock.elapsed()} {step.NAME}: {before} of {len(names[step])} measured before", flush=True)
        if own:
            _run_step(path, step, own, sizes, clock)
    return read_report(path)


def _run_step(path: Path, step: ModuleType, pending: list[str], sizes: Sizes, clock: Clock) -> None:
    missing = [name for name in step.REQUIRES if name not in sizes.optional and find_spec(name) is None]
    if missing:
        _give_up(path, pending, f"{', '.join(missing)} cannot be imported; see {REQUIREMENTS}", clock)
        return
    # A rehearsal has tiny sizes, and may have little of a processor.
    deadline = time.monotonic() + (clock.left() if sizes.device == "cpu" else min(step.SECONDS, clock.left()))
    while pending and time.monotonic() < deadline:
        process = get_context("spawn").Process(target=_work, args=(path, step.__name__, pending, sizes, clock))
        process.start()
        try:
            process.join(deadline - time.monotonic())
        finally:
            # After the deadline, or when the run is interrupted.
            if process.is_alive():
                process.terminate()
                process.join(GRACE)
            if process.is_alive():
                process.kill()
                process.join()
        running = read_report(path).running
        if running and time.monotonic() < deadline:
            _give_up(path, [running], f"its process ended with code {process.exitcode}", clock)
        reasons = update(path, running=None).not_measured
        pending = [name for name in pending if reasons.get(name) == CUT_OFF]
    _give_up(path, pending, "no time was left", clock)


def _give_up(path: Path, names: list[str], reason: str, clock: Clock) -> None:
    for name in names:
        finish(path, name, None, reason)
        print(f"{clock.elapsed()} {name}: not measured: {reason}", flush=True)


def _work(path: Path, module: str, pending: list[str], sizes: Sizes, clock: Clock) -> None:
    """Measure in order, up to the first failure."""
    for number in STOPPED_BY:
        signal.signal(number, _stop)
    measurements = import_module(module).measurements(sizes)
    for name in pending:
        update(path, running=name)
        started = time.monotonic()
        try:
            result = measurements[name.partition("/")[2]]()
        except NotMeasuredError as error:
            _give_up(path, [name], str(error), clock)
            continue
        except Exception as error:  # of a kernel, a library or the memory
            _give_up(path, [name], f"{type(error).__name__}: {first_line(error)}", clock)
            return
        gc.collect()  # a generation is a cycle of references, and holds its cache
        seconds = time.monotonic() - started
        finish(path, name, Entry(result=result, seconds=seconds, software=software()))
        print(f"{clock.elapsed()} {name}: measured in {seconds:.1f} s", flush=True)


def _stop(number: int, frame: object) -> None:
    """Leave the process once; what it has started is ended on the way."""
    for other in STOPPED_BY:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def software() -> str:
    """Return the versions and the commit that a result depends on."""
    found = {name: metadata.version(name) for name in ("torch", "triton") if find_spec(name)}
    return ", ".join([*(f"{name} {version}" for name, version in found.items()), f"commit {git_commit()}"])
