"""Data of zero-shot tasks, made from held-out text."""

from __future__ import annotations

from pathlib import Path

from patch.data.corpus import read_documents
from patch.evaluation.tasks import make_task_data
from patch.pipeline.runs.stage_settings import TasksSettings


def run(settings: TasksSettings, *, corpus: Path, out: Path) -> None:
    """Make the data of every task in the include path."""
    make_task_data(list(read_documents(corpus, settings.split)), settings.samples, 0, out)
