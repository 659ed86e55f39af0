"""Comparison of executors for `dispatch.py`: the sides, their runs and the table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import table
from benchmarks.processes import Finished, RunFailed, machine_seconds, process_seconds, run_process
from tests.slurm.cluster import CLIENTS, Cluster

OFFICIAL = "2.8.0"
# Maximum ratios to the official plugin: wall time and calls of sbatch.
WALL_TARGET, SBATCH_TARGET = 0.7, 1 / 20
WARM_UP_JOBS = 4
# Longer average seconds per job mean a hang.
SECONDS_A_JOB, SECONDS_AT_LEAST = 10, 180
LATENCY_WAIT = 5

SNAKEFILE = """\
rule all:
    input:
        expand("out/{i}.txt", i=range(int(config["jobs"]))),


rule make:
    output:
        "out/{i}.txt",
    threads: 1
    resources:
        runtime=10,
        mem_mb=400,
    shell:
        "echo $EPOCHREALTIME $SLURM_JOB_ID > {output}"
"""

# Logs whether a call was made on the login node or in a job, and sets SLURM_CONF again, which a plugin may remove.
WRAPPER = """\
#!/bin/sh
echo "${{SLURM_JOB_ID:-login}} {name}" >> {log}
export SLURM_CONF={conf}
exec {shim} "$@"
"""


@dataclass(frozen=True)
class Side:
    """Executor under comparison.

    Attributes:
        name: heading of its column.
        bin: folder of its Snakemake.
        options: options of Snakemake beside the shared ones.
        hurry: further options for the warm-up.
    """

    name: str
    bin: Path
    options: list[str]
    hurry: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """Measurements of one side's run.

    Attributes:
        jobs: number of jobs.
        wall: seconds from the start of Snakemake to its end.
        last_command: seconds until the last job's command ran.
        controller: processor seconds of slurmctld.
        machine: processor seconds of the whole machine, other work included.
        snakemake: processor seconds of Snakemake and its children.
        memory: peak memory of Snakemake and its children in MB.
        login: number of calls of each client on the login node.
        inside: number of calls of each client within jobs.
        rpcs: number of messages to slurmctld by kind.
    """

    jobs: int
    wall: float
    last_command: float
    controller: float
    machine: float
    snakemake: float
    memory: float
    login: dict[str, int] = field(default_factory=dict)
    inside: dict[str, int] = field(default_factory=dict)
    rpcs: dict[str, int] = field(default_factory=dict)

    def calls(self, client: str) -> int:
        """Return the total number of calls of a client."""
        return self.login.get(client, 0) + self.inside.get(client, 0)


# --- The two sides ---


def ours() -> Side:
    """Return the side of this project's executor, in the current environment."""
    return Side("submitit", Path(sys.executable).parent, ["--executor", "submitit"])


def theirs(folder: Path, arrays: bool = False) -> Side:
    """Return the side of the official plugin, in its own environment."""
    options = ["--executor", "slurm", "--slurm-status-command", "squeue"]
    hurry = ["--slurm-init-seconds-before-status-checks", "5"]
    if arrays:
        return Side(f"slurm {OFFICIAL}, arrays", folder / "bin", [*options, "--slurm-array-jobs", "all"], hurry)
    return Side(f"slurm {OFFICIAL}", folder / "bin", options, hurry)


def official_environment(folder: Path | None) -> Path:
    """Return the environment of the official plugin, created if it is missing.

    Args:
        folder: its folder; None for one in the user's cache that is named after the versions.
    """
    snakemake = importlib.metadata.version("snakemake")
    wanted = [f"snakemake=={snakemake}", f"snakemake-executor-plugin-slurm=={OFFICIAL}"]
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / f"patch-benchmarks/slurm-{OFFICIAL}-snakemake-{snakemake}-python-{platform.python_version()}"
    folder = folder.absolute()
    done = folder / ".installed"
    if not done.exists() or done.read_text().split() != wanted:
        print(f"Installing {' and '.join(wanted)} into {folder}.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        done.write_text("\n".join(wanted))
    return folder


# --- A run ---


def write_wrappers(cluster: Cluster, folder: Path) -> Path:
    """Write the wrappers into a folder and return the path of their log."""
    folder.mkdir()
    log = folder.parent / "calls"
    log.touch()
    for name in CLIENTS:
        if (shim := cluster.shims / name).exists():
            text = WRAPPER.format(name=name, log=shlex.quote(str(log)), conf=cluster.conf, shim=shim)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
    return log


def environment(side: Side, cluster: Cluster, wrappers: Path) -> dict[str, str]:
    """Return a side's environment variables: its own Snakemake and the wrappers, without other clusters or profiles."""
    kept = {
        name: value for name, value in os.environ.items() if not re.match("S(LURM|BATCH|QUEUE|RUN|NAKEMAKE)_", name)
    }
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        kept.pop(name, None)
    path = f"{side.bin}:{wrappers}:{cluster.env['PATH']}"
    return kept | cluster.env | {"PATH": path, "PYTHONDONTWRITEBYTECODE": ""}


def command(jobs: int, *options: str) -> list[str]:
    """Return the part of Snakemake's command line that all sides share."""
    common = ["--scheduler", "greedy", "--max-jobs-per-timespan", "10000/1s", "--latency-wait", str(LATENCY_WAIT)]
    return ["snakemake", "--jobs", str(jobs), *common, "--config", f"jobs={jobs}", "--nocolor", *options]


def run_side(side: Side, cluster: Cluster, folder: Path, jobs: int, hurry: bool = False) -> Outcome:
    """Run the jobs through one side and return its measurements.

    Raises:
        RunFailed: a job did not run, or not in a separate SLURM job.
    """
    folder.mkdir(parents=True)
    (folder / "Snakefile").write_text(SNAKEFILE)
    log = write_wrappers(cluster, folder / "wrappers")
    controller = cluster.pid("slurmctld")
    assert controller is not None
    before = process_seconds(controller), machine_seconds(), rpcs(cluster)
    began = time.time()
    run = run_process(
        command(jobs, *side.options, *(side.hurry if hurry else [])),
        environment(side, cluster, folder / "wrappers"),
        folder,
        SECONDS_AT_LEAST + SECONDS_A_JOB * jobs,
    )
    after = process_seconds(controller), machine_seconds(), rpcs(cluster)
    cluster.cancel_all()
    cluster.wait_idle(timeout=120)
    commands = check_outputs(folder / "out", jobs, run)
    calls = [line.split() for line in log.read_text().splitlines()]
    return Outcome(
        jobs=jobs,
        wall=run.wall,
        last_command=max(commands) - began,
        controller=after[0] - before[0],
        machine=after[1] - before[1],
        snakemake=run.processor,
        memory=run.memory,
        login=Counter(name for where, name in calls if where == "login"),
        inside=Counter(name for where, name in calls if where != "login"),
        rpcs=after[2] - before[2],
    )


def check_outputs(folder: Path, jobs: int, run: Finished) -> list[float]:
    """Return the time at which each job's command ran.

    Raises:
        RunFailed: Snakemake failed, a file is missing, or two were written by one SLURM job.
    """
    texts = [path.read_text().split() for path in (folder / f"{i}.txt" for i in range(jobs)) if path.exists()]
    slurm_jobs = {words[1] for words in texts if len(words) == 2}
    if run.code or len(slurm_jobs) != jobs:
        how = "did not end in time" if run.code is None else f"ended with code {run.code}"
        raise RunFailed(
            f"Snakemake {how}; {len(texts)} of {jobs} files exist, from {len(slurm_jobs)} SLURM jobs. Its output:\n"
            + "\n".join(run.output.read_text(errors="replace").splitlines()[-40:])
        )
    return [float(words[0]) for words in texts]


def rpcs(cluster: Cluster) -> Counter[str]:
    """Return the number of messages to slurmctld by kind, without this query itself."""
    text = cluster.run("sdiag").stdout.partition("statistics by message type")[2].partition("statistics by user")[0]
    found = re.findall(r"^\s*(\w+)\s*\(\s*\d+\)\s*count:(\d+)", text, flags=re.MULTILINE)
    return Counter({name: int(count) for name, count in found if name != "REQUEST_STATS_INFO"})


# --- The comparison ---


def compare(which: list[str], jobs: int, rounds: int, venv: Path | None, cluster: Cluster, folder: Path) -> int:
    """Run the sides, print the table, and return the exit code.

    Args:
        which: names of sides, `ours`, `theirs` and `arrays`.
        jobs: number of jobs.
        rounds: number of runs of each side.
        venv: environment of the official plugin; None for one in the user's cache.
        cluster: the cluster of the tests.
        folder: folder of the runs.
    """
    official = None if which == ["ours"] else official_environment(venv)
    sides = [ours()] if "ours" in which else []
    if official is not None:
        sides += [theirs(official, arrays=name == "arrays") for name in which if name != "ours"]
    outcomes, failures = run_sides(sides, jobs, rounds, cluster, folder)
    for name, words in failures.items():
        print(f"\n{name} FAILED: {words}")
    if outcomes:
        print(f"\n{jobs} jobs on {os.cpu_count()} cores, Python {platform.python_version()}\n")
        print(outcome_table(outcomes))
    result = summary(outcomes, failures)
    if "wall_ratio" in result:
        for name, most in (("wall_ratio", WALL_TARGET), ("sbatch_ratio", SBATCH_TARGET)):
            print(f"{name} {result[name]:.3f}, target {most}: {'met' if result[name] <= most else 'MISSED'}")
    print(json.dumps(result))
    return 1 if failures else 0


def run_sides(
    sides: list[Side], jobs: int, rounds: int, cluster: Cluster, folder: Path
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Return each side's median outcome by wall time, and the messages of failed sides; both by name."""
    outcomes: dict[str, list[Outcome]] = {side.name: [] for side in sides}
    failures: dict[str, str] = {}
    plan = [("warm-up", WARM_UP_JOBS, sides)]
    # Alternating order, so that side effects of one side do not always affect the other.
    plan += [(f"round {number + 1}", jobs, sides[:: -1 if number % 2 else 1]) for number in range(rounds)]
    for name, count, order in plan:
        for side in order:
            if side.name in failures:
                continue
            print(f"{name}: {count} jobs through {side.name} ...", end=" ", flush=True)
            place = folder / re.sub(r"\W+", "-", f"{name} {side.name}")
            try:
                outcome = run_side(side, cluster, place, count, hurry=name == "warm-up")
            except RunFailed as error:
                failures[side.name] = str(error)
                print("failed", flush=True)
                continue
            print(f"{outcome.wall:.0f} s", flush=True)
            if name != "warm-up":
                outcomes[side.name].append(outcome)
    medians = {
        name: sorted(several, key=lambda outcome: outcome.wall)[len(several) // 2]
        for name, several in outcomes.items()
        if several and name not in failures
    }
    return medians, failures


ROWS: list[tuple[str, Callable[[Outcome], float], str]] = [
    ("wall seconds", lambda o: o.wall, ".1f"),
    ("seconds until the last command ran", lambda o: o.last_command, ".1f"),
    ("the machine's processor seconds for each job, other work included", lambda o: o.machine / o.jobs, ".2f"),
    ("calls for each job, all commands", lambda o: sum(map(o.calls, CLIENTS)) / o.jobs, ".3f"),
    ("slurmctld: processor milliseconds for each job", lambda o: 1000 * o.controller / o.jobs, ".1f"),
    ("slurmctld: messages for each job", lambda o: sum(o.rpcs.values()) / o.jobs, ".2f"),
    ("Snakemake on the login node: processor seconds", lambda o: o.snakemake, ".1f"),
    ("Snakemake on the login node: peak MB", lambda o: o.memory, ".0f"),
]


def outcome_table(outcomes: dict[str, Outcome]) -> str:
    """Return a table of the measurements; the ratio is the first side over the second."""
    names = list(outcomes)
    lines = []
    for title, value, form in ROWS:
        values = [value(outcome) for outcome in outcomes.values()]
        lines.append([title, *(format(number, form) for number in values), ratio(values)])
    for client in CLIENTS:
        for where in ("login", "inside"):
            values = [getattr(outcome, where).get(client, 0) for outcome in outcomes.values()]
            if any(values):
                title = f"calls of {client}, {'on the login node' if where == 'login' else 'inside jobs'}"
                lines.append([title, *map(str, values), ratio(values)])
    return table(["", *names, "ratio"], lines)


def ratio(values: list[float]) -> str:
    """Return the first value over the second, if both exist."""
    return f"{values[0] / values[1]:.3f}" if len(values) > 1 and values[1] else "-"


def summary(outcomes: dict[str, Outcome], failures: dict[str, str]) -> dict:
    """Return the last line: ratios if both sides exist, and all measurements."""
    numbers = {
        name: {
            **{key: round(number, 3) for key, number in vars(outcome).items() if isinstance(number, (int, float))},
            **{key: dict(value) for key, value in vars(outcome).items() if isinstance(value, dict)},
        }
        for name, outcome in outcomes.items()
    }
    result = {"cores": os.cpu_count(), "failed": sorted(failures), "runs": numbers}
    names = [ours().name, f"slurm {OFFICIAL}"]
    if all(name in outcomes for name in names):
        mine, other = (outcomes[name] for name in names)
        result |= {
            "wall_ratio": round(mine.wall / other.wall, 4),
            "last_command_ratio": round(mine.last_command / other.last_command, 4),
            "sbatch_ratio": round(mine.calls("sbatch") / other.calls("sbatch"), 4),
            "controller_ratio": round(mine.controller / other.controller, 4),
            "rpc_ratio": round(sum(mine.rpcs.values()) / sum(other.rpcs.values()), 4),
        }
    return result
