"""Launcher of a stage as several processes: on one node directly, on several by `srun` and one launcher on each node.

The launcher keeps a `TCPStore` on a separate port. The processes find each other there and report how they end,
because neither an exit code nor `srun` carries a message, and the rest are ended when one process fails.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from patch.distributed.signals import EXIT_RESUMABLE, HELD, STOP, take_held
from patch.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

# Address of the launcher's store.
VARIABLE = "PATCH_LAUNCHER"
# Signals that a launcher forwards.
FORWARDED = (*STOP, signal.SIGINT, signal.SIGHUP)
# Seconds between the first failure and the SIGKILL of the other processes.
GRACE = 30


def is_launched() -> bool:
    """Return whether this is one of the processes of a job."""
    return "RANK" in os.environ


def launch(arguments: Sequence[str], processes: int, nodes: int) -> int:
    """Run a stage as several processes, whose output is that of this process.

    Args:
        arguments: the stage's command line.
        processes: number of processes on each node.
        nodes: number of nodes, including this one.

    Returns:
        The exit code: `EXIT_RESUMABLE` if the processes were stopped and have saved, 128 + n if signal n ended one.

    Raises:
        InputError: one of the processes raised it, or several nodes are asked for outside a SLURM job.
    """
    from torch.distributed import TCPStore

    if nodes > 1 and not ("SLURM_JOB_ID" in os.environ and shutil.which("srun")):
        raise InputError(
            f"`resources.learn_nodes` is {nodes}, and more than one need a SLURM job with `srun`; set it to 1, or "
            "run on a cluster"
        )
    host = own_address() if nodes > 1 else "localhost"
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    os.environ[VARIABLE] = f"{host}:{store.port}"
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    if nodes == 1:
        code = run_node(arguments, processes, nodes)
    else:
        node = [sys.executable, "-m", "patch.distributed.launch", str(processes), str(nodes), *arguments]
        # At a SIGTERM `srun` kills its tasks; it forwards other signals.
        code = run_processes(srun_command(nodes, node), [srun_environment(os.environ)], signal.SIGUSR1)
        # `srun` returns the highest exit code, which may be that of a node that it has ended itself.
        failed = [reported for reported in _reports(store, "node", nodes) if reported]
        code = first_cause(failed) if failed else code
    ends = _reports(store, "process", processes * nodes)
    for end in ends:
        if end["message"]:
            raise InputError(end["message"])
    return EXIT_RESUMABLE if ends else exit_status(code)


def _reports(store: TCPStore, who: str, count: int) -> list[Any]:
    """Return the reports of those processes or nodes that made one, in order."""
    keys = [f"{who}/{number}" for number in range(count)]
    return [json.loads(store.get(key)) for key in keys if store.check([key])]


def launcher_store(timeout: timedelta) -> TCPStore | None:
    """Connect to the launcher's store; return None in a process that no launcher has started."""
    from torch.distributed import TCPStore

    if VARIABLE not in os.environ:
        return None
    host, port = os.environ[VARIABLE].rsplit(":", 1)
    return TCPStore(host, int(port), is_master=False, timeout=timeout)


def report_end(code: int, message: str = "") -> bool:
    """Report to the launcher how this process ends, by `EXIT_RESUMABLE` or an `InputError`.

    Returns:
        True if a launcher has received the report.
    """
    return is_launched() and _report(f"process/{os.environ['RANK']}", {"code": code, "message": message})


def _report(key: str, value: Any) -> bool:
    try:
        store = launcher_store(timedelta(seconds=30))
        if store is not None:
            store.set(key, json.dumps(value))
    except RuntimeError:
        return False
    return store is not None


def run_node(arguments: Sequence[str], processes: int, nodes: int) -> int:
    """Run this node's processes of a stage until all have ended; return the exit code, negative for a signal."""
    first = processes * int(os.environ["SLURM_NODEID"]) if nodes > 1 else 0
    command = [sys.executable, "-m", "patch.pipeline.stages", *arguments]
    size = {"LOCAL_WORLD_SIZE": str(processes), "WORLD_SIZE": str(processes * nodes)}
    environments = [
        {**os.environ, **size, "LOCAL_RANK": str(local), "RANK": str(first + local)} for local in range(processes)
    ]
    # Until the processes handle SIGUSR1 and SIGUSR2 (see `patch.distributed.signals.hold_signals`), these wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    code = run_processes(command, environments, signal.SIGTERM)
    if code < 0 and code != -signal.SIGTERM:
        why = " (out of memory?)" if code == -signal.SIGKILL else ""
        name = signal.Signals(-code).name
        print(f"error: a process on {socket.gethostname()} was ended by {name}{why}", file=sys.stderr, flush=True)
    return code


def run_processes(command: Sequence[str], environments: Sequence[Mapping[str, str]], others: int) -> int:
    """Run a command once in each environment until all have ended, and forward incoming signals to the processes.

    When one fails, the others get SIGTERM, and SIGKILL after ``GRACE`` seconds. Once all have ended, signals have no
    effect: only the report of how they ended is left to do.

    Args:
        command: the command.
        environments: the environment of each process.
        others: the signal that is sent in place of SIGTERM, SIGINT and SIGHUP.

    Returns:
        The exit code of the process that failed first, negative for a signal; 0 if none failed.
    """
    received = [signal.SIGUSR1] if take_held() else []
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: received.append(number))
    processes: list[subprocess.Popen] = []
    failed: list[int] = []
    deadline = math.inf
    try:
        for environment in environments:
            # In separate sessions, so that a terminal's signals reach them through this process alone.
            processes.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        while any([process.poll() is None for process in processes]) and time.monotonic() < deadline:
            if not failed and (failed := [p.returncode for p in processes if p.returncode]):
                deadline = time.monotonic() + GRACE
                received.append(signal.SIGTERM)
            while received:
                number = received.pop(0)
                for process in processes:
                    process.send_signal(number if number in HELD else others)
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = failed or [p.returncode for p in processes if p.returncode]
    return first_cause(failed) if failed else 0


def first_cause(codes: Sequence[int]) -> int:
    """Return the exit code that caused the others, from those of the failed processes; negative for a signal.

    A process that loses a peer raises an error, and the launcher ends the rest by SIGTERM.
    """
    killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]
    failed = [code for code in codes if code > 0]
    return (killed or failed or list(codes))[0]


def exit_status(code: int) -> int:
    """Return the exit status of a code: 128 + n for signal n."""
    return code if code >= 0 else 128 - code


def own_address() -> str:
    """Return the address of this node for the others: its host name where that resolves, else 127.0.0.1."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return "127.0.0.1"
    return name


def srun_command(nodes: int, command: Sequence[str]) -> list[str]:
    """Return an `srun` call that runs ``command`` once on each node of the job, with all the job has there."""
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        # The launcher may be a step itself, one that holds the job's CPUs, memory and GPUs: share them. A step sees
        # all GPUs of its job unless it asks for others; asking again could contradict how the job asked.
        "--overlap",
        # All of the job's memory on a node, also where the job asked for it by CPU or by GPU.
        "--mem=0",
        # The mask of an outer step, which is in the environment, is for the CPUs of its own node.
        "--cpu-bind=none",
        # The environment, also where the job itself was submitted without one.
        "--export=ALL",
        "--kill-on-bad-exit=1",
        *command,
    ]


def srun_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for `srun` within a job."""
    # With `none`, which some clusters set, a step gets no GPU.
    changed = {name: value for name, value in environment.items() if name != "SLURM_STEP_GRES"}
    if "SLURM_CPUS_PER_TASK" in changed:
        # Since SLURM 22.05 a step does not inherit the job's CPUs per task.
        changed["SRUN_CPUS_PER_TASK"] = changed["SLURM_CPUS_PER_TASK"]
    return changed


def _main() -> int:
    """Run the processes of one node of several."""
    processes, nodes, *arguments = sys.argv[1:]
    code = run_node(arguments, int(processes), int(nodes))
    _report(f"node/{os.environ['SLURM_NODEID']}", code)
    return exit_status(code)


if __name__ == "__main__":
    sys.exit(_main())
