"""The jobs of an experiment as a graph: who needs whom, and what a run would do now."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from patch.pipeline.resources.cost import CostModel
from patch.pipeline.resources.disk import DiskModel, folder_size
from patch.pipeline.resources.jobs import JobList, Node
from patch.pipeline.resources.schedule import Task
from patch.pipeline.runs.plan import Plan

# Rules whose processes take `resources.threads` each.
THREADED = (
    "tokenize",
    "train_model",
    "statistics",
    "prune",
    "update_weights",
    "learn",
    "quantize",
    "evaluate",
    "speedup",
)
# Stages whose outputs are asked for themselves.
WANTED = ("evaluate", "speedup", "tabulate")


class JobGraph:
    """All jobs that the tables and figures of an experiment need, each after those that it needs.

    Args:
        plan: the experiment.
        outputs: what a run will make, where Snakemake says so; None for all that is missing. An output that
            exists then counts as made, whatever its settings were: `snakemake -n` compares them too.

    Attributes:
        nodes: the jobs.
        remaining: those that a run would do now.
    """

    def __init__(self, plan: Plan, outputs: Collection[str] | None = None) -> None:
        self.plan = plan
        self.costs, self.disk = CostModel(plan.experiment, plan.grid), DiskModel(plan)
        nodes = JobList(plan, self.costs, self.disk).nodes()
        self.maker = {path: node for node in nodes for path in node.outputs}
        self.nodes = self._needed(nodes)
        self.remaining = self._remaining() if outputs is None else self._making(outputs)

    def needs(self, node: Node) -> set[Node]:
        """The jobs whose outputs ``node`` reads."""
        # A mask of another experiment, or a local one, is there already.
        return {self.maker[path] for path in node.inputs if path in self.maker}

    def _needed(self, nodes: list[Node]) -> list[Node]:
        """The tables, figures and records, and what these come from."""
        needed: set[Node] = set()
        for node in reversed(nodes):
            if node.stage in WANTED or node in needed:
                needed |= {node} | self.needs(node)
        return [node for node in nodes if node in needed]

    def _making(self, outputs: Collection[str]) -> list[Node]:
        return [node for node in self.nodes if any(path in outputs for path in node.outputs)]

    def _remaining(self) -> list[Node]:
        """What is missing and wanted, and what follows from a job that runs, as Snakemake sees it."""
        missing = {node for node in self.nodes if not all(Path(path).exists() for path in node.outputs)}
        run: set[Node] = set()
        size = -1
        while size < len(run):
            size = len(run)
            wanted = {need for node in run for need in self.needs(node)}
            wanted |= {node for node in self.nodes if node.stage in WANTED}
            for node in reversed(self.nodes):
                if node in missing and node in wanted:
                    run.add(node)
                    wanted |= self.needs(node)
            for node in self.nodes:
                if run & self.needs(node):
                    run.add(node)
        return [node for node in self.nodes if node in run]

    def slots(self, node: Node) -> int:
        """GPUs that a job holds on all its nodes, or on a `cpu` device cores."""
        resources, cost = self.plan.experiment.resources, node.cost
        if resources.device == "cuda":
            return cost.gpus * cost.nodes
        return resources.threads * cost.processes * cost.nodes if node.rule in THREADED else 1

    def tasks(self) -> list[Task]:
        """The remaining jobs, for the simulation."""
        index = {node: number for number, node in enumerate(self.remaining)}
        return [
            Task(
                node.cost.minutes,
                self.slots(node),
                tuple(sorted(index[need] for need in self.needs(node) if need in index)),
                *self._disk(node, index),
            )
            for node in self.remaining
        ]

    def _disk(self, node: Node, running: Collection[Node]) -> tuple[float, float]:
        """MB that a job takes when it starts and gives back when it ends."""
        claims, frees = node.space.kept + node.space.scratch, node.space.scratch
        cell = node.cell
        if node.rule == "learn":
            claims -= min(node.space.scratch, folder_size(self.plan.layout.checkpoints(cell)))
        elif cell and cell.quantization:
            claims += self.disk.quantized(cell) if node.rule == "quantize" else 0.0
            frees += self.disk.quantized(cell) if node.rule == "evaluate" else 0.0
        elif cell in self.plan.updated_cells:
            # Pruning leaves the weights for the evaluation; where the mask is there already, they are made anew.
            pruning = self.maker.get(self.plan.masks.mask(cell))
            if node.rule == "prune" or (node.rule == "update_weights" and pruning not in running):
                claims += self.disk.weights(cell)
            elif node.rule == "evaluate":
                frees += self.disk.weights(cell)
        return claims, frees
