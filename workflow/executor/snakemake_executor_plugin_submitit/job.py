"""A Snakemake job on a compute node: it runs, writes its result, and leaves when SLURM wants the node back.

submitit unpickles a `ClusterJob` and calls it. The result that the executor reads is a JSON file, written here;
submitit's own result is a pickle, which nothing reads. This module is imported for every job: it loads little.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_submitit.events import append_event, read_events

# The payload's way to say "saved, run me again": EX_TEMPFAIL of sysexits.h.
RESUMABLE_EXIT = 75
TERMINATED = 128 + signal.SIGTERM
_SIGNALS = (signal.SIGCHLD, signal.SIGUSR2, signal.SIGTERM)


@dataclass
class ClusterJob:
    """A Snakemake job as SLURM runs it.

    SLURM sends SIGUSR2 to every process of a job before its time limit. Here it means: the payload saves
    and leaves (it has its own handler; shells and Snakemake in between ignore the signal), and the job goes
    back to the queue under its own id. SIGTERM (preemption, scancel, a node going down) leaves no result:
    SLURM decides what becomes of the job, and its state tells.

    Attributes:
        command: shell command of the job.
        tag: names the job across runs.
        events: file that starts and stops are noted in, one JSON line each.
        time_limits: how many time limits the job may use up.
        signal_delay: seconds between the warning and the limit; 0 for a job that cannot be resumed.
    """

    command: str
    tag: str
    events: str
    time_limits: int = 1
    signal_delay: int = 0

    def __call__(self) -> None:
        """Run the job and write its result: an exit code, and the reason where it is not the command's own."""
        if int(os.environ.get("SLURM_PROCID", 0)) > 0:
            return  # a job of several tasks starts its processes itself
        result = _result_file()
        if result.exists():
            # SLURM was seen to requeue a job after it had succeeded; a second run would delete its outputs.
            os._exit(0)
        try:
            code, reason = self._run_to_end()
        except Exception as error:
            _write_result(result, 1, f"{type(error).__name__}: {error}")
            raise
        _write_result(result, code, reason)

    def _run_to_end(self) -> tuple[int, str]:
        """Run the job; returns its exit code, and the reason where it is not queued again."""
        # Signals are fetched, not handled: nothing is ever in the middle of something when they come.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        _adopt_orphans()
        self._note("start", restarts=int(os.environ.get("SLURM_RESTART_COUNT", 0)))
        code, warned, terminated = self._run()
        if code == 0:
            self._note("end", exit=0)
            return 0, ""
        if terminated:
            self._note("terminated")
            _wait_for_orphans()
            _leave(TERMINATED)
        if warned and self.signal_delay:
            used = self._note("time limit")
            if used < self.time_limits:
                self._requeue()
            return code, f"its time limit was reached {used} times; the job is not queued again"
        self._note("end", exit=code)
        return code, ""

    def _run(self) -> tuple[int, bool, bool]:
        """Run the command; returns its exit code, and whether SIGUSR2 and SIGTERM came."""
        environment = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"}
        child = subprocess.Popen(["bash", "-c", f"trap '' USR2\n{self.command}"], env=environment, preexec_fn=_unblock)
        warned = terminated = False
        deadline = None
        while True:
            received = signal.sigtimedwait(_SIGNALS, 60 if deadline is None else max(0.1, deadline - time.monotonic()))
            if received is not None:
                terminated |= received.si_signo == signal.SIGTERM
                if received.si_signo == signal.SIGUSR2 and not warned:
                    warned = True
                    # A resumable payload has most of the delay to save; later, what it saved before must do.
                    deadline = time.monotonic() + 0.7 * self.signal_delay if self.signal_delay else None
            code = child.poll()
            if code is not None:
                # SLURM signals one process after the other: the child may have met a signal first.
                terminated = terminated or bool(code and _terminated_within(1))
                return code, warned or signal.SIGUSR2 in signal.sigpending(), terminated
            if deadline is not None and time.monotonic() >= deadline:
                print("the job did not leave in time and is killed; it will go on from what it saved", flush=True)
                _kill_family()
                deadline = None

    def _note(self, event: str, **details: int | str) -> int:
        """Append an event; returns how many of its kind there are."""
        path = Path(self.events)
        now = round(time.time(), 3)
        append_event(path, {"event": event, "tag": self.tag, "node": _node(), "time": now, **details})
        noted, damage = read_events(path)
        if damage:
            print(f"{damage}; passed over", flush=True)
        return sum(kept["event"] == event and kept["tag"] == self.tag for kept in noted)

    def _requeue(self) -> None:
        """Go back to the queue, when the controller is there again; does not return."""
        # Without its controller nobody ends the job; one that is back looks at time limits after 30 seconds.
        for pause in itertools.chain((0, 2, 5), itertools.repeat(10)):
            if _terminated_within(pause):
                # scancel, or a node going down: a requeue now would call the job back.
                self._note("terminated")
                _leave(TERMINATED)
            try:
                answer = subprocess.run(
                    ["scontrol", "requeue", os.environ["SUBMITIT_JOB"]], capture_output=True, text=True, timeout=30
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                print(f"scontrol requeue: {error}", flush=True)
                continue
            if answer.returncode == 0:
                print("back to the queue: the time limit was near", flush=True)
                _terminated_within(60)
                _leave(RESUMABLE_EXIT)
            print(f"scontrol requeue: {answer.stderr.strip()}", flush=True)


def _result_file() -> Path:
    """Return where the result of this task is written: beside submitit's own."""
    from submitit.core.job_environment import JobEnvironment

    environment = JobEnvironment()
    os.environ["SUBMITIT_JOB"] = environment.job_id
    return environment.paths.result_pickle.with_suffix(".json")


def _write_result(path: Path, code: int, reason: str) -> None:
    """Write a result, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        file.write(json.dumps({"exit": code, "reason": reason[:1000]}))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _terminated_within(seconds: float) -> bool:
    """Wait for SIGTERM; whether it came."""
    return signal.sigtimedwait([signal.SIGTERM], seconds) is not None


def _adopt_orphans() -> None:
    """Processes whose parent ends become children of this one."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _wait_for_orphans() -> None:
    """Until nothing of the job runs, or SLURM kills it: on SIGTERM shells die at once, what they run still saves."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _unblock() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until bash ignores it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _leave(code: int) -> None:
    """End without a result, so that SLURM's state decides."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _kill_family() -> None:
    """Kill all processes below this one, parents first, so that none is started anew."""
    for member in _family(os.getpid())[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def _family(pid: int) -> list[int]:
    """A process and all below it; threads and processes may end meanwhile."""
    family = [pid]
    with contextlib.suppress(OSError):
        for thread in list(Path(f"/proc/{pid}/task").iterdir()):
            with contextlib.suppress(OSError):
                for child in (thread / "children").read_text().split():
                    family += _family(int(child))
    return family
