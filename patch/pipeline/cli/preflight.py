"""Checks of disk space, hub access and folders before the first job of a cluster run, and of kernels on a node.

The checks apply to the machine that Snakemake runs on, where the `fetch_*` rules run too. With `--self-test`, the
kernels of this machine are compared with plain PyTorch instead, as the first GPU job of a run does.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from patch.errors import InputError, print_result
from patch.hub.access import Wanted, fetches, hub_problems
from patch.pipeline.cli.workflow import command_parser, read_graph
from patch.pipeline.reporting.units import hours, size
from patch.pipeline.resources.cost import CostModel
from patch.pipeline.resources.jobs import JobGraph
from patch.pipeline.resources.limits import too_large
from patch.pipeline.resources.schedule import simulate
from patch.pipeline.runs.layout import STORE, Layout
from patch.pipeline.runs.plan import Plan

# File systems that are not visible to other machines.
NODE_LOCAL = ("tmpfs", "ramfs", "devtmpfs")


def preflight(
    graph: JobGraph, jobs: float = math.inf, api: Any = None, environment: Mapping[str, str] | None = None
) -> str:
    """Check disk space, hub access and folders before a run starts.

    Args:
        graph: Jobs of the experiment; paths are relative to the current folder.
        jobs: Maximum number of jobs at the same time, as in Snakemake's `--jobs`.
        api: A `huggingface_hub.HfApi` or a substitute for it.
        environment: Environment variables, or None for those of the process.

    Returns:
        Lines on the remaining jobs, the disk space and the hub, and one line for each warning.

    Raises:
        InputError: A job would fail; the message has one line for each problem.
    """
    environment = os.environ if environment is None else environment
    plan, (wanted, tasks) = graph.plan, to_fetch(graph)
    problems, disk = _disk(graph, jobs, environment)
    problems = [*_folders(plan), *problems, *hub_problems(wanted, tasks, environment, api)]
    if problems:
        problems.append("(`snakemake --no-hooks` starts without these checks)")
        raise InputError("preflight: " + "\n  ".join(problems))
    work = sum(job.slots * job.minutes for job in graph.remaining) / 60
    unit = "GPU" if plan.experiment.resources.device == "cuda" else "CPU"
    lines = [
        f"plan: {len(graph.remaining)} of {len(graph.jobs)} jobs to come, up to {hours(work)} {unit}-hours",
        f"disk: {disk}",
        f"hub: {fetches(wanted, tasks)} can be fetched" if wanted or tasks else "hub: nothing to fetch",
    ]
    return "\n".join([*lines, *_warnings(graph)])


def to_fetch(graph: JobGraph) -> tuple[list[Wanted], bool]:
    """Return the hub repositories that the remaining jobs download, and whether they download lm-eval's data sets."""
    experiment, store = graph.plan.experiment, graph.plan.store
    made = {path for job in graph.remaining for path in job.outputs}
    sources = [
        (f"{section}.{name}.source", kind, entries[name].source)
        for section, kind, entries, path_of in (
            ("models", "model", experiment.models, store.model_path),
            ("corpora", "dataset", experiment.corpora, store.corpus_path),
            ("imports", "mask", experiment.imports, store.mask_source),
        )
        for name in entries
        if path_of(name) in made
    ]
    wanted = [Wanted(key, kind, source.repo, source.revision) for key, kind, source in sources if source.kind == "hub"]
    return wanted, any(job.rule == "fetch_tasks" for job in graph.remaining)


def _folders(plan: Plan) -> list[str]:
    problems = []
    for folder in (STORE, plan.layout.root):
        there = _existing(folder)
        if not there.is_dir():
            problems.append(f"{folder}/ cannot be created: {there} is not a folder; move it away")
        elif not os.access(there, os.W_OK | os.X_OK):
            problems.append(f"{folder}/ cannot be written: {there} is not writable for you; change its permissions")
    return problems


def _disk(graph: JobGraph, jobs: float, environment: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the disk space problems, and a summary of needed and free space."""
    tasks, results = graph.tasks(), graph.plan.layout.root
    kept = sum(job.kept_mb for job in graph.remaining if job.outputs[0].startswith(f"{results}/"))
    cache = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    folders = {"work/": Path(STORE), "results/": Path(results), "HF_HOME": Path(cache).expanduser()}
    folders = {name: _existing(folder) for name, folder in folders.items()}
    devices = {name: folder.stat().st_dev for name, folder in folders.items()}
    needs = {
        "work/": simulate(tasks, jobs=jobs).peak_mb,
        "results/": 0.0 if devices["results/"] == devices["work/"] else kept,  # the peak of all jobs includes it
        "HF_HOME": sum(job.cache_mb for job in graph.remaining),
    }
    problems, lines = [], []
    for device in dict.fromkeys(devices.values()):
        names = [name for name in needs if devices[name] == device and (needs[name] or name != "HF_HOME")]
        if not names:
            continue
        need, free = sum(needs[name] for name in names), shutil.disk_usage(folders[names[0]]).free / 1e6
        lines.append(f"{size(need)} needed at most in {', '.join(names)}, {size(free)} free")
        if need > free:
            hint = "free some space or move the folder to another disk"
            if "work/" in names:
                alone = need - needs["work/"] + simulate(tasks, jobs=1).peak_mb
                fewer = ", or run fewer jobs at once: --jobs 1 needs" if alone <= free else ": even --jobs 1 needs"
                hint = f"free some space{fewer} {size(alone)}"
            problems.append(f"disk: {lines[-1]}; {hint}")
    return problems, "; ".join(lines)


def _warnings(graph: JobGraph) -> list[str]:
    plan, warnings = graph.plan, []
    for folder in (STORE, plan.layout.root):
        kind = filesystem(folder)
        if kind in NODE_LOCAL:
            warnings.append(f"warning: {folder}/ is on {kind}, which is not visible on the nodes that run the jobs")
    for name in plan.experiment.reuse:
        if not Path(Layout(name).root).is_dir():
            warnings.append(f"warning: `reuse` names {name!r}, which has no results here, so nothing of it is reused")
    if too_large(CostModel(plan)):
        warnings.append("warning: some jobs need more memory than a GPU has; `python -m patch plan` lists them")
    return warnings


def filesystem(folder: Path | str) -> str | None:
    """Return the type of the file system that a folder is or will be on, such as `nfs4`, or None if unknown."""
    path = _existing(folder)
    # A later mount at the same path hides an earlier one.
    kinds = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((kinds[parent] for parent in (path, *path.parents) if parent in kinds), None)


def _existing(folder: Path | str) -> Path:
    """Return the folder or its nearest existing parent, with links resolved."""
    path = Path(folder).resolve()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _self_test(device: str | None) -> str:
    # Imported here because a check before a run does not need torch.
    import torch

    from patch.pipeline.stages.self_test import self_test, summary

    return summary(self_test(device or ("cuda" if torch.cuda.is_available() else "cpu")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch preflight` and return the exit code."""
    parser = command_parser("preflight", __doc__)
    about = "maximum number of jobs at the same time, as in `snakemake --jobs N` (default: no limit)"
    parser.add_argument("--jobs", metavar="N", type=int, help=about)
    about = "compare the kernels of this machine with plain PyTorch, and check nothing else"
    parser.add_argument("--self-test", action="store_true", help=about)
    about = "device of --self-test (default: cuda if torch finds a GPU)"
    parser.add_argument("--device", choices=("cpu", "cuda"), help=about)
    options = parser.parse_args(arguments)
    if options.self_test:
        return print_result(lambda: _self_test(options.device))
    jobs = math.inf if options.jobs is None else max(1, options.jobs)
    return print_result(lambda: preflight(read_graph(options), jobs))
