"""Zero-shot tasks of lm-eval: download their data sets, so that everything after is offline."""

from __future__ import annotations

from pathlib import Path

from patch.evaluation.tasks import fetch_task_data
from patch.specs import TasksSpec


def run(spec: TasksSpec, *, out: Path) -> None:
    """Fill the cache of `datasets` and write a receipt."""
    fetch_task_data(spec.tasks, None, out)
