"""Resource forecast of an experiment, for comparison with the measured resources."""

from __future__ import annotations

from functools import cached_property

from pydantic import ValidationError

from patch.errors import InputError
from patch.pipeline.resources.cost import Job
from patch.pipeline.resources.graph import JobGraph
from patch.pipeline.resources.jobs import STAGES, Node
from patch.pipeline.runs.plan import Plan
from patch.settings import Section

# Rule -> stage of a record that has the measured cost of the rule's job.
RECORDED = {
    "prune": "prune",
    "learn": "learn",
    "import_mask": "import",
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


class Numbers(Section):
    """Forecast by stage.

    ``stages`` has all jobs, as `python -m patch plan` counts them. ``recorded`` has the jobs whose cost is in records.
    """

    device: str
    stages: list[Line]
    recorded: list[Line]


class Forecast:
    """Forecast of a plan, computed on first use."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def json(self) -> str:
        """Forecast as JSON, for the command line of a job."""
        return self.numbers.model_dump_json()

    @cached_property
    def numbers(self) -> Numbers:
        """Forecast, which depends on the configuration but not on the existing outputs."""
        graph = JobGraph(self.plan)
        evaluated = {(run.model, run.pruned.id) for run in self.plan.grid.runs}
        stages = {stage: [node for node in graph.nodes if node.stage == stage] for stage in STAGES}
        recorded: dict[tuple[str, str], list[Node]] = {}
        for node in graph.nodes:
            run = node.run
            if node.rule in RECORDED and run and (run.model, run.pruned.id) in evaluated:
                of = run.quantization or run.method if node.rule == "quantize" else run.method
                recorded.setdefault((RECORDED[node.rule], of), []).append(node)
        return Numbers(
            device=self.plan.experiment.resources.device,
            stages=[_line(graph, stage, "", nodes) for stage, nodes in stages.items() if nodes],
            recorded=[_line(graph, stage, of, nodes) for (stage, of), nodes in recorded.items()],
        )


def _line(graph: JobGraph, stage: str, of: str, nodes: list[Node]) -> Line:
    on_gpu = graph.plan.experiment.resources.device == "cuda"

    def memory(cost: Job) -> int:
        return cost.gpu_mem_mb if on_gpu else cost.mem_mb

    return Line(
        stage=stage,
        of=of,
        jobs=len(nodes),
        minutes=sum(node.cost.minutes for node in nodes),
        device_hours=round(sum(graph.slots(node) * node.cost.minutes for node in nodes) / 60, 3),
        memory_mb=max(memory(node.cost) for node in nodes),
    )


def read_forecast(text: str) -> Numbers:
    """Read a forecast from JSON.

    Raises:
        InputError: The text is not a forecast.
    """
    try:
        return Numbers.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"--forecast: {error.errors()[0]['msg']}") from None
