"""Record that the evaluation of a run writes, and the costs and densities that follow from records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import model_validator

from patch.evaluation.metric import Fraction, HeldOutLoss, Metric, StageCost, accuracy_names, check_metrics
from patch.files.schema import Name, Positive, Schema
from patch.pipeline.results.result_files import RunFile

StageName = Literal["prune", "learn", "import", "finetune", "quantize", "evaluate"]
# Fractions computed from fp64 sums differ in their last digits.
_ROUNDING = 1e-9


class Environment(Schema):
    """Software and hardware environment of a measurement.

    ``device`` is the name of the GPU or the CPU that computed, and ``processor`` is that of the CPU, None in records of
    earlier versions, whose ``device`` is the architecture of the CPU or the name of the GPU. ``time`` is in ISO 8601
    format.
    """

    git_commit: str | None
    python: str
    packages: dict[str, str]
    device: str
    processor: str | None = None
    threads: Positive
    time: str

    @property
    def machine(self) -> dict[str, str]:
        """Names of the processor and the GPU by their kind; of an old record, that of the device."""
        if self.processor is None:
            return {"device": self.device}
        return {"processor": self.processor} | ({"GPU": self.device} if self.device != self.processor else {})


class Record(RunFile):
    """Results of one run.

    ``achieved_sparsity`` is counted on the evaluated model. ``density`` is the kept fraction of each linear layer.
    Kept weights that quantization rounds to zero count as kept. ``held_out`` has the held-out losses of a learned
    mask; it is None for other masks and for derived runs.
    """

    what = "a record"

    metrics: dict[Name, Metric]
    achieved_sparsity: Fraction
    density: dict[Name, Fraction]
    stages: dict[StageName, StageCost]
    environment: Environment
    held_out: HeldOutLoss | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Record:
        """Check the ranges of the metrics, and that the achieved sparsity lies within the range of the densities."""
        check_metrics(self.metrics)
        if "perplexity" not in self.metrics:
            raise ValueError("`metrics` has no perplexity")
        tasks = accuracy_names(self.metrics)
        if tasks and "accuracy" not in self.metrics:
            raise ValueError(f"`metrics` has no accuracy, the mean of {', '.join(tasks)}")
        if self.density:
            found, (low, high) = self.achieved_sparsity, (1 - bound(self.density.values()) for bound in (max, min))
            if not low - _ROUNDING <= found <= high + _ROUNDING:
                raise ValueError(f"`achieved_sparsity` is {found}; `density` gives {low:.6g} to {high:.6g}")
        return self


@dataclass(frozen=True)
class Cost:
    """Cost of all jobs of one stage and method: job count, total seconds, and the largest peak memory in MB."""

    jobs: int
    seconds: float
    peak_memory_mb: float


def measured_costs(records: Iterable[Record]) -> dict[tuple[str, str], Cost]:
    """Return the cost for each (stage, method), ordered by stage and then by record.

    A mask is counted once even if several runs use it: the record of a run and those of its derived runs all contain
    the cost of the same mask. A mask that only initializes other runs has no record and is not counted.
    """
    jobs: dict[tuple[str, str], dict[tuple[str, str], tuple[float, float]]] = {}
    for record in records:
        run = record.run
        mask = run.model_copy(update={"variant": None}).pruned.id
        for stage, cost in record.stages.items():
            method = run.made_by(stage)
            # An ablation's default value shares the plain run's mask. Equal cost identifies the shared mask.
            made = f"{mask} {cost.seconds} {cost.peak_memory_mb}"
            job = run.id if stage in ("finetune", "quantize", "evaluate") else made
            jobs.setdefault((stage, method), {})[run.model, job] = (cost.seconds, cost.peak_memory_mb)
    stages = get_args(StageName)
    return {
        key: Cost(len(jobs[key]), sum(s for s, _ in jobs[key].values()), max(peak for _, peak in jobs[key].values()))
        for key in sorted(jobs, key=lambda key: stages.index(key[0]))
    }


def projections(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return the projection and block of each layer: `model.layers.3.self_attn.q_proj` -> (`q_proj`, 3).

    The last component is the projection. The first integer is the block, 0 if there is none. A projection that occurs
    twice in a block, such as GPT-2's `c_proj` in attention and MLP, is prefixed with the component before it.
    """
    parts = {name: re.split(r"[./]", name) for name in names}
    blocks = {name: next((int(part) for part in split if part.isdigit()), 0) for name, split in parts.items()}
    counts = Counter((split[-1], blocks[name]) for name, split in parts.items())
    twice = {projection for (projection, _), count in counts.items() if count > 1}
    return {
        name: (".".join(split[-2:]) if split[-1] in twice else split[-1], blocks[name]) for name, split in parts.items()
    }


def projection_density(density: dict[str, float]) -> dict[str, float]:
    """Return the mean kept fraction of each projection over blocks; a projection has the same size in all blocks."""
    fractions: dict[str, list[float]] = {}
    for name, (projection, _) in projections(density).items():
        fractions.setdefault(projection, []).append(density[name])
    return {projection: sum(values) / len(values) for projection, values in fractions.items()}
