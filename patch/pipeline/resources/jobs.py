"""Jobs of an experiment, with their dependencies and resources, read from Snakemake's job graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from patch.pipeline.resources.cost import Estimate
from patch.pipeline.resources.disk import Space
from patch.pipeline.resources.schedule import Task
from patch.pipeline.runs.plan import Plan

if TYPE_CHECKING:
    from snakemake.dag import DAG
    from snakemake.jobs import Job as SnakemakeJob

# Rows of the printed plan and the rules of each row.
STAGES = {
    "fetch": ("fetch_corpus", "fetch_model", "fetch_mask", "fetch_tasks", "make_tasks", "make_tokenizer"),
    "tokenize": ("calibrate", "tokenize"),
    "self-test": ("self_test",),
    "train": ("train_model",),
    "statistics": ("statistics",),
    "import": ("import_mask",),
    "prune": ("prune",),
    "update": ("update_weights",),
    "learn": ("learn",),
    "finetune": ("finetune",),
    "quantize": ("quantize",),
    "evaluate": ("evaluate",),
    "speedup": ("speedup",),
    "export": ("export",),
    "tabulate": (
        "collect",
        "compare",
        "table",
        "pareto",
        "density",
        "curves",
        "speedup_figure",
        "explore",
        "overview",
        "summary",
    ),
}
# Memory in MB of a job that needs little more than its libraries.
LIGHT_MB = 1000
# Assumes a download at 50 MB/s.
DOWNLOADED_MB_PER_MINUTE = 3000
# Resources of the rules that compute or download.
JOB_RESOURCES = ("gpus", "mem_mb", "gpu_mem_mb", "runtime", "disk_mb", "scratch_mb", "cache_mb")


def download(space: Space) -> Estimate:
    """Return the resources of a job that downloads or copies files."""
    return Estimate(0, LIGHT_MB, 0, 1 + int(max(space.kept + space.scratch, space.cache) / DOWNLOADED_MB_PER_MINUTE))


def job_resources(cost: Estimate, space: Space) -> dict[str, int]:
    """Return the values of ``JOB_RESOURCES``; disk space is rounded up to whole MB."""
    disk = map(math.ceil, (space.kept + space.scratch, space.scratch, space.cache))
    return dict(zip(JOB_RESOURCES, (cost.gpus, cost.mem_mb, cost.gpu_mem_mb, cost.minutes, *disk), strict=True))


@dataclass(frozen=True, eq=False)
class Job:
    """One job.

    Attributes:
        rule: Rule of the workflow.
        model: Model that the job belongs to, or None if models share it.
        name: Run of the job, or the name of the artifact that it makes.
        of_run: True if ``name`` is a run of ``model``.
        outputs: Paths that the job writes.
        log: Path of the log.
        benchmark: Path of the file that Snakemake writes after the job succeeds.
        needs: Jobs whose outputs the job reads.
        to_run: True if Snakemake would run the job now.
        temporary: True if the outputs are removed after the last job that reads them.
        gpus: GPUs on each node.
        slots: GPUs on all nodes, or cores if the device is `cpu`.
        mem_mb: Host memory on each node in MB.
        gpu_mem_mb: Memory on each GPU in MB, or 0 on the CPU.
        minutes: Limit of the wall time in minutes.
        disk_mb: Disk space in MB that the job allocates in `work/` and `results/`.
        scratch_mb: Part of ``disk_mb`` that the job releases when it ends.
        cache_mb: Disk space in MB that the job allocates in the cache of the hub's libraries.
    """

    rule: str
    model: str | None
    name: str
    of_run: bool
    outputs: tuple[str, ...]
    log: str
    benchmark: str
    needs: frozenset[Job]
    to_run: bool
    temporary: bool
    gpus: int
    slots: int
    mem_mb: int
    gpu_mem_mb: int
    minutes: int
    disk_mb: float
    scratch_mb: float
    cache_mb: float

    @property
    def stage(self) -> str:
        """Row of the printed plan; a rule that is not in ``STAGES`` has its own."""
        return next((stage for stage, rules in STAGES.items() if self.rule in rules), self.rule)

    @property
    def kept_mb(self) -> float:
        """Disk space in MB that stays in use."""
        return 0.0 if self.temporary else self.disk_mb - self.scratch_mb


@dataclass(frozen=True)
class JobGraph:
    """Jobs that the requested files of an experiment need.

    Attributes:
        plan: Plan of the experiment.
        jobs: All jobs, each after those that it depends on.
    """

    plan: Plan
    jobs: Sequence[Job]

    @classmethod
    def read(cls, plan: Plan, dag: DAG) -> JobGraph:
        """Read the jobs of a graph that Snakemake has built."""
        to_run, jobs = set(dag.needrun_jobs()), {}
        for level in dag.toposorted():
            for job in sorted(level, key=lambda job: (job.rule.name, *job.output)):
                if job.output:  # a target such as `all` has none
                    needs = frozenset(jobs[need] for need in dag.dependencies[job])
                    jobs[job] = _job(plan, job, needs, job in to_run)
        return cls(plan, list(jobs.values()))

    @cached_property
    def stages(self) -> dict[str, list[Job]]:
        """Jobs of each row of the printed plan."""
        names = dict.fromkeys([*STAGES, *(job.stage for job in self.jobs)])
        return {stage: [job for job in self.jobs if job.stage == stage] for stage in names}

    @cached_property
    def remaining(self) -> list[Job]:
        """Jobs that Snakemake would run now."""
        return [job for job in self.jobs if job.to_run]

    def tasks(self) -> list[Task]:
        """Return the remaining jobs as tasks of the simulation."""
        index = {job: number for number, job in enumerate(self.remaining)}
        claims = [job.disk_mb for job in self.remaining]
        frees = [job.scratch_mb for job in self.remaining]
        last_reader = {need: number for number, job in enumerate(self.remaining) for need in job.needs}
        for number, job in enumerate(self.remaining):
            if job.rule == "update_weights":
                # The pruning job caches the weights, and this job moves them.
                for pruning in (index[need] for need in job.needs if need in index and need.rule == "prune"):
                    claims[number], frees[pruning] = 0.0, 0.0
            if job.temporary and job in last_reader:
                frees[last_reader[job]] += job.disk_mb
        return [
            Task(job.minutes, job.slots, tuple(sorted(index[n] for n in job.needs if n in index)), claim, free)
            for job, claim, free in zip(self.remaining, claims, frees, strict=True)
        ]


def _job(plan: Plan, job: SnakemakeJob, needs: frozenset[Job], to_run: bool) -> Job:
    wildcards = dict(job.wildcards_dict)
    # A rule that estimates nothing may have Snakemake's defaults, which are unknown until its inputs exist.
    resources = {} if job.resources.get("cache_mb") is None else job.resources
    model = wildcards.pop("model", None) or wildcards.pop("timed", None)
    gpus, nodes = resources.get("gpus", 0), resources.get("nodes", 1)
    cores = min(job.threads, plan.experiment.resources.threads * resources.get("processes", 1)) * nodes
    return Job(
        rule=job.rule.name,
        model=model or plan.model_folders.get(job.output[0]),
        name=next(iter(wildcards.values()), None) or model or Path(job.output[0]).stem,
        of_run=bool(model and wildcards),
        outputs=tuple(map(str, job.output)),
        log=str(job.log[0]),
        benchmark=str(job.benchmark),
        needs=needs,
        to_run=to_run,
        temporary=bool(job.temp_output),
        gpus=gpus,
        slots=gpus * nodes if plan.experiment.resources.device == "cuda" else cores,
        mem_mb=resources.get("mem_mb", LIGHT_MB),
        gpu_mem_mb=resources.get("gpu_mem_mb", 0),
        minutes=resources.get("runtime", 1),
        disk_mb=resources.get("disk_mb", 0),
        scratch_mb=resources.get("scratch_mb", 0),
        cache_mb=resources.get("cache_mb", 0),
    )
