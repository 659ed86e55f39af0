"""Job files: the settings and the named inputs of one job.

They do not travel on a command line: Linux refuses an argument over 131,071 bytes, which the paths and settings of a
large grid exceed, and a shell would interpret what a path of a user contains. A job file is named by a digest of its
contents. The name is a parameter of the rule, so a changed setting reruns the job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch.config.base import Section
from patch.errors import InputError
from patch.io import atomic_file, json_checksum, parse_json
from patch.layout import STORE

FOLDER = f"{STORE}/jobs"
DIGITS = 16
Inputs = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class JobFile:
    """Contents of a job file.

    Attributes:
        stage: a stage in `patch.stages`.
        settings: of that stage.
        inputs: option of the stage -> path or list of paths.
    """

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str | list[str]]


class JobFiles:
    """Job files of a workflow: named while it is parsed, written before its first job starts."""

    def __init__(self) -> None:
        self._contents: dict[str, dict[str, Any]] = {}

    def path(self, stage: str, settings: Section, inputs: Inputs) -> str:
        """Return the path of a job's file, which `write` will create."""
        paths = {name: str(value) if isinstance(value, str) else [*map(str, value)] for name, value in inputs.items()}
        content = {"stage": stage, "settings": settings.model_dump(mode="json"), "inputs": paths}
        path = f"{FOLDER}/{_name(content)}"
        self._contents[path] = content
        return path

    def write(self) -> None:
        """Write the files that are missing or damaged, each atomically."""
        for path, content in self._contents.items():
            text = json.dumps(content, indent=1) + "\n"
            if not Path(path).is_file() or Path(path).read_bytes() != text.encode():
                with atomic_file(path) as temporary:
                    temporary.write_text(text)


def read_job_file(path: Path | str) -> JobFile:
    """Read a job file.

    Raises:
        InputError: there is no such file, or its contents are not those that its name stands for.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such job file; `snakemake` writes it when a run starts") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    content = parse_json(text, path)
    try:
        job = JobFile(**content)
        name = _name(content)
    except (TypeError, KeyError):
        raise InputError(f"{path}: not a job file; it has the keys `stage`, `settings` and `inputs`") from None
    if name != Path(path).name:
        raise InputError(f"{path}: its contents are not those that its name stands for ({name}): damaged or edited")
    return job


def _name(content: dict[str, Any]) -> str:
    return f"{content['stage']}-{json_checksum(content)[:DIGITS]}.json"
