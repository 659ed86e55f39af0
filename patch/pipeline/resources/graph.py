"""Dependency graph of the jobs of an experiment, and the jobs that are still to be run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from patch.pipeline.resources.cost import CostModel
from patch.pipeline.resources.disk import DiskModel, folder_size
from patch.pipeline.resources.jobs import JobList, Node
from patch.pipeline.resources.schedule import Task
from patch.pipeline.runs.plan import Plan

# Rules whose processes use `resources.threads` threads each.
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
# Stages whose outputs are results of the experiment.
WANTED = ("evaluate", "speedup", "tabulate")


class JobGraph:
    """Graph of all jobs that the tables and figures of an experiment need, in topological order.

    Args:
        plan: Plan of the experiment.
        outputs: Paths that Snakemake will make, or None for all missing outputs. With None, an existing output counts
            as done even if it was made with other settings; `snakemake -n` also compares the settings.

    Attributes:
        nodes: All jobs.
        remaining: Jobs that are still to be run.
    """

    def __init__(self, plan: Plan, outputs: Collection[str] | None = None) -> None:
        self.plan = plan
        self.costs, self.disk = CostModel(plan.experiment, plan.grid), DiskModel(plan)
        nodes = JobList(plan, self.costs, self.disk).nodes()
        self.maker = {path: node for node in nodes for path in node.outputs}
        self.nodes = self._needed(nodes)
        self.remaining = self._remaining() if outputs is None else self._making(outputs)

    def needs(self, node: Node) -> set[Node]:
        """Return the jobs whose outputs ``node`` reads."""
        # No job makes a mask of another experiment or a local mask, which exist already.
        return {self.maker[path] for path in node.inputs if path in self.maker}

    def _needed(self, nodes: list[Node]) -> list[Node]:
        """Return the jobs that make tables, figures, records or speed measurements, and their dependencies."""
        needed: set[Node] = set()
        for node in reversed(nodes):
            if node.stage in WANTED or node in needed:
                needed |= {node} | self.needs(node)
        return [node for node in nodes if node in needed]

    def _making(self, outputs: Collection[str]) -> list[Node]:
        return [node for node in self.nodes if any(path in outputs for path in node.outputs)]

    def _remaining(self) -> list[Node]:
        """Return the jobs with missing, needed outputs and the jobs that depend on them, by the rules of Snakemake."""
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
        """Return the number of GPUs that a job holds on all its nodes, or of cores if the device is `cpu`."""
        resources, cost = self.plan.experiment.resources, node.cost
        if resources.device == "cuda":
            return cost.gpus * cost.nodes
        return resources.threads * cost.processes * cost.nodes if node.rule in THREADED else 1

    def tasks(self) -> list[Task]:
        """Return the remaining jobs as tasks of the simulation."""
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
        """Return the disk space in MB that a job allocates when it starts, and that is released when it ends."""
        claims, frees = node.space.kept + node.space.scratch, node.space.scratch
        run = node.run
        if node.rule == "learn":
            claims -= min(node.space.scratch, folder_size(self.plan.layout.checkpoints(run)))
        elif run and run.quantization:
            claims += self.disk.quantized(run) if node.rule == "quantize" else 0.0
            frees += self.disk.quantized(run) if node.rule == "evaluate" else 0.0
        elif run in self.plan.updated_runs:
            # The pruning job caches the weights. If the mask exists already, `update_weights` recomputes them.
            pruning = self.maker.get(self.plan.masks.mask(run))
            if node.rule == "prune" or (node.rule == "update_weights" and pruning not in running):
                claims += self.disk.weights(run)
            elif node.rule == "evaluate":
                frees += self.disk.weights(run)
        return claims, frees
