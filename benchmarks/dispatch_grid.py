"""Benchmark of a large grid on a simulated SLURM: costs of planning, submission and status checks.

`sbatch`, `squeue` and the other commands are small scripts that log their calls and answer as a cluster that runs all
jobs at once. All seconds and megabytes are therefore those of Snakemake and the executor. In order: a dry run; all jobs
are submitted; their status is checked for a while; Snakemake is killed; another Snakemake adopts all jobs; all outputs
appear at the same time, which is the worst case; Snakemake ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit.ledger import History

from benchmarks import dispatch_compare as compare
from benchmarks.measure import table
from benchmarks.processes import Finished, RunFailed, finish, process_seconds, run_process, running

MAX_ARRAY_SIZE = 1001
DRY_RUN_SECONDS, DRY_RUN_MB = 15, 1000
WATCH_SECONDS = 60
# Seconds until a submission is fully recorded and printed.
SETTLE_SECONDS = 10
SECONDS = 900  # limit of each phase

# Name of a command -> the rest of its script after the call was logged; $GRID is a folder.
FAKES = {
    "sbatch": """\
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
comment=$(sed -n 's/^#SBATCH --comment=//p' "$1")
id=$(($(wc -l < "$GRID/submitted") + 1))
echo "$id ${last:--} $comment" >> "$GRID/submitted"
echo "Submitted batch job $id"
""",
    "squeue": """\
awk '{
    if ($2 == "-") print $1 "|RUNNING|None|n1|N/A|" $3
    else for (task = 0; task <= $2; task++) print $1 "_" task "|RUNNING|None|n1|N/A|" $3
}' "$GRID/submitted"
""",
    "scontrol": f"""\
case "$*" in
    *config) echo "MaxArraySize            = {MAX_ARRAY_SIZE}" ;;
    *partition) echo "PartitionName=low Default=YES MaxTime=UNLIMITED" ;;
    *node) echo "NodeName=n1 CPUTot=64 RealMemory=512000 Gres=(null) Partitions=low" ;;
esac
""",
    "scancel": "",
    "srun": "exit 1\n",
    "sacct": "exit 1\n",
    "sacctmgr": "exit 1\n",
}


class Grid:
    """Grid with its simulated SLURM and its folders."""

    def __init__(self, jobs: int, folder: Path) -> None:
        self.jobs = jobs
        self.fake, self.work = folder / "fake", folder / "work"
        self.submit = self.work / ".snakemake/submitit"
        (self.fake / "bin").mkdir(parents=True)
        self.work.mkdir()
        for name in ("submitted", "calls"):
            (self.fake / name).touch()
        for name, text in FAKES.items():
            script = self.fake / "bin" / name
            script.write_text(f'#!/bin/sh\necho {name} >> "$GRID/calls"\n{text}')
            script.chmod(0o755)
        (self.work / "Snakefile").write_text(compare.SNAKEFILE)
        path = f"{self.fake / 'bin'}:{compare.ours().bin}:{os.environ['PATH']}"
        kept = {
            name: value for name, value in os.environ.items() if not re.match("S(LURM|BATCH|QUEUE|NAKEMAKE)_", name)
        }
        self.environment = {**kept, "PATH": path, "GRID": str(self.fake)}
        # Snakemake's greedy choice among n ready jobs takes n * n steps: a minute and more for 10,000.
        self.options = ["--executor", "submitit", "--scheduler-subsample", "1000"]

    def running(self) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """Run Snakemake on the grid within the block."""
        return running(compare.command(self.jobs, *self.options), self.environment, self.work)

    def run(self, option: str) -> Finished:
        """Run Snakemake with one more option until it exits."""
        done = run_process(compare.command(self.jobs, *self.options, option), self.environment, self.work, SECONDS)
        _check(done.code, self.work)
        return done

    def calls(self) -> Counter[str]:
        """Return the number of calls of each command so far."""
        return Counter((self.fake / "calls").read_text().split())

    def arrays(self) -> list[int]:
        """Return the number of jobs in each submission."""
        lasts = re.findall(r"^\d+ (\S+)", (self.fake / "submitted").read_text(), flags=re.MULTILINE)
        return [1 if last == "-" else int(last) + 1 for last in lasts]

    def adopted(self) -> int:
        """Return the number of jobs that the newest run has adopted."""
        ledgers = sorted(self.submit.glob("[0-9]*/ledger.jsonl"))
        return ledgers[-1].read_text().count('"event": "adopt"') if ledgers else 0

    def end_all(self) -> None:
        """Write the outputs and results of the jobs."""
        entries = History(self.submit).entries.values()
        for entry in entries:
            for output in entry.outputs:
                (self.work / output).parent.mkdir(exist_ok=True)
                (self.work / output).write_text("done\n")
        for entry in entries:
            entry.result.write_text('{"exit": 0, "reason": ""}')


def grid(jobs: int, folder: Path) -> int:
    """Measure, print the table, and return the exit code, 1 if a limit is exceeded."""
    simulated = Grid(jobs, folder)
    numbers: dict[str, Any] = {"jobs": jobs, "cores": os.cpu_count()}
    print(f"dry run of {jobs} jobs ...", flush=True)
    dry = simulated.run("--dry-run")
    numbers |= {
        "dry_run_seconds": round(dry.wall, 1),
        "dry_run_processor_seconds": round(dry.processor, 1),
        "dry_run_mb": round(dry.memory),
    }
    with simulated.running() as process:
        _submit(simulated, numbers, process)
        _watch(simulated, numbers, process)
    # The killed Snakemake leaves its lock.
    simulated.run("--unlock")
    with simulated.running() as process:
        _take_over(simulated, numbers, process)
        print("all jobs end ...", flush=True)
        simulated.end_all()
        run = finish(process, simulated.work, SECONDS)
    _check(run.code, simulated.work)
    numbers |= {"ending_seconds": round(run.wall, 1), "peak_mb": round(run.memory)}
    limits = {
        f"dry run < {DRY_RUN_SECONDS} s": numbers["dry_run_seconds"] < DRY_RUN_SECONDS,
        f"dry run < {DRY_RUN_MB} MB": numbers["dry_run_mb"] < DRY_RUN_MB,
        "job arrays within MaxArraySize": max(numbers["arrays"]) <= MAX_ARRAY_SIZE,
        "each job submitted once": sum(numbers["arrays"]) == jobs,
    }
    print()
    lines = [(name.replace("_", " "), value) for name, value in numbers.items()]
    lines += [(name, "met" if met else "MISSED") for name, met in limits.items()]
    print(table(("measurement", "value"), lines))
    print(json.dumps(numbers))
    return 0 if all(limits.values()) else 1


def _submit(simulated: Grid, numbers: dict[str, Any], process: subprocess.Popen) -> None:
    print("submission ...", flush=True)
    began = time.monotonic()
    _wait(process, simulated.arrays, simulated.work)
    numbers["seconds_to_first_sbatch"] = round(time.monotonic() - began, 1)
    _wait(process, lambda: sum(simulated.arrays()) >= simulated.jobs, simulated.work)
    numbers |= {
        "seconds_to_last_sbatch": round(time.monotonic() - began, 1),
        "submission_processor_seconds": round(process_seconds(process.pid), 1),
        "submission_peak_mb": _peak(process.pid),
        "sbatch_calls": simulated.calls()["sbatch"],
        "arrays": simulated.arrays(),
    }


def _watch(simulated: Grid, numbers: dict[str, Any], process: subprocess.Popen) -> None:
    print(f"watching for {WATCH_SECONDS} s ...", flush=True)
    time.sleep(SETTLE_SECONDS)
    before, calls = process_seconds(process.pid), simulated.calls()
    time.sleep(WATCH_SECONDS)
    _wait(process, lambda: True, simulated.work)
    numbers |= {
        "watching_processor_seconds_a_minute": round((process_seconds(process.pid) - before) * 60 / WATCH_SECONDS, 2),
        "watching_calls_a_minute": dict(simulated.calls() - calls),
        "watching_peak_mb": _peak(process.pid),
    }


def _take_over(simulated: Grid, numbers: dict[str, Any], process: subprocess.Popen) -> None:
    print("another Snakemake takes over ...", flush=True)
    calls, began = simulated.calls(), time.monotonic()
    _wait(process, lambda: simulated.adopted() >= simulated.jobs, simulated.work)
    numbers |= {
        "takeover_seconds": round(time.monotonic() - began, 1),
        "takeover_processor_seconds": round(process_seconds(process.pid), 1),
        "takeover_calls": dict(simulated.calls() - calls),
    }


def _wait(process: subprocess.Popen, ready: Callable[[], Any], folder: Path) -> None:
    """Wait until a condition holds, and fail if the process ends first."""
    deadline = time.monotonic() + SECONDS
    while not ready():
        # WNOWAIT keeps the exit status and the resource usage for the final wait.
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            _check("too early", folder)
        if time.monotonic() > deadline:
            _check("not in time", folder)
        time.sleep(0.1)


def _check(code: Any, folder: Path) -> None:
    if code != 0:
        lines = (folder / "output.txt").read_text(errors="replace").splitlines()[-40:]
        raise RunFailed("\n".join([f"Snakemake failed ({code}). Its output:", *lines]))


def _peak(pid: int) -> int:
    """Return the peak resident memory of a process in MB."""
    found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    return round(int(found[1]) / 1024) if found else 0
