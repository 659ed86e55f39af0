"""Outputs that are there but were made with other settings than the configuration's.

Snakemake notices a changed setting by notes of its own in `.snakemake/`. Results that were copied without them look
finished to it, whatever their settings were. Masks and records carry a digest of their settings, which says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING

from patch.errors import InputError
from patch.files.io import read_json
from patch.masks.header import read_header
from patch.pipeline.runs.plan import Plan

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

NAMED = 5


def stale_outputs(plan: Plan) -> list[str]:
    """Paths of the masks, records, samples and measurements of speed that exist and have other settings."""
    return [path for path, digest in _expected(plan) if Path(path).exists() and _digest(path) != digest]


def _expected(plan: Plan) -> Iterator[tuple[str, str]]:
    """Path and digest of the settings of every output that carries one."""
    for cell in plan.masks.made:
        yield plan.layout.mask(cell), plan.mask_digest(cell)
    for cell in plan.grid.cells:
        digest = plan.record_digest(cell)
        yield plan.layout.record(cell), digest
        yield plan.layout.samples(cell), digest
    for model in plan.timed_models:
        yield plan.layout.speedup(model), plan.speed_digest(model)


def _digest(path: str) -> str | None:
    """The digest that a file carries; None where it is damaged."""
    if path.endswith(".safetensors"):
        return (read_header(path) or {}).get("digest")
    try:
        content = read_json(path)
    except InputError:
        return None
    return content.get("config_digest") if isinstance(content, Mapping) else None


def force(workflow: Workflow, plan: Plan, logger: Logger) -> list[str]:
    """Have the jobs run whose outputs are stale; an input function of the rules that need every output.

    Snakemake asks for it while it builds its graph of jobs, before it decides which of them run.

    Returns:
        No further input.
    """
    by_parameters = any(trigger.name == "PARAMS" for trigger in workflow.rerun_triggers)
    # Jobs of a cluster read the workflow again, each for itself alone.
    if workflow.is_main_process and by_parameters and (stale := stale_outputs(plan)):
        workflow.dag.forcefiles.update(stale)
        more = f" and {len(stale) - NAMED} more" if len(stale) > NAMED else ""
        logger.info(f"Made with other settings than the configuration's: {', '.join(stale[:NAMED])}{more}")
    return []
