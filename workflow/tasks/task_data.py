"""Loader of the tasks made from held-out text; it uses neither a hub nor a cache."""

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset

from patch.errors import InputError


def load(task: str, **metadata: Any) -> dict[str, Dataset]:
    """Return the questions of a task from `$PATCH_TASK_DATA/<task>.jsonl`, with columns `query`, `choices`, `gold`.

    Args:
        task: Name of the task.
        metadata: Further arguments from lm-eval, which are ignored.

    Raises:
        InputError: The variable is not set or the file is missing.
    """
    folder = os.environ.get("PATCH_TASK_DATA")
    if not folder:
        raise InputError(f"task `{task}`: PATCH_TASK_DATA is not set; set it to the folder of {task}.jsonl")
    file = Path(folder) / f"{task}.jsonl"
    if not file.exists():
        raise InputError(f"task `{task}`: no file {file}; PATCH_TASK_DATA must name the folder of the task data")
    return {"test": Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()])}
