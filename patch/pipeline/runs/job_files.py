"""Job files, which hold the settings of a job or its named inputs.

Settings and inputs are not passed on a command line for two reasons. Linux rejects an argument over 131,071 bytes,
which the paths and settings of a large grid exceed. A shell would also interpret special characters in a user's paths.

The name of a job file contains a digest of its contents. The name of the settings file is a parameter of the rule, so a
changed setting reruns the job. The name of the inputs file is no parameter, because Snakemake detects changed inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.files.io import atomic_file, json_checksum, read_json
from patch.pipeline.runs.layout import STORE
from patch.settings import Section

FOLDER = f"{STORE}/jobs"
INPUTS = "inputs"
DIGITS = 16


class JobFiles:
    """Job files of a workflow, named while it is parsed and written before the first job starts."""

    def __init__(self) -> None:
        self._contents: dict[str, dict[str, Any]] = {}

    def settings(self, stage: str, settings: Section) -> str:
        """Return the path of the file with a stage's settings, which `write` will create."""
        return self._path(stage, settings.model_dump(mode="json"))

    def inputs(self, values: Mapping[str, str | Sequence[str] | None]) -> str:
        """Return the path of the file with a job's inputs and options, a mapping of the stage's arguments to values."""
        given = {name: value for name, value in values.items() if value is not None}
        texts = {name: str(value) if isinstance(value, str) else [*map(str, value)] for name, value in given.items()}
        return self._path(INPUTS, texts)

    def _path(self, kind: str, content: dict[str, Any]) -> str:
        path = f"{FOLDER}/{_name(kind, content)}"
        self._contents[path] = content
        return path

    def write(self) -> None:
        """Write the files that are missing or damaged, each atomically."""
        for path, content in self._contents.items():
            text = json.dumps(content, indent=1) + "\n"
            if not Path(path).is_file() or Path(path).read_bytes() != text.encode():
                with atomic_file(path) as temporary:
                    temporary.write_text(text)


def read_settings(path: Path | str, stage: str) -> dict[str, Any]:
    """Read the settings of a stage.

    Raises:
        InputError: The file does not exist, belongs to another stage, or its name does not match its contents.
    """
    return _read(path, stage)


def read_inputs(path: Path | str) -> dict[str, str | list[str]]:
    """Read the inputs of a job; raise the same errors as `read_settings`."""
    return _read(path, INPUTS)


def _read(path: Path | str, kind: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"job file {error}; `snakemake` writes it when a run starts") from None
    if (name := _name(kind, content)) != Path(path).name:
        raise InputError(
            f"job file {path}: not of `{kind}`, damaged or edited: its contents would be named {name}; "
            "`snakemake` writes it when a run starts"
        )
    return content


def _name(kind: str, content: Any) -> str:
    return f"{kind}-{json_checksum(content)[:DIGITS]}.json"
