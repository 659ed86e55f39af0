"""Time breakdown of one job, from sbatch to the detection of its result.

Jobs run one at a time on an idle cluster. A `sitecustomize.py` on their PYTHONPATH records when an interpreter starts
and ends and, through an audit hook, when it unpickles, reads the Snakefile and starts a command; the prologue of the
job records when the batch script starts and ends. The executor, submitit and Snakemake are not changed.

Wall seconds grow with other work on the machine; processor seconds hardly do.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks import dispatch_compare as compare
from benchmarks.measure import table
from benchmarks.processes import run_process
from tests.slurm.cluster import Cluster

JOBS = 5
SLOWEST = 15

SITECUSTOMIZE = """\
import atexit, os, resource, sys, time

if "DISPATCH_TRACE" in os.environ and "SLURM_JOB_ID" in os.environ:
    with open("/proc/self/stat") as file:
        started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    started += time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    path = os.path.join(os.environ["DISPATCH_TRACE"], os.environ["SLURM_JOB_ID"])
    trace = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    which = "inner" if "--snakefile" in sys.orig_argv else "outer"

    def note(what, when=None, used=None):
        used = time.process_time() if used is None else used
        os.write(trace, f"{when or time.time():.4f} {which} {what} {used:.4f}\\n".encode())

    def hook(event, arguments):
        if event == "pickle.find_class" and arguments[1] == "ClusterJob":
            note("unpickle")
        elif event == "subprocess.Popen":
            note("command")
        elif event == "open" and which == "inner" and str(arguments[0]).endswith("/Snakefile"):
            note("snakefile")

    def leave():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        note("exit")
        note("children", used=used.ru_utime + used.ru_stime)

    note("process", started, 0.0)
    note("python")
    sys.addaudithook(hook)
    atexit.register(leave)
"""
PROLOGUE = """\
echo $EPOCHREALTIME batch start 0 >> $DISPATCH_TRACE/$SLURM_JOB_ID
trap 'echo $EPOCHREALTIME batch end 0 >> $DISPATCH_TRACE/$SLURM_JOB_ID' EXIT
"""
# Phases between two recorded events, in order.
PHASES = [
    ("accepted by sbatch", "batch start", "SLURM starts the batch script"),
    ("batch start", "outer process", "srun sets up its step"),
    ("outer process", "outer python", "the outer interpreter starts"),
    ("outer python", "outer unpickle", "submitit is imported, numpy with it"),
    ("outer unpickle", "outer command", "the job is unpickled, its start is noted"),
    ("outer command", "inner process", "bash"),
    ("inner process", "inner python", "the inner interpreter starts"),
    ("inner python", "inner snakefile", "Snakemake and its plugins are imported"),
    ("inner snakefile", "inner command", "it reads the workflow, plans, starts the shell"),
    ("inner command", "payload", "the job's own command begins"),
    ("payload", "inner exit", "the command ends, Snakemake checks its output"),
    ("inner exit", "outer ends", "the inner interpreter is torn down"),
    ("outer ends", "outer exit", "submitit writes the result"),
    ("outer exit", "batch end", "the outer interpreter is torn down, srun ends"),
    ("batch end", "seen", "the result file is noticed"),
]


def breakdown(cluster: Cluster, folder: Path) -> int:
    """Run the jobs, print the table, and return the exit code."""
    side = compare.ours()
    work, trace, site = folder / "start", folder / "trace", folder / "site"
    for made in (work, trace, site):
        made.mkdir()
    (work / "Snakefile").write_text(compare.SNAKEFILE)
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    environment = {**compare.environment(side, cluster, cluster.shims), "DISPATCH_TRACE": str(trace)}
    environment["PYTHONPATH"] = str(site)
    for name, jobs in (("warm-up", 1), ("measured", 1 + JOBS)):  # the warm-up's job is not run again
        command = compare.command(jobs, *side.options, "--submitit-prologue", PROLOGUE)
        command[command.index("--jobs") + 1] = "1"
        print(f"{name}: {jobs if name == 'warm-up' else JOBS} jobs, one after another ...", flush=True)
        run = run_process(command, environment, work, 60 + 30 * jobs)
        compare.check_outputs(work / "out", jobs, run)
    wall, processor = read_traces(work, trace)
    print(f"\nMedians of {JOBS} jobs, one at a time on {os.cpu_count()} cores\n")
    titles = [title for *_, title in PHASES]
    lines = [[t, f"{wall[t]:.3f}", f"{processor[t]:.3f}" if t in processor else "-"] for t in titles]
    lines.append(["total", f"{sum(wall.values()):.3f}", f"{sum(processor.values()):.3f}"])
    print(table(("phase", "wall seconds", "processor seconds"), lines) + "\n")
    imports = import_seconds(side.bin / "python")
    for which, slowest in imports.items():
        print(f"slowest imports of {which}: {', '.join(f'{name} {took:.3f}' for name, took in slowest.items())}")
    print(json.dumps({"cores": os.cpu_count(), "wall": wall, "processor": processor, "imports": imports}))
    return 0


def read_traces(work: Path, trace: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median wall seconds of each phase, and processor seconds for phases within one process."""
    run = max((work / ".snakemake/submitit").glob("[0-9]*"))
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    accepted = {line["ids"][0]: line["time"] for line in lines if line["event"] == "accept"}
    ended = {line["id"]: line["time"] for line in lines if line["event"] == "end"}
    payloads = {words[1]: float(words[0]) for words in (p.read_text().split() for p in (work / "out").iterdir())}
    wall: dict[str, list[float]] = defaultdict(list)
    processor: dict[str, list[float]] = defaultdict(list)
    for job, began in accepted.items():
        times = {"accepted by sbatch": began, "seen": ended[job], "payload": payloads[job]}
        used: dict[str, float] = {}
        for text in (trace / job).read_text().splitlines():
            when, *who, seconds = text.split()
            name = " ".join(who)
            if name not in times or name == "inner command":  # of several commands the job's is the last
                times[name], used[name] = float(when), float(seconds)
        times.setdefault("batch end", times["outer exit"])  # a script that has become the interpreter
        times["outer ends"] = _event(run, "end", times["outer command"])
        used["outer ends"] = used["outer command"]
        used["payload"] = used["inner command"]
        for begin, end, title in PHASES:
            wall[title].append(max(0.0, times[end] - times[begin]))  # a process's start is known to 10 ms
            if end in used and _process(begin) == _process(end):
                processor[title].append(used[end] - used[begin])
        # Only the parent knows the full usage of a process.
        processor["the inner interpreter is torn down"].append(used["outer children"] - used["inner exit"])
    medians = [{title: round(statistics.median(all_), 3) for title, all_ in of.items()} for of in (wall, processor)]
    return medians[0], medians[1]


def _process(moment: str) -> str:
    """Return the process of a moment; the job's own command is too short to count."""
    return {"payload": "inner"}.get(moment, moment.split()[0])


def _event(run: Path, name: str, after: float) -> float:
    """Return the time of a job's first event of a kind after a given time."""
    events = [json.loads(line) for path in run.glob("*_events.jsonl") for line in path.read_text().splitlines()]
    return min(event["time"] for event in events if event["event"] == name and event["time"] >= after)


def import_seconds(python: Path) -> dict[str, dict[str, float]]:
    """Return the import seconds of each interpreter's packages, without their dependencies, slowest first."""
    commands = {"submitit": ["-m", "submitit.core._submit", "--help"], "snakemake": ["-m", "snakemake", "--version"]}
    found = {}
    for name, command in commands.items():
        run = subprocess.run([python, "-X", "importtime", *command], capture_output=True, text=True, check=True)
        own: dict[str, float] = defaultdict(float)
        for took, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", run.stderr, flags=re.MULTILINE):
            package = module.partition(".")[0]
            own["the standard library" if package in sys.stdlib_module_names else package] += int(took) / 1e6
        found[name] = {key: round(own[key], 3) for key in sorted(own, key=own.__getitem__, reverse=True)[:SLOWEST]}
    return found
