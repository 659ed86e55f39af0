"""Resource forecast of an experiment, for comparison with the measured resources."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from patch.errors import InputError
from patch.files.io import atomic_file
from patch.pipeline.resources.jobs import Job, JobGraph
from patch.settings import Section

# Rule -> stage of a record that has the measured cost of the rule's job.
RECORDED = {
    "prune": "prune",
    "learn": "learn",
    "import_mask": "import",
    "finetune": "finetune",
    "quantize": "quantize",
    "evaluate": "evaluate",
}


class Line(Section):
    """Totals of the jobs of one stage and, if ``of`` is not empty, of one method.

    ``minutes`` is the sum of the jobs' wall times. ``device_hours`` counts each GPU, or each core on a `cpu` device.
    ``memory_mb`` is the GPU memory of the largest job, or its host memory on a `cpu` device.
    """

    stage: str
    of: str
    jobs: int
    minutes: int
    device_hours: float
    memory_mb: int


class Forecast(Section):
    """Forecast by stage.

    ``stages`` has all jobs, as `python -m patch plan` counts them. ``recorded`` has the jobs whose cost is in records.
    """

    device: str
    stages: list[Line]
    recorded: list[Line]


def forecast(graph: JobGraph) -> Forecast:
    """Return the forecast of all jobs of a graph, finished or not."""
    grid, device = graph.plan.grid, graph.plan.experiment.resources.device
    evaluated = {(run.model, run.pruned.id) for run in grid.runs}
    recorded: dict[tuple[str, str], list[Job]] = {}
    for job in graph.jobs:
        if job.rule in RECORDED:
            run = grid.run(job.model, job.name)
            if (run.model, run.pruned.id) in evaluated:
                recorded.setdefault((RECORDED[job.rule], run.made_by(job.rule)), []).append(job)
    return Forecast(
        device=device,
        stages=[_line(stage, "", jobs, device) for stage, jobs in graph.stages.items() if jobs],
        recorded=[_line(stage, of, jobs, device) for (stage, of), jobs in recorded.items()],
    )


def _line(stage: str, of: str, jobs: list[Job], device: str) -> Line:
    return Line(
        stage=stage,
        of=of,
        jobs=len(jobs),
        minutes=sum(job.minutes for job in jobs),
        device_hours=round(sum(job.slots * job.minutes for job in jobs) / 60, 3),
        memory_mb=max(job.gpu_mem_mb if device == "cuda" else job.mem_mb for job in jobs),
    )


def write_forecast(path: Path | str, graph: JobGraph) -> None:
    """Write the forecast of a graph as JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(forecast(graph).model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_forecast(path: Path | str) -> Forecast:
    """Read a forecast.

    Raises:
        InputError: The file is missing or is not a forecast.
    """
    try:
        return Forecast.model_validate_json(Path(path).read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise InputError(f"{path}: not a forecast ({reason}); `snakemake` writes it when a run starts") from None
