"""Measured cost of an experiment's runs, read from their records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from patch.pipeline.results.record import Record

STAGES = ("prune", "learn", "import", "quantize", "evaluate")


@dataclass(frozen=True)
class Cost:
    """Cost of all jobs of one stage and method: job count, total seconds, and the largest peak memory in MB."""

    jobs: int
    seconds: float
    peak_memory_mb: float


def measured_costs(records: Iterable[Record]) -> dict[tuple[str, str], Cost]:
    """Return the cost for each (stage, method), ordered by stage and then by record.

    A mask is counted once even if several runs use it: the record of a run and those of its quantized versions all
    contain the cost of the same mask. A mask that only initializes other runs has no record and is not counted.
    """
    jobs: dict[tuple[str, str], dict[tuple[str, str], tuple[float, float]]] = {}
    for record in records:
        run = record.run
        mask = run.model_copy(update={"variant": None}).pruned.id
        for stage, cost in record.stages.items():
            of = run.quantization or run.method if stage == "quantize" else run.method
            # An ablation's default value shares the plain run's mask. Equal cost identifies the shared mask.
            made = f"{mask} {cost.seconds} {cost.peak_memory_mb}"
            job = run.id if stage in ("quantize", "evaluate") else made
            jobs.setdefault((stage, of), {})[run.model, job] = (cost.seconds, cost.peak_memory_mb)
    return {
        key: Cost(len(jobs[key]), sum(s for s, _ in jobs[key].values()), max(peak for _, peak in jobs[key].values()))
        for key in sorted(jobs, key=lambda key: STAGES.index(key[0]))
    }
