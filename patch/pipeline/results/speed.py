"""Schema of a model's speed record, and lookup of the paper's speedups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from patch.evaluation.metric import Fraction, StageCost
from patch.files.schema import Name, Positive, Schema
from patch.pipeline.results.order import percent
from patch.pipeline.results.published import Published
from patch.pipeline.results.record import Environment
from patch.pipeline.results.result_files import ResultFile
from patch.pipeline.runs.run import Run

# Model of the paper's throughput table, and the number of new tokens that the paper's text discusses.
PAPER_MODEL = "meta-llama/Llama-2-7b-hf"
PAPER_NEW_TOKENS = 128
DENSE = "dense"
Quantity = Literal["tokens_per_second", "prefill_seconds", "decode_seconds", "speedup"]


class Quartiles(Schema):
    """Median, first quartile and third quartile of repeated measurements."""

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
        """Half of the interquartile range, printed after ±."""
        return (self.high - self.low) / 2


class LinearBytes(Schema):
    """Bytes of the masked layers: dense, measured in the converted model, and expected from the packed format."""

    dense: Positive
    measured: Positive
    expected: Positive


class Timed(Schema):
    """Timing of one run or of the dense model with one number of new tokens.

    ``speedup`` is relative to the dense model, from interleaved repeats. ``rounds`` of repeats were measured, until one
    had no noisy quantity or the limit was reached; ``noisy`` are the noisy quantities of the reported round, see
    `patch.inference.timing.measure_in_rounds`. ``backends`` maps each phase (`prefill`,
    `decode`) to the number of layers per matrix-multiplication backend. ``logits_difference`` is the largest absolute
    difference from the first logits of the masked model, and ``largest_logit`` is the largest magnitude among those.
    """

    run: Run
    new_tokens: Positive
    achieved_sparsity: Fraction
    tokens_per_second: Quartiles
    prefill_seconds: Quartiles
    decode_seconds: Quartiles
    speedup: Quartiles
    rounds: Positive
    noisy: list[Quantity]
    linear_bytes: LinearBytes
    peak_memory_mb: float = Field(ge=0)
    backends: dict[Literal["prefill", "decode"], dict[Name, Positive]]
    logits_difference: float = Field(ge=0)
    largest_logit: float = Field(ge=0)


class Settings(Schema):
    """Benchmark settings, as in the configuration."""

    batch_size: Positive
    prompt: Positive
    new_tokens: list[Positive] = Field(min_length=1)
    repeats: Positive


class SpeedRecord(ResultFile):
    """Speed of one model's runs, measured in one process; for each number of new tokens the dense model comes first.

    ``hardware`` is the name of the GPU or the CPU.
    """

    what = "a record of speed"

    model: Name
    settings: Settings
    dtype: str
    device: Literal["cpu", "cuda"]
    hardware: str
    timed: list[Timed] = Field(min_length=1)
    cost: StageCost
    environment: Environment

    @model_validator(mode="after")
    def _dense_first(self) -> SpeedRecord:
        for timed in map(self.timed_with, self.settings.new_tokens):
            if [one.run.pattern == DENSE for one in timed] != [True] + [False] * (len(timed) - 1):
                raise ValueError("`timed` must begin with the dense model and contain it once")
            if len({one.run.id for one in timed}) < len(timed):
                raise ValueError("`timed` must contain each run once")
        if {timed.run.model for timed in self.timed} != {self.model}:
            raise ValueError(f"`timed` must contain only the model {self.model[:80]!r}")
        if {timed.new_tokens for timed in self.timed} != set(self.settings.new_tokens):
            raise ValueError(f"`timed` must have the new tokens of `settings`, {self.settings.new_tokens}")
        return self

    def timed_with(self, new_tokens: int) -> list[Timed]:
        """Return the timings with a number of new tokens, the dense model first."""
        return [timed for timed in self.timed if timed.new_tokens == new_tokens]

    @property
    def name(self) -> str:
        """Name of the measurement, as `speedup/model`."""
        return f"speedup/{self.model}"

    @property
    def dense(self) -> Timed:
        """Timing of the dense model with the first number of new tokens."""
        return self.timed[0]


@dataclass(frozen=True)
class Speeds:
    """Inputs of the speed table: the available records and the paper's numbers."""

    records: Sequence[SpeedRecord]
    published: Published


def published_devices(published: Published) -> list[str]:
    """Return the names of the GPUs in the paper's throughput table."""
    return list(published.throughput_tok_s_bs16_prompt128)


def paper_new_tokens(new_tokens: int, published: Published) -> int:
    """Return the number of new tokens to look up in the paper's table: ``new_tokens`` if listed, otherwise 128."""
    parts = published.throughput_tok_s_bs16_prompt128.values()
    return new_tokens if any(f"gen{new_tokens}" in part for part in parts) else PAPER_NEW_TOKENS


def published_speedup(
    published: Published, model_id: str | None, device: str, sparsity: float, new_tokens: int = PAPER_NEW_TOKENS
) -> float | None:
    """Return the paper's speedup over the dense model, or None if the paper has none.

    Args:
        published: the paper's numbers.
        model_id: key of ``published.models``.
        device: one of `published_devices`.
        sparsity: sparsity of a hybrid run, or 0.
        new_tokens: new tokens for each sequence, see `paper_new_tokens`.
    """
    if model_id != PAPER_MODEL:
        return None
    part = f"gen{paper_new_tokens(new_tokens, published)}"
    speeds = published.throughput_tok_s_bs16_prompt128[device].get(part, {})
    dense, sparse = speeds.get("0"), speeds.get(percent(sparsity))
    return sparse / dense if dense and sparse else None
