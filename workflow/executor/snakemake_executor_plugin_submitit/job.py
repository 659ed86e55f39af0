"""A Snakemake job on a compute node: it runs the command, handles SLURM's signals and writes the result.

submitit unpickles a `ClusterJob` and calls it. The executor reads the JSON result file that this module writes.
submitit's own result is a pickle, which is never read. Every job imports this module, so it imports little.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_submitit.records import Result, append_event, read_events, write_result

# Exit code of a payload that saved a checkpoint and asks for a rerun: EX_TEMPFAIL of sysexits.h.
RESUMABLE_EXIT = 75
TERMINATED = 128 + signal.SIGTERM
_SIGNALS = (signal.SIGCHLD, signal.SIGUSR2, signal.SIGTERM)


@dataclass
class ClusterJob:
    """A Snakemake job as SLURM runs it.

    SLURM sends SIGUSR2 to every process of a job before its time limit. The payload then saves and exits. It has its
    own handler; shells and Snakemake in between ignore the signal. The job is requeued under its own id. SIGTERM
    (preemption, scancel, a node shutdown) leaves no result, and the executor reads the outcome from SLURM's state.

    Attributes:
        command: shell command of the job.
        tag: identifies the job across runs.
        events: path of the event log, one JSON line for each start and stop.
        time_limits: maximum number of time limits that the job may reach.
        signal_delay: seconds between the warning and the time limit; 0 for a job that cannot resume.
    """

    command: str
    tag: str
    events: str
    time_limits: int = 1
    signal_delay: int = 0

    def __call__(self) -> None:
        """Run the job and write its result: an exit code, and a reason if the code is not the command's own."""
        if int(os.environ.get("SLURM_PROCID", 0)) > 0:
            return  # the first task starts the processes of a multi-task job
        result = _result_file()
        if result.exists():
            # SLURM may requeue a job after its success; a second run would delete its outputs.
            os._exit(0)
        try:
            write_result(result, self._run_to_end())
        except Exception as error:
            write_result(result, Result(1, f"{type(error).__name__}: {error}"))
            raise

    def _run_to_end(self) -> Result:
        """Run the job and return its result, unless it is terminated or requeued."""
        # Signals are read with `sigtimedwait`, so that none interrupts other work.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        # Orphaned descendants become children of this process.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        self._record("start", restarts=int(os.environ.get("SLURM_RESTART_COUNT", 0)))
        code, warned, terminated = self._run()
        if code == 0:
            self._record("end", exit=0)
            return Result(0)
        if terminated:
            self._record("terminated")
            _wait_for_orphans()
            _leave(TERMINATED)
        if warned and self.signal_delay:
            used = self._record("time limit")
            if used < self.time_limits:
                self._requeue()
            return Result(code, f"its time limit was reached {used} times; the job is not queued again")
        self._record("end", exit=code)
        return Result(code)

    def _run(self) -> tuple[int, bool, bool]:
        """Run the command and return its exit code, and whether SIGUSR2 and SIGTERM arrived."""
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
                    # A resumable payload has 70 % of the delay to save; later it is killed.
                    deadline = time.monotonic() + 0.7 * self.signal_delay if self.signal_delay else None
            code = child.poll()
            if code is not None:
                # SLURM signals processes in turn, so the child may receive a signal first.
                terminated = terminated or bool(code and _terminated_within(1))
                return code, warned or signal.SIGUSR2 in signal.sigpending(), terminated
            if deadline is not None and time.monotonic() >= deadline:
                print("the job did not exit in time and is killed; it resumes from its last checkpoint", flush=True)
                _kill_descendants()
                deadline = None

    def _record(self, event: str, **details: int | str) -> int:
        """Append an event and return the number of events of its kind."""
        path = Path(self.events)
        node, now = os.environ.get("SLURMD_NODENAME") or socket.gethostname(), round(time.time(), 3)
        append_event(path, {"event": event, "tag": self.tag, "node": node, "time": now, **details})
        events, damage = read_events(path)
        if damage:
            print(f"{damage}; skipped", flush=True)
        return sum(other["event"] == event and other["tag"] == self.tag for other in events)

    def _requeue(self) -> None:
        """Requeue the job as soon as the controller answers; does not return."""
        # Only the controller ends a job; after a restart it checks time limits after 30 seconds.
        for pause in itertools.chain((0, 2, 5), itertools.repeat(10)):
            if _terminated_within(pause):
                # After scancel or a node shutdown, a requeue would revive the job.
                self._record("terminated")
                _leave(TERMINATED)
            try:
                answer = subprocess.run(
                    ["scontrol", "requeue", os.environ["SUBMITIT_JOB"]], capture_output=True, text=True, timeout=30
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                print(f"scontrol requeue: {error}", flush=True)
                continue
            if answer.returncode == 0:
                print("requeued before the time limit", flush=True)
                _terminated_within(60)
                _leave(RESUMABLE_EXIT)
            print(f"scontrol requeue: {answer.stderr.strip()}", flush=True)


def _result_file() -> Path:
    """Return the path of this task's result file, beside submitit's own."""
    from submitit.core.job_environment import JobEnvironment

    environment = JobEnvironment()
    os.environ["SUBMITIT_JOB"] = environment.job_id
    return environment.paths.result_pickle.with_suffix(".json")


def _terminated_within(seconds: float) -> bool:
    """Wait for SIGTERM and return whether it arrived."""
    return signal.sigtimedwait([signal.SIGTERM], seconds) is not None


def _wait_for_orphans() -> None:
    """Wait for all processes of the job: on SIGTERM a shell dies at once, while its child still saves."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _unblock() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until bash ignores it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _leave(code: int) -> None:
    """Exit without a result, so that SLURM's state determines the outcome."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _kill_descendants() -> None:
    """Kill all descendants of this process, parents first, so that no parent starts new ones."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
