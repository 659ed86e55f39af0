"""What the cells of an experiment took, from their records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from patch.pipeline.results.record import Record
from patch.pipeline.runs.cell import Cell

STAGES = ("prune", "learn", "import", "quantize", "evaluate")


@dataclass(frozen=True)
class Cost:
    """Of all jobs of one stage and method: their number, seconds in all, and memory of the largest in MB."""

    jobs: int
    seconds: float
    peak_memory_mb: float


def measured_costs(records: Iterable[Record]) -> dict[tuple[str, str], Cost]:
    """Stage and method -> what its jobs took, in the order of stages, then of the records.

    A mask is counted once, however many cells have it: the records of a cell and of what was quantised of it both say
    what making it took. Of a mask that no cell has, as of one that learning starts from and no row of a table, no
    record tells.
    """
    jobs: dict[tuple[str, str], dict[tuple[str, str], tuple[float, float]]] = {}
    for record in records:
        cell = record.cell
        mask = replace(Cell.of(cell), variant=None).pruned.id
        for stage, cost in record.stages.items():
            of = cell.quantization or cell.method if stage == "quantize" else cell.method
            # Variants have one mask if it took the same to the millisecond: an ablation's default is the plain run.
            made = f"{mask} {cost.seconds} {cost.peak_memory_mb}"
            job = cell.id if stage in ("quantize", "evaluate") else made
            jobs.setdefault((stage, of), {})[cell.model, job] = (cost.seconds, cost.peak_memory_mb)
    return {
        key: Cost(len(jobs[key]), sum(s for s, _ in jobs[key].values()), max(peak for _, peak in jobs[key].values()))
        for key in sorted(jobs, key=lambda key: STAGES.index(key[0]))
    }
