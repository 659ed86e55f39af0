"""Zero-shot tasks whose data is made from held-out text."""

from __future__ import annotations

from pathlib import Path

from patch.config.load import suggest
from patch.data.corpus import read_documents
from patch.errors import InputError
from patch.evaluation.tasks import make_task_data, task_names
from patch.specs import TasksSpec


def run(spec: TasksSpec, *, corpus: Path, out: Path) -> None:
    """Make the data of every task of the include path."""
    known = task_names(Path(spec.include_path))
    for name in spec.tasks:
        if name not in known:
            raise InputError(f"`evaluation.tasks`: {name!r} is not in {spec.include_path}; {suggest(name, known)}")
    make_task_data(list(read_documents(corpus, spec.split)), spec.samples, 0, out)
