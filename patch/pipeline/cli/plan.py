"""Resource plan of an experiment: jobs, GPU-hours, memory, disk and wall time, in total and remaining."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from patch.errors import InputError, print_result
from patch.pipeline.cli.workflow import command_parser, read_graph
from patch.pipeline.reporting.units import aligned_lines, duration, hours, size
from patch.pipeline.resources.cost import SLACK, CostModel
from patch.pipeline.resources.jobs import Job, JobGraph
from patch.pipeline.resources.limits import exchanges, too_large
from patch.pipeline.resources.schedule import simulate
from patch.pipeline.runs.learning_rates import far_rates

GPUS = (1, 4, 8, 32)
SHARED = "(shared)"
# Maximum number of printed lines about jobs that do not fit.
SHOWN = 10


def budget(graph: JobGraph, gpus: Sequence[int] = GPUS) -> dict[str, Any]:
    """Return all numbers of the plan as values that JSON can represent.

    Args:
        graph: Jobs of the experiment.
        gpus: Numbers of GPUs, or of cores on a `cpu` device, to estimate the wall time for.

    Returns:
        `experiment` and `device`; `total`, as in ``_sums``; `stages` and `models`, which map a name to values as in
        ``_sums``; `disk` in MB; `wall`, a list of `gpus`, `minutes` and `peak_disk_mb`; `too_large`, `exchanges`
        and `far_rates`, lists of lines.
        The last entry of `wall` has no limit and `gpus` None. `minutes` and `peak_disk_mb` are None if a job needs
        more GPUs.
    """
    plan, jobs, tasks = graph.plan, graph.jobs, graph.tasks()
    wall = []
    for count in [*gpus, None]:
        outcome = simulate(tasks, math.inf if count is None else count)
        minutes, peak = (outcome.minutes, round(outcome.peak_mb)) if outcome else (None, None)
        wall.append({"gpus": count, "minutes": minutes, "peak_disk_mb": peak})
    models = {name: [job for job in jobs if job.model == name] for name in plan.models}
    models[SHARED] = [job for job in jobs if job.model is None]
    return {
        "experiment": plan.experiment.experiment,
        "device": plan.experiment.resources.device,
        "total": _sums(jobs),
        "stages": {stage: _sums(some) for stage, some in graph.stages.items()},
        "models": {name: _sums(some) for name, some in models.items()},
        "disk": {
            "kept_mb": round(sum(job.kept_mb for job in jobs)),
            "kept_to_come_mb": round(sum(job.kept_mb for job in graph.remaining)),
            "cache_to_come_mb": round(sum(job.cache_mb for job in graph.remaining)),
        },
        "wall": wall,
        "too_large": too_large(CostModel(plan)),
        "exchanges": exchanges(CostModel(plan)),
        "far_rates": far_rates(plan.grid),
    }


def _sums(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the number, device hours, disk space and largest requirements of ``jobs``.

    Keys that end in `to_come` count only the jobs that are still to run.
    """
    to_come = [job for job in jobs if job.to_run]
    return {
        "jobs": len(jobs),
        "jobs_to_come": len(to_come),
        "hours": round(sum(job.slots * job.minutes for job in jobs) / 60, 2),
        "hours_to_come": round(sum(job.slots * job.minutes for job in to_come) / 60, 2),
        "longest_minutes": max((job.minutes for job in jobs), default=0),
        "mem_mb": max((job.mem_mb for job in jobs), default=0),
        "gpu_mem_mb": max((job.gpu_mem_mb for job in jobs), default=0),
        "kept_mb": round(sum(job.kept_mb for job in jobs)),
    }


def to_text(numbers: dict[str, Any]) -> str:
    """Return the plan as plain-text tables."""
    total, disk, on_gpu = numbers["total"], numbers["disk"], numbers["device"] == "cuda"
    unit = "GPU" if on_gpu else "CPU"
    done = total["jobs"] - total["jobs_to_come"]
    lines = [f"{numbers['experiment']}: {total['jobs']} jobs, {done} done, {total['jobs_to_come']} to come", ""]
    heads = ["jobs", "to come", f"{unit}-hours", "to come", "longest job", "memory", "GPU memory", "disk"]
    for name in ("stages", "models"):
        rows = {row: sums for row, sums in numbers[name].items() if sums["jobs"]}
        rows |= {"all": total}
        table = [[name.removesuffix("s"), *heads], *[[row, *_row(sums)] for row, sums in rows.items()]]
        lines += [*aligned_lines(table), ""]
    walls = [["GPUs" if on_gpu else "cores", "wall time", "peak disk"]]
    for wall in numbers["wall"]:
        fits = wall["minutes"] is not None
        values = [duration(wall["minutes"]), size(wall["peak_disk_mb"])] if fits else ["-", "-"]
        walls.append([f"{wall['gpus'] or 'unlimited'}", *values])
    lines += [*aligned_lines(walls), ""]
    if any(wall["minutes"] is None for wall in numbers["wall"]):
        lines.append(f"-: a job needs more {walls[0][0]} than that.")
    lines.append(
        f"Disk, work/ and results/: {size(disk['kept_mb'])} kept, {size(disk['kept_to_come_mb'])} of it to come; "
        "peak disk includes temporary files of the jobs to come."
    )
    if disk["cache_to_come_mb"]:
        lines.append(f"Disk, the hub's cache (HF_HOME): {size(disk['cache_to_come_mb'])} to come.")
    large = numbers["too_large"]
    lines += [f"Does not fit: {line}" for line in large[:SHOWN]]
    if len(large) > SHOWN:
        lines.append(f"Does not fit: {len(large) - SHOWN} more (--json has all)")
    lines += [f"Exchange of {line}" for line in numbers["exchanges"]]
    lines += [f"Warning: {line}" for line in numbers["far_rates"]]
    model = "the cost model (patch/pipeline/resources/)"
    lines.append(f"Times are limits of {model} with a factor of {SLACK:g}, not expected times.")
    return "\n".join(lines)


def _row(sums: dict[str, Any]) -> list[str]:
    return [
        f"{sums['jobs']}",
        f"{sums['jobs_to_come']}",
        hours(sums["hours"]),
        hours(sums["hours_to_come"]),
        duration(sums["longest_minutes"]),
        size(sums["mem_mb"]),
        size(sums["gpu_mem_mb"]) if sums["gpu_mem_mb"] else "-",
        size(sums["kept_mb"]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch plan` and return the exit code."""
    parser = command_parser("plan", __doc__)
    about = "numbers of GPUs, or of cores on a cpu device, to estimate the wall time for (default: 1 4 8 32)"
    parser.add_argument("--gpus", metavar="N", type=int, nargs="+", default=GPUS, help=about)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    return print_result(lambda: _report(options))


def _report(options: argparse.Namespace) -> str:
    if min(options.gpus) < 1:
        raise InputError(f"--gpus is {min(options.gpus)}; it must be 1 or more")
    numbers = budget(read_graph(options), options.gpus)
    return json.dumps(numbers, indent=1) if options.json else to_text(numbers)
