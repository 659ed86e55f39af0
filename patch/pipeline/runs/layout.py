"""Where every file of an experiment is. Nothing else builds a path of a result."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from patch.errors import InputError
from patch.pipeline.runs.cell import Cell
from patch.settings import Section

STORE = "work"


def digest(value: Any, length: int = 8) -> str:
    """Short hash of a JSON value; part of the names of what experiments share."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def spec_digest(spec: Section) -> str:
    """Short hash of a stage's settings."""
    return digest(spec.model_dump(mode="json"))


def input_path(path: str, key: str) -> str:
    """Return a user's path, which a rule names as an input.

    Args:
        path: any.
        key: of the configuration, for the message.

    Raises:
        InputError: it has braces.
    """
    if "{" in path or "}" in path:
        raise InputError(
            f"`{key}` is {path!r}: Snakemake takes names in braces for wildcards; rename the file or folder"
        )
    return path


class Layout:
    """Paths of one experiment's results, relative to the workflow's folder."""

    def __init__(self, experiment: str) -> None:
        self.root = f"results/{experiment}"
        self.scratch = f"{STORE}/{experiment}"

    def mask(self, cell: Cell) -> str:
        """Bit-packed mask; a cell that is quantised has that of the pruned one."""
        return f"{self.root}/masks/{cell.model}/{cell.pruned.id}.safetensors"

    def weights(self, cell: Cell) -> str:
        """Updated weights; removed as soon as what reads them is done."""
        return f"{self.scratch}/weights/{cell.model}/{cell.pruned.id}.safetensors"

    def spare_weights(self, cell: Cell) -> str:
        """The same, between pruning and evaluation; not an output of a rule, see the stage `update`."""
        return f"{self.scratch}/spare/{cell.model}/{cell.id}.safetensors"

    def quantized(self, cell: Cell) -> str:
        """Low-bit weights and adapters; removed as soon as the cell is evaluated."""
        return f"{self.scratch}/quantized/{cell.model}/{cell.id}.safetensors"

    def curve(self, cell: Cell) -> str:
        """One JSON line a learning step."""
        return f"{self.root}/curves/{cell.model}/{cell.id}.jsonl"

    def checkpoints(self, cell: Cell) -> str:
        """Folder of a learning run's checkpoints; not an output of a rule, so that it survives a failure."""
        return f"{self.scratch}/checkpoints/{cell.model}/{cell.id}"

    def record(self, cell: Cell) -> str:
        """What was measured."""
        return f"{self.root}/records/{cell.model}/{cell.id}.json"

    def samples(self, cell: Cell) -> str:
        """What was measured on each window and question."""
        return f"{self.root}/samples/{cell.model}/{cell.id}.json"

    def speedup(self, model: str) -> str:
        """How fast the model and its cells are."""
        return f"{self.root}/speedup/{model}.json"

    def partial_record(self, cell: Cell) -> str:
        """What an evaluation has measured so far; not an output of a rule, so that it survives a failure."""
        return f"{self.scratch}/evaluations/{cell.model}/{cell.id}.json"
