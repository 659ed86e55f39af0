"""Schema of the record of a model's speed, and the paper's numbers beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from patch.evaluation.schema import Share, StageCost
from patch.files.io import read_checked_json, write_checked_json
from patch.files.schema import Name, Positive, Schema, check
from patch.pipeline.results.order import percent
from patch.pipeline.results.published import Published
from patch.pipeline.results.record import Environment, RecordCell

# The model of the paper's table of tokens per second, and the new tokens of the part of it that its text tells of.
PAPER_MODEL = "meta-llama/Llama-2-7b-hf"
PAPER_NEW_TOKENS = 128
DENSE = "dense"


class Quartiles(Schema):
    """Of repeated measurements: the median, and the first and third quartile."""

    median: float = Field(ge=0)
    low: float = Field(ge=0)
    high: float = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Quartiles:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"the quartiles {self.low}, {self.median}, {self.high} are not in order")
        return self

    @property
    def spread(self) -> float:
        """Half of what lies between the quartiles, as it is printed after ±."""
        return (self.high - self.low) / 2


class LinearBytes(Schema):
    """Bytes of the layers that masks are of: dense, as the converted model holds them, as its sizes say."""

    dense: Positive
    measured: Positive
    expected: Positive


class Timed(Schema):
    """One cell, or the dense model.

    ``speedup`` is against the dense model, run by run in turn. ``backends`` says for the prompt and for decoding what
    multiplied in how many layers. ``logits_difference`` is the largest to the masked model's first logits, none of
    which is larger than ``largest_logit``.
    """

    cell: RecordCell
    achieved_sparsity: Share
    tokens_per_second: Quartiles
    prefill_seconds: Quartiles
    decode_seconds: Quartiles
    speedup: Quartiles
    linear_bytes: LinearBytes
    peak_memory_mb: float = Field(ge=0)
    backends: dict[Literal["prefill", "decode"], dict[Name, Positive]]
    logits_difference: float = Field(ge=0)
    largest_logit: float = Field(ge=0)


class Settings(Schema):
    """As in the configuration."""

    batch_size: Positive
    prompt: Positive
    new_tokens: Positive
    repeats: Positive


class SpeedRecord(Schema):
    """All of one model, measured in one process; the dense model stands first.

    ``hardware`` is the name of the GPU, or of the CPU.
    """

    schema_version: Literal[1] = Field(alias="schema")
    experiment: Name
    model: Name
    settings: Settings
    dtype: str
    device: Literal["cpu", "cuda"]
    hardware: str
    timed: list[Timed] = Field(min_length=1)
    config_digest: Name
    cost: StageCost
    environment: Environment

    @model_validator(mode="after")
    def _dense_first(self) -> SpeedRecord:
        if [timed.cell.pattern == DENSE for timed in self.timed] != [True] + [False] * (len(self.timed) - 1):
            raise ValueError("`timed` must begin with the dense model, and have it once")
        if {timed.cell.model for timed in self.timed} != {self.model}:
            raise ValueError(f"`timed` must be of the model {self.model[:80]!r} alone")
        if len({timed.cell.id for timed in self.timed}) < len(self.timed):
            raise ValueError("`timed` must have each cell once")
        return self

    @property
    def dense(self) -> Timed:
        """What the others are compared with."""
        return self.timed[0]


@dataclass(frozen=True)
class Speeds:
    """What a table of speed is made from: the records that are there, and the paper's numbers."""

    records: Sequence[SpeedRecord]
    published: Published


def write_speed(path: Path | str, record: dict[str, Any]) -> None:
    """Check and write one record with a checksum, atomically.

    Raises:
        InputError: it is not a record of speed; nothing is written.
    """
    check(SpeedRecord, record, f"{path}: not a record of speed")
    write_checked_json(path, record)


def read_speed(path: Path | str) -> SpeedRecord:
    """Read and check one record.

    Raises:
        InputError: the file is missing or damaged, or is not a record of speed; one line that names the key.
    """
    return check(SpeedRecord, read_checked_json(path), f"{path}: not a record of speed")


def published_devices(published: Published) -> list[str]:
    """The GPUs that the paper has tokens per second of."""
    return list(published.throughput_tok_s_bs16_prompt128)


def paper_new_tokens(new_tokens: int, published: Published) -> int:
    """Those of the part of the paper's table that stands beside so many: 128 where it has none of its own."""
    parts = published.throughput_tok_s_bs16_prompt128.values()
    return new_tokens if any(f"gen{new_tokens}" in part for part in parts) else PAPER_NEW_TOKENS


def published_speedup(
    published: Published, model_id: str | None, device: str, sparsity: float, new_tokens: int = PAPER_NEW_TOKENS
) -> float | None:
    """The paper's speedup over the dense model; None where it has none.

    Args:
        published: the paper's numbers.
        model_id: key of its `models`.
        device: one of `published_devices`.
        sparsity: of a hybrid cell, or 0.
        new_tokens: of each sequence, see `paper_new_tokens`.
    """
    if model_id != PAPER_MODEL:
        return None
    part = f"gen{paper_new_tokens(new_tokens, published)}"
    speeds = published.throughput_tok_s_bs16_prompt128[device].get(part, {})
    dense, sparse = speeds.get("0"), speeds.get(percent(sparsity))
    return sparse / dense if dense and sparse else None
