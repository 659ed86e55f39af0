"""Download of the data sets of lm-eval's zero-shot tasks, so that later stages run offline."""

from __future__ import annotations

from pathlib import Path

from patch.evaluation.harness import fetch_task_data
from patch.files.io import atomic_directory
from patch.pipeline.runs.stage_settings import TasksSettings


def run(settings: TasksSettings, *, out: Path) -> None:
    """Download the data sets to the cache of `datasets` and write a receipt."""
    with atomic_directory(out) as folder:
        fetch_task_data(settings.tasks, None, folder / "receipt.json")
