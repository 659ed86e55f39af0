"""Detection of existing outputs that were made with settings other than those of the configuration.

Snakemake detects changed settings from its metadata in `.snakemake/`. Results that were copied without this metadata
look finished to Snakemake, even if their settings differ. Masks and records therefore contain a digest of their
settings, which this module compares with the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING

from patch.errors import InputError, listed
from patch.files.io import read_json
from patch.masks.header import read_header
from patch.pipeline.runs.plan import Plan
from patch.pruning.weights_header import weights_digest

if TYPE_CHECKING:
    from snakemake.workflow import Workflow


def stale_outputs(plan: Plan) -> list[str]:
    """Return the paths of existing masks, fine-tuned weights and results that have other settings."""
    return [path for path, digest in _expected(plan) if Path(path).exists() and _digest(path) != digest]


def _expected(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the path and the expected settings digest of every output that contains a digest."""
    for run in plan.masks.made:
        yield plan.layout.mask(run), plan.settings.mask_digest(run)
    for run in plan.grid.runs:
        if run.finetune:
            yield plan.layout.finetuned(run), plan.settings.mask_digest(run)
        digest = plan.settings.record_digest(run)
        yield plan.layout.record(run), digest
        yield plan.layout.samples(run), digest
    for model in plan.timed_models:
        yield plan.layout.speedup(model), plan.settings.speed_digest(model)


def _digest(path: str) -> str | None:
    """Return the settings digest in a file, or None if the file is damaged."""
    if path.endswith(".safetensors"):
        return (read_header(path) or {}).get("digest") or weights_digest(path)
    try:
        content = read_json(path)
    except InputError:
        return None
    return content.get("config_digest") if isinstance(content, Mapping) else None


def force(workflow: Workflow, plan: Plan, logger: Logger) -> list[str]:
    """Force a rerun of the jobs whose outputs are stale.

    This is an input function of the rules that need every output. Snakemake calls it while it builds the job graph,
    before it decides which jobs run.

    Returns:
        An empty list, because these rules need no further input.
    """
    by_parameters = any(trigger.name == "PARAMS" for trigger in workflow.rerun_triggers)
    # Each cluster job parses the workflow again, for itself alone, and must not force other jobs.
    if workflow.is_main_process and by_parameters and (stale := stale_outputs(plan)):
        workflow.dag.forcefiles.update(stale)
        logger.info(f"Made with other settings than the configuration's: {listed(stale)}")
    return []
