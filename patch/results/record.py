"""What one evaluated cell leaves behind: the schema of its JSON record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from patch.errors import InputError
from patch.io import read_json

Share = Annotated[float, Field(ge=0, le=1)]
StageName = Literal["prune", "learn", "import", "quantize", "evaluate"]


@dataclass(frozen=True)
class ModelInfo:
    """What tables and figures need to know of a model of the configuration.

    Attributes:
        name: under `models` in the configuration.
        title: as printed.
        variant: what the grid's method `patch` means for this model.
        published: id of the model in `published.json` that it is printed beside.
        comparable: False where ``published`` is another model of the family.
        tile: the experiment's tile size, which stands for the paper's where models are not comparable.
    """

    name: str
    title: str
    variant: Literal["joint", "tile"]
    published: str | None = None
    comparable: bool = True
    tile: int | None = None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordCell(_Section):
    """The cell of the grid; ``sparsity`` is the target share of zeros."""

    id: str
    model: str
    method: str
    pattern: str = Field(pattern=r"^(dense|unstructured|hybrid|\d+:\d+)$")
    sparsity: float = Field(ge=0, lt=1)
    tile: int | None
    seed: int
    quantization: Literal["absmax", "slim-lora"] | None = None
    variant: str | None = None


class Metric(_Section):
    """A perplexity, or an accuracy as a share of one; ``samples`` are windows or questions."""

    value: float
    stderr: float | None = Field(None, ge=0)
    chance: Share | None = None
    samples: int | None = Field(None, ge=0)


class StageCost(_Section):
    """Wall time in seconds and peak memory in MB."""

    seconds: float = Field(ge=0)
    peak_memory_mb: float = Field(ge=0)


class Environment(_Section):
    """Where the numbers come from; ``time`` is ISO 8601."""

    git_commit: str | None
    python: str
    packages: dict[str, str]
    device: str
    threads: int
    time: str


class Record(_Section):
    """One cell's results.

    ``achieved_sparsity`` is counted on the model that was evaluated; ``density`` is the kept share of
    each linear layer. Kept weights that quantisation rounds to zero count as kept.
    """

    schema_version: Literal[1] = Field(alias="schema")
    experiment: str
    cell: RecordCell
    metrics: dict[str, Metric]
    achieved_sparsity: Share
    density: dict[str, Share]
    config_digest: str
    stages: dict[StageName, StageCost]
    environment: Environment


def read_record(path: Path | str) -> Record:
    """Read and check one record.

    Raises:
        InputError: the file is missing, is not JSON, or is not a record; one line that names the key.
    """
    try:
        return Record.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: not a record: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    """One line: the key of the first fault, what is wrong with it, and how many others there are."""
    fault, *others = error.errors()
    key = ".".join(str(part) for part in fault["loc"]) or "the file"
    more = f" (and {len(others)} more)" if others else ""
    return f"`{key}`: {fault['msg']}{more}"
