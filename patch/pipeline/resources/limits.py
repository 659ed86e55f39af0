"""Jobs that need more memory than a GPU has, and exchanges between GPUs, as lines of text."""

from __future__ import annotations

from patch.pipeline.config.gpus import GPUS, INFINIBAND_GB_S
from patch.pipeline.resources.cost import CostModel


def too_large(costs: CostModel) -> list[str]:
    """Return one line for each job that needs more memory than a GPU has, and for the evaluations of each model."""
    limit = 1000 * costs.experiment.resources.memory_gb
    tuned = [run for run in costs.grid.closure if run.finetune]
    learned = [run for run in costs.grid.closure if run.definition.stage == "learn" and not run.derived]
    needs = {f"{run.model} {run.id}": costs.finetune(run).gpu_mem_mb for run in tuned}
    needs |= {f"{run.model} {run.id}": costs.learn(run).gpu_mem_mb for run in learned}
    needs |= {f"speedup of {model}": costs.speedup(model).gpu_mem_mb for model in costs.plan.timed_models}
    evaluated = {run.model: run for run in costs.grid.runs}
    count = f"with `learn_gpus: {costs.experiment.resources.learn_gpus}`"
    needs |= {f"evaluation of {model} {count}": costs.evaluate(run).gpu_mem_mb for model, run in evaluated.items()}
    return [
        f"{job} needs about {need / 1000:.0f} GB of GPU memory; "
        f"a GPU has {limit / 1000:g} (`resources.gpu`, `resources.gpu_memory_gb`)"
        for job, need in needs.items()
        if need > limit
    ]


def exchanges(costs: CostModel) -> list[str]:
    """Return lines for each model and method whose GPUs exchange data in a step, with each other or the host."""
    learned = [run for run in costs.grid.closure if run.definition.stage == "learn" and not run.derived]
    resources = costs.experiment.resources
    bandwidth = GPUS[resources.gpu].link_gb_s if resources.learn_nodes == 1 else INFINIBAND_GB_S
    lines: dict[str, None] = {}
    for run in learned:
        if found := costs.exchange(run):
            seconds = found.gb / bandwidth
            lines[
                f"{run.model} {run.method}: {found.gb:,.0f} GB of each GPU in a step, {seconds:.1f} s at {bandwidth:g} "
                f"GB/s beside {found.compute_seconds:.1f} s of arithmetic, {found.hidden(seconds):.0%} hidden"
            ] = None
        if seconds := costs.host_copies(run):
            what = "gradients and moments in the host's memory"
            lines[f"{run.model} {run.method}: {what}, {seconds:.1f} s of copies in a step"] = None
    return list(lines)
