"""Partial results of an evaluation on disk; an interrupted run resumes after its last finished task."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import model_validator

from patch.errors import InputError
from patch.evaluation.metric import Measurement, StageCost, check_metrics
from patch.files.io import read_checked_json, write_checked_json
from patch.files.schema import Name, Schema, check

log = logging.getLogger(__name__)


class Part(Schema):
    """Finished measurements of perplexity or of one task, and their cost."""

    metrics: dict[Name, Measurement]
    cost: StageCost


class _File(Schema):
    digest: str
    parts: dict[Name, Part]

    @model_validator(mode="after")
    def _in_range(self) -> _File:
        for part in self.parts.values():
            check_metrics(part.metrics)
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
            log.warning("%s is ignored, because it cannot be read: %s", self.path, error)
            return {}
        if content.digest != self.digest:
            log.warning("%s is ignored, because its evaluation had other settings", self.path)
            return {}
        return content.parts

    def add(self, name: str, metrics: dict[str, Measurement], cost: dict[str, float]) -> None:
        """Add a finished part, with its `seconds` and `peak_memory_mb`, and write it to disk."""
        self.parts[name] = Part(metrics=metrics, cost=StageCost(**cost))
        if self.path:
            parts = {key: part.model_dump() for key, part in self.parts.items()}
            write_checked_json(self.path, {"digest": self.digest, "parts": parts})

    def cost(self) -> dict[str, float]:
        """Return the total cost of all parts: the sum of `seconds` and the maximum of `peak_memory_mb`."""
        costs = [part.cost for part in self.parts.values()]
        return {
            "seconds": round(sum(cost.seconds for cost in costs), 3),
            "peak_memory_mb": max(cost.peak_memory_mb for cost in costs),
        }

    def remove(self) -> None:
        """Delete the file, since the final record replaces it."""
        if self.path:
            self.path.unlink(missing_ok=True)
