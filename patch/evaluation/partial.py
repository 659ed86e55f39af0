"""Partial results of an evaluation on disk; an interrupted run resumes after its last finished part."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import model_validator

from patch.errors import InputError
from patch.evaluation import schema
from patch.evaluation.metric import Metric
from patch.files.io import read_checked_json, write_checked_json
from patch.files.schema import Name, Positive, Schema, check

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One finished measurement.

    Attributes:
        metric: the measured value.
        cost: its `seconds` and `peak_memory_mb`.
    """

    metric: Metric
    cost: dict[str, float]


class _Measured(schema.Metric):
    # A part needs both, since they cannot be measured separately.
    samples: Positive
    values: list[float]


class _PartFile(Schema):
    metric: _Measured
    cost: schema.StageCost

    def part(self) -> Part:
        """Return the part in its in-memory form."""
        values = self.metric.model_dump()
        return Part(Metric(**values | {"values": tuple(values["values"])}), self.cost.model_dump())


class _File(Schema):
    digest: str
    parts: dict[Name, _PartFile]

    @model_validator(mode="after")
    def _in_range(self) -> _File:
        schema.check_metrics({name: part.metric for name, part in self.parts.items()})
        return self


class PartialRecord:
    """Finished parts of one evaluation, by name.

    Args:
        path: path of the file; None keeps the parts only in memory. A damaged file or one of another digest is ignored.
        digest: digest of the settings and of all inputs.
    """

    def __init__(self, path: Path | None, digest: str) -> None:
        self.path, self.digest = path, digest
        self.parts: dict[str, Part] = self._read() if path and path.exists() else {}

    def _read(self) -> dict[str, Part]:
        try:
            content = check(_File, read_checked_json(self.path), "not the parts of an evaluation")
        except InputError as error:
            log.warning("%s cannot be read and is passed over: %s", self.path, error)
            return {}
        if content.digest != self.digest:
            log.warning("%s is of an evaluation with other settings and is passed over", self.path)
            return {}
        return {name: part.part() for name, part in content.parts.items()}

    def add(self, name: str, metric: Metric, cost: dict[str, float]) -> None:
        """Add a finished part and write it to disk."""
        self.parts[name] = Part(metric, cost)
        if self.path:
            parts = {key: asdict(part) for key, part in self.parts.items()}
            write_checked_json(self.path, {"digest": self.digest, "parts": parts})

    def cost(self) -> dict[str, float]:
        """Return the total cost of all parts: the sum of `seconds` and the maximum of `peak_memory_mb`."""
        costs = [part.cost for part in self.parts.values()]
        return {
            "seconds": round(sum(cost["seconds"] for cost in costs), 3),
            "peak_memory_mb": max(cost["peak_memory_mb"] for cost in costs),
        }

    def remove(self) -> None:
        """Delete the file, since the final record replaces it."""
        if self.path:
            self.path.unlink(missing_ok=True)
