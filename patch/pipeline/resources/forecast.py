"""What the plan says that an experiment takes, to be shown beside what it took."""

from __future__ import annotations

from functools import cached_property

from pydantic import ValidationError

from patch.errors import InputError
from patch.pipeline.resources.cost import Job
from patch.pipeline.resources.graph import JobGraph
from patch.pipeline.resources.jobs import STAGES, Node
from patch.pipeline.runs.plan import Plan
from patch.settings import Section

# Rule -> the stage of a record that tells of it.
RECORDED = {
    "prune": "prune",
    "learn": "learn",
    "import_mask": "import",
    "quantize": "quantize",
    "evaluate": "evaluate",
}


class Line(Section):
    """Jobs of one stage and, where ``of`` is not empty, one method: their number, time in all, the largest's memory.

    ``minutes`` are the jobs' own, ``device_hours`` count each GPU, on a `cpu` device each core; ``memory_mb`` is a
    GPU's, on a `cpu` device the host's.
    """

    stage: str
    of: str
    jobs: int
    minutes: int
    device_hours: float
    memory_mb: int


class Numbers(Section):
    """``stages``: all jobs, as `python -m patch plan` counts them; ``recorded``: those that records tell of."""

    device: str
    stages: list[Line]
    recorded: list[Line]


class Forecast:
    """The plan's numbers; they are made when they are asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def json(self) -> str:
        """`Numbers`, for the command line of a job."""
        return self.numbers.model_dump_json()

    @cached_property
    def numbers(self) -> Numbers:
        """They depend on the configuration alone, not on what is there already."""
        graph = JobGraph(self.plan)
        evaluated = {(cell.model, cell.pruned.id) for cell in self.plan.grid.cells}
        stages = {stage: [node for node in graph.nodes if node.stage == stage] for stage in STAGES}
        recorded: dict[tuple[str, str], list[Node]] = {}
        for node in graph.nodes:
            cell = node.cell
            if node.rule in RECORDED and cell and (cell.model, cell.pruned.id) in evaluated:
                of = cell.quantization or cell.method if node.rule == "quantize" else cell.method
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
    """`Numbers` from their JSON.

    Raises:
        InputError: they are not that.
    """
    try:
        return Numbers.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"--forecast: {error.errors()[0]['msg']}") from None
